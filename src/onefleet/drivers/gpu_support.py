"""What a save can do with NVIDIA GPUs, by the version of their driver; and which goes where.

Compiled from the driver's documentation and its users' reports; nothing of it was measured here.
`since` is the first driver branch that can do it, so that a newer driver needs no change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onefleet.domain.errors import Unsupported


@dataclass(frozen=True, slots=True)
class Limit:
    """since: 0, no driver so far. what: what does not work before."""

    since: int
    what: str


#: 550 has checkpoints, too, but no calls for them, and no limit to a lock that hangs.
CALLS = Limit(570, "its driver has no calls that take a process off its GPUs")
OTHER_GPUS = Limit(580, "what was saved comes back on the same GPUs only")
MANY_GPUS = Limit(590, "processes on more than one GPU cannot be saved")
ARM = Limit(595, "nothing can be saved on an ARM machine")
IPC = Limit(610, "processes that share GPU memory with each other (CUDA IPC) cannot be saved")
MIG = Limit(0, "what runs on a part of a GPU (MIG) cannot be saved")
LIMITS = (CALLS, OTHER_GPUS, MANY_GPUS, ARM, IPC, MIG)

#: Set for the workers of a gang unless the job does: they keep its processes from sharing GPU
#: memory, which cannot be saved. Collectives then go over the network, and are slower for it.
GANG_SETTINGS = {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1", "NCCL_NVLS_ENABLE": "0"}


def branch(driver: str) -> int:
    """The first number of a driver's version, which names its branch; 0: it has none."""
    found = re.match(r"\d+", driver)
    return int(found.group()) if found else 0


def open_limits(driver: str, machine: str) -> tuple[Limit, ...]:
    """What does not work with this driver on this kind of machine (as uname names it)."""
    applies = {ARM: machine not in ("x86_64", "AMD64")}
    return tuple(
        limit
        for limit in LIMITS
        if applies.get(limit, True) and (limit.since == 0 or branch(driver) < limit.since)
    )


def why_not(driver: str, machine: str, gpus: int) -> str:
    """Why a worker's state on so many GPUs cannot be saved from outside; empty: it can.

    gpus: of the whole job, whose workers talk to each other.
    """
    stops = [CALLS, ARM, *([MANY_GPUS] if gpus > 1 else [])]
    for limit in open_limits(driver, machine):
        if limit in stops:
            return f"{limit.what}: it is {driver or 'unknown'}, needed is {limit.since}"
    return ""


def device_map(
    old: Mapping[str, str], held_before: Sequence[str], new: Mapping[str, str], held: Sequence[str]
) -> dict[str, str]:
    """Which GPU takes the place of which; empty: nothing changes.

    old, new: the products of all GPUs of the node that a worker was saved on, and of this one, by
    UUID in the driver's order. held_before, held: those that were and are the worker's own, in
    order. The driver remembers all GPUs of a machine, also those that a process may not see, so
    the map has to name them all. Raises Unsupported.
    """
    if [old[name] for name in held_before] != [new.get(name, "") for name in held]:
        raise Unsupported(
            "the worker cannot come back on these GPUs",
            why=f"it had {_products(old, held_before)}, and would get {_products(new, held)}",
            hint="place it on as many GPUs of the same kind",
        )
    found = dict(zip(held_before, held, strict=True))
    free = [name for name in new if name not in found.values()]
    for name, product in old.items():
        if name in found:
            continue
        same = [n for n in free if new[n] == product]
        choice = name if name in same else next(iter(same), "")
        if not choice:
            raise Unsupported(
                "the worker cannot come back on this node",
                why=f"the node that saved it had {_products(old, list(old))}, and this one has "
                f"{_products(new, list(new))}: the driver wants one in the place of each",
                hint="restore it on a node with the same GPUs, or more of them",
            )
        found[name] = choice
        free.remove(choice)
    return {} if list(old) == list(new) and all(a == b for a, b in found.items()) else found


def _products(node: Mapping[str, str], names: Sequence[str]) -> str:
    products = [node.get(name, "unknown") for name in names]
    counts = {product: products.count(product) for product in products}
    return ", ".join(f"{count} x {product}" for product, count in counts.items()) or "none"
