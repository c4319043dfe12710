"""Nodes, devices and replicas: look at them, take nodes and devices out of use and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onefleet.control import views
from onefleet.control.api.existing import find_node
from onefleet.control.call import Call, good_text
from onefleet.domain.errors import Conflict, NotFound
from onefleet.domain.fleet import Cordon, Node, NodeState
from onefleet.domain.ids import DeviceId, Instant, NodeId
from onefleet.store.base import Commit, Note, Put, State
from onefleet.wire.api import CordonDevice, DeviceView, NodeView, Page, ReplicaView

REASON_MAX = 500


async def list_nodes(call: Call) -> Page[NodeView]:
    state = await call.pool.store.read()
    scene = call.pool.scene(state, call.caller)
    ordered = sorted(state.nodes.values(), key=lambda node: (node.joined_at, node.id))
    return Page(tuple(views.node_view(node, scene) for node in ordered))


async def drain_node(call: Call) -> NodeView:
    """Give the node nothing new, and move away what can move."""
    return await _put_state(call, NodeState.READY, NodeState.DRAINING, "drained")


async def undrain_node(call: Call) -> NodeView:
    return await _put_state(call, NodeState.DRAINING, NodeState.READY, "undrained")


async def _put_state(call: Call, before: NodeState, after: NodeState, told: str) -> NodeView:
    def decide(state: State, now: Instant) -> tuple[Commit, NodeId]:
        node = find_node(state, call.path("id"))
        if node.state is NodeState.LOST:
            raise Conflict(
                f"node {node.name} is lost", why="its agent has not been heard of for too long"
            )
        if node.state is not before:
            return Commit(), node.id
        note = Note(now, f"node.{told}", node.id, "an administrator wants it so")
        return Commit([Put(replace(node, state=after))], [note]), node.id

    node_id = await call.pool.change(decide)
    state = await call.pool.store.read()
    return views.node_view(state.nodes[node_id], call.pool.scene(state, call.caller))


async def cordon_device(call: Call) -> DeviceView:
    """Give the device no work until a person takes that back."""
    reason = good_text((await call.body(CordonDevice)).reason, REASON_MAX, "reason")

    def cordons(node: Node, device_id: DeviceId, now: Instant) -> tuple[Cordon, ...]:
        others = (c for c in node.cordons if c.device_id != device_id)
        cordon = Cordon(device_id, reason or "an administrator wants it so", now)
        return tuple(sorted((*others, cordon), key=lambda c: c.device_id))

    return await _put_cordons(call, cordons, "cordoned")


async def uncordon_device(call: Call) -> DeviceView:
    def cordons(node: Node, device_id: DeviceId, now: Instant) -> tuple[Cordon, ...]:
        return tuple(c for c in node.cordons if c.device_id != device_id)

    return await _put_cordons(call, cordons, "uncordoned")


async def _put_cordons(
    call: Call, cordons: Callable[[Node, DeviceId, Instant], tuple[Cordon, ...]], told: str
) -> DeviceView:
    device_id = DeviceId(call.path("id"))

    def decide(state: State, now: Instant) -> tuple[Commit, None]:
        node = _node_of(state, device_id)
        after = replace(node, cordons=cordons(node, device_id, now))
        if after == node:
            return Commit(), None
        note = Note(now, f"device.{told}", node.id, device_id)
        return Commit([Put(after)], [note]), None

    await call.pool.change(decide)
    state = await call.pool.store.read()
    node = _node_of(state, device_id)
    device = next(d for d in node.devices if d.id == device_id)
    return views.device_view(device, node, views.holders(state).get(device_id), True)


def _node_of(state: State, device_id: DeviceId) -> Node:
    for node in state.nodes.values():
        if any(device.id == device_id for device in node.devices):
            return node
    raise NotFound(f'there is no device "{device_id[:80]}"', hint="onefleet device list")


async def list_devices(call: Call) -> Page[DeviceView]:
    state = await call.pool.store.read()
    held = views.holders(state)
    found = []
    for node in sorted(state.nodes.values(), key=lambda node: (node.joined_at, node.id)):
        for device in sorted(node.devices, key=lambda d: (d.kind, d.index, d.id)):
            holder = held.get(device.id)
            named = holder is not None and call.caller.sees(holder.tenant_id)
            found.append(views.device_view(device, node, holder, named))
    return Page(tuple(found))


async def list_replicas(call: Call) -> Page[ReplicaView]:
    state = await call.pool.store.read()
    scene = call.pool.scene(state, call.caller)
    seen = (r for r in state.replicas.values() if call.caller.sees(state.works[r.id].tenant_id))
    ordered = sorted(seen, key=lambda r: (r.created_at, r.id))
    return Page(tuple(views.replica_view(replica, scene) for replica in ordered))
