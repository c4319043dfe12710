"""Hot spares: how many nodes are kept empty for work that loses its place by a failure."""

from __future__ import annotations

from onefleet.control.call import Call, one_of, within
from onefleet.control.pool import Pool
from onefleet.control.spares import Wanted, mark_of, spares_of
from onefleet.core.index.spares import Spares
from onefleet.core.promise import capacity, holds, moments, reserved_load, stock_of, unmet
from onefleet.domain.errors import Infeasible
from onefleet.domain.fleet import DeviceKind, Node
from onefleet.domain.ids import Instant
from onefleet.domain.quantities import counted
from onefleet.store.base import Commit, Note, State
from onefleet.wire.api import Page, SetSpares, SparesView

SPARES_MAX = 10_000


async def set_spares(call: Call) -> SparesView:
    wanted = await call.body(SetSpares)
    kind = one_of(DeviceKind, wanted.device_kind, "device_kind")
    count = within(wanted.nodes, 0, SPARES_MAX, "nodes")

    def decide(state: State, now: Instant) -> tuple[Commit, State]:
        before = state.marks.get(mark_of(kind), 0)
        if before == count:
            return Commit(), state
        marks = {**state.marks, mark_of(kind): count}
        if count > before:
            _must_leave_what_is_reserved(state, spares_of(marks), kind, now)
        told = f"{before} -> {count} nodes with {kind} devices are kept empty"
        note = Note(now, "spares.set", kind, told)
        return Commit(notes=[note], marks={mark_of(kind): count}), state

    state = await call.pool.change(decide)
    return _view(kind, count, state, call.pool)


async def list_spares(call: Call) -> Page[SparesView]:
    state = await call.pool.store.read()
    wanted = spares_of(state.marks)
    return Page(tuple(_view(kind, count, state, call.pool) for kind, count in wanted))


def _view(kind: DeviceKind, count: int, state: State, pool: Pool) -> SparesView:
    nodes = [state.nodes[name] for name in pool.spares if name in state.nodes]
    serving = sum(1 for node in state.nodes.values() if _has(node, kind))
    return SparesView(
        id=kind,
        wanted=count,
        nodes=tuple(node.name for node in nodes if _has(node, kind)),
        note=_note(kind, count, serving),
    )


def _note(kind: DeviceKind, count: int, serving: int) -> str:
    """What keeps the pool from keeping so many, however little is to do; empty: nothing does."""
    if not count or count < serving:
        return ""
    if serving <= 1:
        nodes = f"one node in service with {kind} devices" if serving else f"no {kind} devices"
        return f"the pool has {nodes}, and keeps no spare: the last node has to work"
    return f"{serving} nodes with {kind} devices are in service: {serving - 1} are kept at most"


def _has(node: Node, kind: DeviceKind) -> bool:
    return any(of is kind for of, _ in stock_of(node))


def _must_leave_what_is_reserved(
    state: State, wanted: Wanted, kind: DeviceKind, now: Instant
) -> None:
    """Raise Infeasible when reservations would not fit beside the spares, now or in a window."""
    room = room_beside(state, wanted, kind)
    reserved = [r for r in state.reservations.values() if r.kind is kind]
    for at in moments(reserved, now):
        open_then = [r for r in reserved if holds(r, at)]
        if unmet([reserved_load(r) for r in open_then], room):
            count = sum(r.devices for r in open_then)
            left = sum(room.values()) // 1_000
            nodes = counted(dict(wanted)[kind], "node")
            raise Infeasible(
                f"{nodes} with {kind} devices cannot be kept as spares",
                why=f"that leaves {counted(left, f'{kind} device')}, and {count} are reserved",
                hint="fewer of them, or: onefleet reservation remove ID",
                param="nodes",
            )


def room_beside(state: State, wanted: Wanted, kind: DeviceKind) -> dict[str, int]:
    """Thousandths of devices of each class of a kind, but for those of spares."""
    kept = Spares.of(state.nodes.values(), wanted).stock()
    found: dict[str, int] = {}
    for node in state.nodes.values():
        for product, milli in capacity(stock_of(node), kind).items():
            found[product] = found.get(product, 0) + milli
    return {name: milli - kept.get((kind, name), 0) for name, milli in found.items()}
