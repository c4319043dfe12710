"""Nodes, devices and replicas."""

from __future__ import annotations

from onefleet.control import views
from onefleet.control.call import Call
from onefleet.wire.api import DeviceView, NodeView, Page, ReplicaView


async def list_nodes(call: Call) -> Page[NodeView]:
    state = await call.pool.store.read()
    scene = call.pool.scene(state, call.caller)
    ordered = sorted(state.nodes.values(), key=lambda node: (node.joined_at, node.id))
    return Page(tuple(views.node_view(node, scene) for node in ordered))


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
