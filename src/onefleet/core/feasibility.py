"""Whether a demand could ever be met by a fleet, however long it waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from onefleet.domain.fleet import Device, DeviceKind, Node
from onefleet.domain.quantities import counted, size
from onefleet.domain.work import Demand


def accepts(demand: Demand, device: Device) -> bool:
    """Whether the device is of a class that the work can use."""
    return not demand.speeds or any(speed.product == device.product for speed in demand.speeds)


def suits(device: Device, demand: Demand) -> bool:
    """Whether the device can be one of those of a worker with this demand.

    A worker on CPU cores shares its node's memory; any other kind brings its own memory along.
    """
    if device.kind is not demand.kind or not accepts(demand, device):
        return False
    if device.kind is DeviceKind.CPU:
        return True
    return device.memory_bytes * demand.devices_max >= demand.memory_bytes


def node_memory(demand: Demand) -> int:
    """Bytes of the node's memory that one worker takes; other devices bring their own memory."""
    return demand.memory_bytes if demand.kind is DeviceKind.CPU else 0


def workers_at_most(node: Node, demand: Demand) -> int:
    """How many workers of this demand the empty node could take; some may take turns."""
    if not is_in_zone(demand, node):
        return 0
    fitting = sum(1 for device in node.devices if suits(device, demand))
    count = fitting // max(demand.devices_min, 1) * demand.pack
    if demand.kind is DeviceKind.CPU and demand.memory_bytes > 0:
        count = min(count, node.memory_bytes // demand.memory_bytes)
    return count


def is_in_zone(demand: Demand, node: Node) -> bool:
    """Whether the work may run on this node, by where that stands."""
    return not demand.zones or node.zone in demand.zones


def feasibility(demand: Demand, nodes: Iterable[Node]) -> str | None:
    """None when the fleet could run it if it were empty, else what is too much and what would fit.

    Lost nodes count: they may come back.
    """
    fleet = sorted(nodes, key=lambda node: node.id)
    if sum(workers_at_most(node, demand) for node in fleet) >= demand.workers:
        return None
    kind = demand.kind.value
    if not any(device.kind is demand.kind for node in fleet for device in node.devices):
        return f"needs {kind} devices, and the fleet has none{_other_kinds(fleet)}"
    near = [node for node in fleet if is_in_zone(demand, node)]
    if not near:
        return f"needs a node{in_zones(demand)}, and the fleet has {_zones(fleet)}"
    counts = [_usable(node, demand) for node in near]
    if not any(counts):
        return (
            f"needs {kind} devices{of_classes(demand)}, and the fleet has {_others(demand, near)}"
        )
    which = of_classes(demand) + in_zones(demand)
    devices = f"needs {demand.workers} x {demand.devices_min} {kind} devices{which}"
    if demand.workers == 1:
        devices = f"needs {counted(demand.devices_min, f'{kind} device')}{which} on one node"
    elif demand.pack > 1:
        devices = f"needs {demand.least} {kind} devices{which} for {demand.workers} workers"
    there = " there" if demand.zones else ""
    fits = f"the fleet has {sum(counts)}{there}, at most {max(counts)} on one node"
    if not demand.memory_bytes:
        return f"{devices}; {fits}"
    memory = max(_worker_memory_bytes(node, demand) for node in near)
    needs = f"{devices} and {size(demand.memory_bytes)} of memory for each worker"
    return f"{needs}; {fits}, with at most {size(memory)} for a worker"


def of_classes(demand: Demand) -> str:
    """Which classes of devices it can use, in words; empty: any."""
    if not demand.speeds:
        return ""
    return f" of class {' or '.join(speed.product for speed in demand.speeds)}"


def in_zones(demand: Demand) -> str:
    """Where it may run, in words; empty: anywhere."""
    return f" in zone {' or '.join(demand.zones)}" if demand.zones else ""


def _usable(node: Node, demand: Demand) -> int:
    """Devices of the node that are of a kind and class that it can use."""
    return sum(1 for d in node.devices if d.kind is demand.kind and accepts(demand, d))


def _zones(fleet: list[Node]) -> str:
    names = sorted({node.zone for node in fleet if node.zone})
    return f"zone {', '.join(names)}" if names else "no zones"


def _others(demand: Demand, fleet: list[Node]) -> str:
    counts = Counter(d.product for node in fleet for d in node.devices if d.kind is demand.kind)
    has = ", ".join(f"{count} of class {name}" for name, count in sorted(counts.items()))
    return f"{has}{in_zones(demand)}" if has else f"none{in_zones(demand)}"


def _worker_memory_bytes(node: Node, demand: Demand) -> int:
    if demand.kind is DeviceKind.CPU:
        return node.memory_bytes
    sizes = [d.memory_bytes for d in node.devices if d.kind is demand.kind and accepts(demand, d)]
    return max(sizes, default=0) * demand.devices_max


def _other_kinds(fleet: list[Node]) -> str:
    counts: dict[str, int] = {}
    for node in fleet:
        for device in node.devices:
            counts[device.kind.value] = counts.get(device.kind.value, 0) + 1
    has = ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts))
    return f" (it has {has})" if has else ""


__all__ = [
    "accepts",
    "feasibility",
    "in_zones",
    "is_in_zone",
    "node_memory",
    "of_classes",
    "suits",
    "workers_at_most",
]
