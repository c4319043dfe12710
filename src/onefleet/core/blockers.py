"""Every reason that a work does not run, gate by gate, from the state after a pass.

The gates are looked at independently of each other: that one holds a work up hides none of the
others. Texts are for people; the holders are ids for programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from onefleet.core.capacity import Capacity
from onefleet.core.feasibility import in_zones, node_memory, of_classes
from onefleet.core.guarantees import Guarantees
from onefleet.core.index import LEAVING, NOW, Home, Index, Room, missing_image
from onefleet.core.index.homes import roams_at
from onefleet.core.index.spares import infeasible, told
from onefleet.core.lifecycle import ATTEMPTS_MAX, progress_ms
from onefleet.core.ordering import is_saved_from_outside
from onefleet.core.plan import Blocker, Gate
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import Device, DeviceKind, Node, NodeState
from onefleet.domain.ids import Instant, NodeId, WorkId
from onefleet.domain.quantities import duration
from onefleet.domain.work import WHOLE, Demand, Phase, Slot, Want, Work, WorkKind

#: Holders that a text names; `Blocker.holders` has them all.
HOLDERS_TOLD = 6


class Waiting(NamedTuple):
    """What the pass found out about a work in the queue that got nothing."""

    line: Sequence[WorkId]  # works in the queue that want the same kind of device, and got none
    ahead: int  # how many of the line are before it
    kept: bool  # what is free, and what comes free, is kept for it
    late: bool  # tenants that are under their part go before it


class _Wanted(NamedTuple):
    """Which devices a work could use. products, zones: empty: any; places: nodes, empty: any.
    memory: their nodes' memory is short, too."""

    kind: DeviceKind
    products: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    places: tuple[NodeId, ...] = ()
    memory: bool = False

    @classmethod
    def of(cls, demand: Demand, places: tuple[NodeId, ...]) -> _Wanted:
        products = tuple(speed.product for speed in demand.speeds)
        return cls(demand.kind, products, demand.zones, places)

    def includes(self, node: Node) -> bool:
        """Whether devices of this node count."""
        near = not self.zones or node.zone in self.zones
        return near and (not self.places or node.id in self.places)

    def free(self, room: Room) -> int:
        """How many of them are free there, whole."""
        left = room.kinds.get(self.kind)
        if left is None:
            return 0
        if not self.products:
            return left.counts[NOW]
        pairs = zip(left.bay.devices, left.now, strict=True)
        return sum(1 for device, milli in pairs if milli >= WHOLE and self._accepts(device))

    def is_held_by(self, work: Work, nodes: Mapping[NodeId, Node]) -> bool:
        """Whether the work holds one of them, or, where memory counts, stands still beside them."""
        if work.demand.kind is not self.kind:
            return False
        return any(self._is_in(slot, nodes.get(slot.node_id)) for slot in work.placement)

    def _is_in(self, slot: Slot, node: Node | None) -> bool:
        if node is None or not self.includes(node):
            return False
        if not slot.devices:
            return self.memory and any(map(self._accepts, node.devices))
        held = (device for device in node.devices if device.id in slot.devices)
        return any(map(self._accepts, held))

    def _accepts(self, device: Device) -> bool:
        return not self.products or device.product in self.products


class Blockers:
    """Finds the blockers of works. after: the snapshot as it is once the plan is applied;
    capacity: as the pass left it; waiting: what the pass found out."""

    def __init__(
        self,
        after: Snapshot,
        capacity: Capacity,
        waiting: Mapping[WorkId, Waiting],
        policy: Policy,
        now: Instant,
    ) -> None:
        self.after = after
        self._capacity = capacity
        self._waiting = waiting
        self._policy = policy
        self._now = now
        self._holders: dict[_Wanted, tuple[Work, ...]] = {}
        self._impossible: dict[object, str | None] = {}
        self._frees: dict[_Wanted, tuple[int, int, int]] = {}
        capacity.index.settle_rooms()
        self._left = {kind: capacity.index.fleet.shelves.free.get(kind, 0) for kind in DeviceKind}
        self._unkept = Index.of(after, policy, now)
        self._unkept.settle()

    def of(self, work: Work) -> tuple[Blocker, ...]:
        """All blockers of a work that neither runs nor has ended; never empty."""
        if work.phase not in (Phase.PENDING, Phase.SUSPENDED):
            return (self._in_between(work),)
        found = [
            *self._admission(work),
            *self._start(work),
            *self._feasibility(work),
            *self._data(work),
            *self._guarantees(work),
            *self._contention(work, self._waiting.get(work.id)),
        ]
        return tuple(found) or (Blocker(Gate.START, "the next pass will place it"),)

    def _in_between(self, work: Work) -> Blocker:
        since = f"since {_seconds(self._now - work.phase_since)}"
        where = ", ".join(dict.fromkeys(slot.node_id for slot in work.placement))
        because = f": {work.reason}" if work.reason else ""
        doing = {
            Phase.STARTING: "is being started",
            Phase.RESTORING: "is being restored from its image",
            Phase.SAVING: "is being saved",
            Phase.FROZEN: "stands still",
            Phase.STOPPING: "is being stopped",
        }[work.phase]
        return Blocker(Gate.START, f"{doing} on {where} {since}{because}")

    def _admission(self, work: Work) -> Iterator[Blocker]:
        if work.want is Want.SUSPEND:
            yield Blocker(Gate.ADMISSION, "its owner suspended it")
        held_ms = self._now - work.phase_since
        hold_ms = self._policy.hold_ms(bool(work.move_to))
        if work.phase is Phase.SUSPENDED and held_ms < hold_ms:
            hold = _seconds(hold_ms)
            because = f" ({work.reason})" if work.reason else ""
            text = f"was suspended {_seconds(held_ms)} ago{because} and stays so for {hold}"
            yield Blocker(Gate.ADMISSION, text)

    def _start(self, work: Work) -> Iterator[Blocker]:
        if not work.ready:
            before = (self.after.works.get(name) for name in work.terms.after)
            left = tuple(b.id for b in before if b is not None and b.phase is not Phase.ENDED)
            yield Blocker(Gate.START, f"comes after {', '.join(left or work.terms.after)}", left)
        if work.not_before > self._now:
            pause = _seconds(work.not_before - self._now)
            failed = f"failed {work.failures} times in a row" if work.failures > 1 else "failed"
            yield Blocker(Gate.START, f"{failed} ({work.reason}); tried again in {pause}")

    def _feasibility(self, work: Work) -> Iterator[Blocker]:
        if work.demand not in self._impossible:
            nodes = self.after.nodes.values()
            spares = self._policy.spares
            self._impossible[work.demand] = infeasible(work.demand, nodes, spares)
        impossible = self._impossible[work.demand]
        if impossible is not None:
            yield Blocker(Gate.FEASIBILITY, f"cannot run on this fleet: {impossible}")

    def _data(self, work: Work) -> Iterator[Blocker]:
        home = self._home(work)
        for node_id in () if home is None or home.kin is not None else dict.fromkeys(home.nodes):
            node = self.after.nodes.get(node_id)
            if node is None:
                yield Blocker(Gate.DATA, f"its image lies on node {node_id}, which is gone")
            elif node.state is not NodeState.READY:
                text = f"its image lies on node {node_id}, which is {node.state}"
                yield Blocker(Gate.DATA, text)
            elif node_id not in self._capacity.rooms:
                text = f"its image lies on node {node_id}, whose lease ran out"
                yield Blocker(Gate.DATA, text)
        yield from self._waited_for(work)

    def _waited_for(self, work: Work) -> Iterator[Blocker]:
        """Until when the only nodes that have its image are waited for, and what happens then."""
        missing = missing_image(work, self._unkept.fleet, self._policy)
        if missing is None or work.want is not Want.RUN:
            return
        nodes, left = " and ".join(missing.nodes), duration(max(missing.until - self._now, 0))
        verb = "does" if len(missing.nodes) == 1 else "do"
        before = work.image_before
        lost = duration(max(progress_ms(work) - (before.ran_ms if before is not None else 0), 0))
        then = "it goes back to the image before" if before is not None else "it begins afresh"
        if before is None and work.attempts >= ATTEMPTS_MAX:
            then = f"it has failed after {work.attempts} starts"
        text = f"{nodes} {verb} not come back within {left}, {then}, and {lost} of its run are lost"
        yield Blocker(Gate.DATA, f"if {text}")

    def _guarantees(self, work: Work) -> Iterator[Blocker]:
        if not Guarantees(self._unkept).products(work):
            return
        later = ", or before it ends"
        if work.terms.estimate_ms is None:
            later = ", or later: nobody knows when it ends (onefleet run --estimate says so)"
        text = f"cannot be suspended, and so gets no device that is reserved for others now{later}"
        yield Blocker(Gate.QUOTA, text)

    def _contention(self, work: Work, waiting: Waiting | None) -> Iterator[Blocker]:
        home, demand = self._home(work), work.demand
        spares = self._unkept.fleet.spares.are_for(work)
        if waiting is None and self._capacity.fit(demand, home, spares=spares) is not None:
            return
        places: tuple[NodeId, ...] = ()
        if home is not None and home.kin is None:
            places = tuple(node for nodes in (home.nodes, *home.copies) for node in nodes)
            places = tuple(dict.fromkeys(places))
        needs = f"needs {_devices(demand.least, demand.kind)}"
        needs += of_classes(demand) + in_zones(demand)
        if demand.workers > 1:
            turns = f", {demand.pack} at most taking turns" if demand.pack > 1 else ""
            needs += f" ({demand.workers} workers of {demand.devices_min}, all at once{turns})"
        if places:
            needs += f" on {', '.join(places)}, where its image lies{self._elsewhere(work)}"
        elif home is not None:
            needs += ", here or on any node that can fetch its image and bring it back"
        holders = self._holders_of(demand, places)
        text = f"{needs}, {self._free_text(demand, places)}"
        if holders:
            text += f"; held by {self._told(holders)}"
        yield Blocker(Gate.CONTENTION, text, tuple(holder.id for holder in holders))
        yield from self._spares(work)
        if waiting is not None:
            yield from self._queue(waiting, demand, holders)

    def _spares(self, work: Work) -> Iterator[Blocker]:
        """That nodes are empty, and not for it."""
        fleet, kind = self._unkept.fleet, work.demand.kind
        if fleet.spares.are_for(work):
            return
        nodes = (fleet.nodes[name] for name in fleet.spares.now)
        having = [node for node in nodes if any(d.kind is kind for d in node.devices)]
        if having:
            text = f"{told(having)} for work that loses its place by a failure"
            yield Blocker(Gate.QUOTA, text)

    def _home(self, work: Work) -> Home | None:
        return self._unkept.roster.home_of(work)

    def _elsewhere(self, work: Work) -> str:
        """From when on it may go on elsewhere, if it may."""
        bound = work.move_to and not work.driven
        at = None if bound else roams_at(work, self._unkept.fleet, self._policy)
        if at is None or at <= self._now:
            return ""
        return f" (elsewhere in {_seconds(at - self._now)}: to move it takes as long)"

    def _queue(
        self, waiting: Waiting, demand: Demand, holders: Sequence[Work]
    ) -> Iterator[Blocker]:
        leaving = tuple(holder.id for holder in holders if holder.phase in LEAVING)
        if waiting.kept and leaving:
            yield Blocker(Gate.CONTENTION, f"waits until {', '.join(leaving)} made room", leaving)
        if not waiting.kept and self._free(_Wanted(demand.kind))[0] > self._left[demand.kind]:
            yield Blocker(Gate.CONTENTION, "free devices are kept for work before it in the queue")
        if waiting.late:
            text = "tenants that have had less than a third of their part of late go first"
            yield Blocker(Gate.CONTENTION, text)
        if waiting.ahead:
            before = tuple(waiting.line[: waiting.ahead])
            names = ", ".join(before[:HOLDERS_TOLD])
            if len(before) > HOLDERS_TOLD:
                names += f" and {len(before) - HOLDERS_TOLD} more"
            verb = "is" if len(before) == 1 else "are"
            yield Blocker(Gate.CONTENTION, f"{names} {verb} before it in the queue", before)

    def _free_text(self, demand: Demand, places: tuple[NodeId, ...]) -> str:
        """How much is free, in devices and, where that is the trouble, in memory or on a node."""
        total, most, most_memory = self._free(_Wanted.of(demand, places))
        text = f"{total} free"
        if total >= demand.least and most < demand.devices_min:
            text += f", but at most {most} on one node"
        needed = node_memory(demand)
        if needed > most_memory:
            text += f", and {needed} bytes of memory for each worker, "
            text += f"at most {most_memory} free on a node"
        return text

    def _free(self, wanted: _Wanted) -> tuple[int, int, int]:
        """Devices free, the most of them on one node, and the most memory free on one node."""
        if wanted not in self._frees:
            rooms, spares = self._unkept.fleet.rooms, self._unkept.fleet.spares.now
            names = [n for n in wanted.places or rooms if n in rooms and n not in spares]
            chosen = [rooms[n] for n in names if wanted.includes(rooms[n].node)]
            counts = [wanted.free(room) for room in chosen]
            memory = max((room.memory[NOW] for room in chosen), default=0)
            self._frees[wanted] = (sum(counts), max(counts, default=0), memory)
        return self._frees[wanted]

    def _holders_of(self, demand: Demand, places: tuple[NodeId, ...]) -> tuple[Work, ...]:
        wanted = _Wanted.of(demand, places)
        wanted = wanted._replace(memory=node_memory(demand) > self._free(wanted)[2])
        if wanted not in self._holders:
            nodes = self.after.nodes
            found = (w for w in self.after.works.values() if wanted.is_held_by(w, nodes))
            # Who gives way last is named first.
            self._holders[wanted] = tuple(sorted(found, key=lambda w: (w.tier.rank, w.id)))
        return self._holders[wanted]

    def _told(self, holders: Sequence[Work]) -> str:
        told = ", ".join(self._label(holder) for holder in holders[:HOLDERS_TOLD])
        more = len(holders) - HOLDERS_TOLD
        return f"{told} and {more} more" if more > 0 else told

    def _label(self, work: Work) -> str:
        what = f"{work.tier} {work.kind}, tenant {work.tenant_id}"
        nodes = (self.after.nodes.get(slot.node_id) for slot in work.placement)
        if work.kind is WorkKind.JOB and not work.suspendable:
            what += ", cannot be saved"
        elif work.kind is WorkKind.JOB and not is_saved_from_outside(nodes):
            what += ", saves itself: gives way to higher tiers only"
        if work.phase is not Phase.RUNNING:
            what += f", {work.phase}"
        elif work.saves_failed:
            what += f", could not be saved; {self._what_then(work)}"
        return f"{work.id} ({what})"

    def _what_then(self, work: Work) -> str:
        """What becomes of work that could not be saved."""
        due = self._unkept.roster.debts.called_in_at(work)
        if due is None:
            return "tried again later"
        return f"tried again, and ended without in {_seconds(max(due - self._now, 0))}"


def _devices(count: int, kind: DeviceKind) -> str:
    return f"{count} {kind} device" if count == 1 else f"{count} {kind} devices"


def _seconds(duration_ms: int) -> str:
    return f"{duration_ms / 1000:.1f} s"
