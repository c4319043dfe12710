"""The works' side of the index: who waits where, who ranks how, what whoever holds.

What is known of a work is entered once, and taken out by the entry: nothing is worked out twice,
and nothing is left behind.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onefleet.core.deadlines import is_urgent, urgent_at
from onefleet.core.feasibility import node_memory
from onefleet.core.index.asked import Asked
from onefleet.core.index.coverage import Coverage
from onefleet.core.index.debts import Debts
from onefleet.core.index.errands import Errands
from onefleet.core.index.fleet import Fleet
from onefleet.core.index.homes import Home, awaits_of, home_of, image_nodes, roams_at
from onefleet.core.index.lines import Lines, Place, Shape
from onefleet.core.index.movable import Movable, Scope, Victim
from onefleet.core.index.nominees import Nominees
from onefleet.core.index.room import MEASURES, SOON, Hold, gone
from onefleet.core.index.usage import DeviceUse
from onefleet.core.ledger import Use, bucket_of, use_of
from onefleet.core.ordering import (
    STARVED,
    STRANDED,
    URGENT,
    behind_changes_at,
    gives_way,
    level_of,
    loss_device_ms,
    next_level_at,
    rank_of,
)
from onefleet.core.policy import Policy
from onefleet.core.promise import lineage
from onefleet.core.starvation import is_starved, starvation_changes_at
from onefleet.domain.ids import (
    EPOCH,
    DeploymentId,
    DeviceId,
    Instant,
    NodeId,
    ReservationId,
    TenantId,
    WorkId,
)
from onefleet.domain.serving import Deployment, Replica
from onefleet.domain.tenancy import Reservation, Tenant
from onefleet.domain.work import Phase, Want, Work, WorkKind

#: Phases in which what is held comes free soon.
LEAVING = (Phase.SAVING, Phase.STOPPING)
NEVER = Instant(1 << 62)


@dataclass(slots=True)
class _Entry:
    """Where a work has been entered, so that it can be taken out again."""

    nodes: tuple[NodeId, ...]
    images: tuple[NodeId, ...]
    awaits: tuple[NodeId, ...]  # nodes that it needs, and that are no spares therefore
    line: list[TenantId]  # its tenant and those above
    held_milli: int
    victim: Victim | None  # as which it may be moved out of the way
    place: Place | None
    due: Instant  # when it has to be looked at again, though nothing of it changed
    level: int
    rises_at: Instant  # when it gets to its next level
    use: Use


class Roster:
    """All works.

    ranks: of works that have not ended. usage: what tenants hold, and have had of late. asked:
    what works ask for. to_stop, to_pause: works whose owners want them stopped, or suspended or
    frozen, and that are not yet. stranded: works for which spares are there, and which cannot be
    placed yet. ended: jobs that have, first those that ended first.
    """

    def __init__(
        self,
        policy: Policy,
        fleet: Fleet,
        tenants: Mapping[TenantId, Tenant],
        reservations: Mapping[ReservationId, Reservation],
    ) -> None:
        self.works: dict[WorkId, Work] = {}
        self.lines = Lines()
        self.ranks: dict[WorkId, int] = {}
        self.usage = DeviceUse()
        self.asked = Asked()
        self.to_stop: dict[WorkId, None] = {}
        self.to_pause: dict[WorkId, None] = {}
        self.stranded: dict[WorkId, None] = {}
        self.ended: list[tuple[Instant, WorkId]] = []
        self.now = Instant(0)
        self._policy = policy
        self._fleet = fleet
        self._tenants = tenants
        self._surplus = Surplus(self)
        self.movable = Movable(self.victim_of, lambda node_id: fleet.holds.get(node_id, {}))
        self.errands = Errands(policy, self.works, fleet.nodes)
        self._entries: dict[WorkId, _Entry] = {}
        self.coverage = Coverage(self.works, tenants, reservations)
        self.debts = Debts(self.works, self.ranks, tenants, reservations)
        self.nominees = Nominees(self.works)
        self._timers: list[tuple[Instant, WorkId]] = []
        self._rises: list[tuple[Instant, WorkId]] = []

    @property
    def surplus(self) -> Surplus:
        """What deployments can do without."""
        return self._surplus

    def put(self, work: Work) -> None:
        """A work came, or is now like this."""
        before = self.works.get(work.id)
        if before is not None:
            self._leave(before)
        self.works[work.id] = work
        self.asked.change(None if before is None else before.demand, work.demand)
        self._enter(work)
        for owing in self.debts.of(work.id):
            self.refresh(owing.id)
        if before is None or before.outcome is not work.outcome:
            self._tell_dependents(work.id)

    def remove(self, work_id: WorkId) -> None:
        """There is no record of it any more."""
        work = self.works.pop(work_id)
        self._leave(work)
        self.asked.change(work.demand, None)
        self.ranks.pop(work_id, None)
        self.coverage.forget(work_id)
        self._tell_dependents(work_id)

    def _tell_dependents(self, work_id: WorkId) -> None:
        for dependent in self.errands.dependents(work_id):
            self.refresh(dependent)

    def refresh(self, work_id: WorkId) -> None:
        """Something besides its record changed that matters to it."""
        work = self.works.get(work_id)
        if work is not None:
            self._leave(work)
            self._enter(work)

    def advance(self, now: Instant) -> None:
        """Time has passed."""
        self.now = now
        self.coverage.advance(now)
        self.debts.advance(now)
        while self._timers and self._timers[0][0] <= now:
            at, work_id = heapq.heappop(self._timers)
            entry = self._entries.get(work_id)
            if entry is not None and entry.due == at:
                self.refresh(work_id)
        while self._rises and self._rises[0][0] <= now:
            at, work_id = heapq.heappop(self._rises)
            entry = self._entries.get(work_id)
            if entry is not None and entry.rises_at == at:
                self.refresh(work_id)

    def next_due(self) -> Instant | None:
        """When a work has to be looked at again though nothing happens, at the earliest."""
        while self._timers:
            at, work_id = self._timers[0]
            entry = self._entries.get(work_id)
            if entry is not None and entry.due == at:
                return at
            heapq.heappop(self._timers)
        return None

    def regroup(self) -> None:
        """Tenants are below others than before."""
        self.coverage.regroup()
        for tenant in self._tenants.values():
            self.usage.put_tenant(tenant, lineage(tenant.id, self._tenants))
        for work_id in tuple(self.works):
            self.refresh(work_id)

    def nodes_of(self, work_id: WorkId) -> tuple[NodeId, ...]:
        """The nodes that it is on."""
        return self._entries[work_id].nodes

    def victim_of(self, work_id: WorkId, scope: Scope) -> Victim | None:
        """As which it may be moved out of the way in this scope; None: it may not."""
        entry = self._entries.get(work_id)
        victim = None if entry is None else entry.victim
        if entry is None or victim is None or victim.tier_order > -scope.rank:
            return None
        there = any(node_id in scope.nodes for node_id in entry.nodes)
        if not there or victim.work.demand.kind is not scope.kind:
            return None
        if scope.levels and victim.tier_order == -scope.rank:
            if not gives_way(victim.work, map(self._fleet.nodes.get, entry.nodes)):
                return None
            return victim._replace(level_order=-entry.level)
        return victim

    def level_of(self, work_id: WorkId) -> int:
        """Its level by now (`ordering.py`)."""
        return self._entries[work_id].level

    def rises_at(self, work_id: WorkId) -> Instant:
        """When it gets to its next level if it goes on as it does."""
        return self._entries[work_id].rises_at

    # --- ranks -------------------------------------------------------------------------------

    def settle_ranks(self) -> None:
        """See anew which works reservations cover, where something has changed."""
        for work_id in self.coverage.settle():
            work = self.works.get(work_id)
            if work is not None and self.ranks.get(work_id) not in (None, self._rank(work)):
                self.refresh(work_id)
            for owing in self.debts.of(work_id):
                if self._entries[owing.id].due != self._due(owing):
                    self.refresh(owing.id)

    def _rank(self, work: Work) -> int:
        return rank_of(work, self.coverage.covers(work.id), self.now, self._policy)

    # --- one work ----------------------------------------------------------------------------

    def _enter(self, work: Work) -> None:
        if work.phase is Phase.ENDED:
            self.ranks.pop(work.id, None)
            if work.kind is WorkKind.JOB:
                insort(self.ended, _ended(work))
        else:
            self.ranks[work.id] = self._rank(work)
        self.coverage.enter(work)
        if work.want is Want.STOP and work.phase not in (Phase.STOPPING, Phase.ENDED):
            self.to_stop[work.id] = None
        if work.want in (Want.SUSPEND, Want.FREEZE) and work.phase is Phase.RUNNING:
            self.to_pause[work.id] = None
        self.debts.enter(work)
        nodes, milli = self._hold(work)
        images = image_nodes(work)
        for node_id in images:
            self._fleet.lay(node_id, work.id)
        awaits = awaits_of(work, self._fleet, self._policy) if self._policy.spares else ()
        for node_id in awaits:
            self._fleet.await_there(node_id, work.id)
        line = lineage(work.tenant_id, self._tenants)
        self.usage.hold(milli, bucket_of(work), line)
        self.usage.want(_wants(work), bucket_of(work), work.tenant_id)
        level = _level(work, self.now, self._policy)
        place = self._place(work, level)
        if place is not None:
            self.lines.add(place)
        elif self._fleet.spares.are_for(work) and _waits(work):
            self.stranded[work.id] = None
        self.nominees.enter(work, in_line=place is not None)
        self.errands.enter(work, self.now)
        due = self._due(work)
        if due != NEVER:
            heapq.heappush(self._timers, (due, work.id))
        victim = self._victim(work, nodes) if nodes and self.is_movable(work) else None
        rises_at = next_level_at(work, self.now, self._policy) or NEVER
        if rises_at != NEVER:
            heapq.heappush(self._rises, (rises_at, work.id))
        self.movable.touch(work.id)
        use = use_of(work, self.now)
        self.usage.add(use, bucket_of(work), line)
        entry = _Entry(nodes, images, awaits, line, milli, victim, place, due, level, rises_at, use)
        self._entries[work.id] = entry

    def _leave(self, work: Work) -> None:
        entry = self._entries.pop(work.id)
        self.movable.touch(work.id)
        if work.phase is Phase.ENDED and work.kind is WorkKind.JOB:
            del self.ended[bisect_left(self.ended, _ended(work))]
        self.coverage.leave(work)
        self.to_stop.pop(work.id, None)
        self.to_pause.pop(work.id, None)
        self.debts.leave(work)
        for node_id in entry.nodes:
            self._fleet.let_go(node_id, work.id)
        for node_id in entry.images:
            self._fleet.take_up(node_id, work.id)
        for node_id in entry.awaits:
            self._fleet.await_no_more(node_id, work.id)
        self.stranded.pop(work.id, None)
        self.usage.hold(-entry.held_milli, bucket_of(work), entry.line)
        self.usage.want(-_wants(work), bucket_of(work), work.tenant_id)
        self.usage.take_out(entry.use, bucket_of(work), entry.line)
        if entry.place is not None:
            self.lines.remove(entry.place)
        self.nominees.leave(work)
        self.errands.leave(work)
        if work.kind is WorkKind.REPLICA:
            self._surplus.touch(work.id)

    def _hold(self, work: Work) -> tuple[tuple[NodeId, ...], int]:
        """Enter what it has on nodes; return these, and the thousandths that it holds."""
        if work.kind is WorkKind.REPLICA:
            self._surplus.touch(work.id)
        if not work.placement:
            return (), 0
        on: dict[NodeId, dict[DeviceId, int]] = {}
        memory: dict[NodeId, int] = {}
        each = node_memory(work.demand)
        for slot in work.placement:
            devices = on.setdefault(slot.node_id, {})
            memory[slot.node_id] = memory.get(slot.node_id, 0) + each
            for device_id in slot.devices:
                devices[device_id] = slot.milli
        there = self._there(work)
        stays = work.kind is WorkKind.REPLICA and work.phase in (Phase.STARTING, Phase.RUNNING)
        for node_id, devices in on.items():
            self._fleet.hold(node_id, Hold(work, devices, memory[node_id], there, stays))
        return tuple(on), sum(sum(devices.values()) for devices in on.values())

    def _victim(self, work: Work, nodes: Iterable[NodeId]) -> Victim:
        loss = loss_device_ms(work, map(self._fleet.nodes.get, nodes), self._policy)
        return Victim(-self.ranks[work.id], 0, loss, -work.phase_since, work.id, work)

    def _there(self, work: Work) -> int:
        """In how many measures it is there."""
        if work.phase in LEAVING:
            return SOON
        spared = work.kind is WorkKind.JOB or self._surplus.of_work(work.id) > 0
        return gone(self.ranks[work.id]) if spared and self.is_movable(work) else MEASURES

    def is_movable(self, work: Work) -> bool:
        """Whether it may be asked to make room at all, by its own state."""
        if work.want is not Want.RUN:
            return False
        if work.kind is WorkKind.REPLICA:
            return work.phase in (Phase.STARTING, Phase.RUNNING)
        return work.phase is Phase.RUNNING and work.suspendable and work.not_before <= self.now

    def _place(self, work: Work, level: int) -> Place | None:
        """Its place among those that wait for devices and for nothing else."""
        if self._ready_at(work) > self.now:
            return None
        home = self.home_of(work)
        if home is not None and home.kin is None:
            ways = (home.nodes, *home.copies)
            if not any(all(node in self._fleet.usable for node in nodes) for nodes in ways):
                return None
        spares = self._fleet.spares.are_for(work)
        shape = Shape(work.demand, home, work.kind, work.suspendable, spares)
        turn = (STRANDED if spares else level, work.submitted_at, work.id)
        return Place(self.ranks[work.id], work.tenant_id, shape, turn)

    def _ready_at(self, work: Work) -> Instant:
        """From when on nothing but devices keeps it from being placed, as far as is known."""
        if not _waits(work):
            return NEVER
        if work.phase is Phase.SUSPENDED:
            hold_ms = self._policy.hold_ms(bool(work.move_to))
            return max(work.not_before, Instant(work.phase_since + hold_ms))
        return work.not_before

    def _due(self, work: Work) -> Instant:
        moves_at = work.not_before if work.phase is Phase.RUNNING else NEVER
        counts_at = work.accounted_until if work.phase is Phase.RUNNING else NEVER
        owed_at = behind_changes_at(work, self.now, self._policy) or NEVER
        errand_at = self.errands.due(work) or NEVER
        starves_at = starvation_changes_at(work, self.now, self._policy) or NEVER
        times = [self._ready_at(work), moves_at, counts_at, owed_at, errand_at, starves_at]
        if work.saves_failed:
            times.append(self.debts.back_by(work) or NEVER)
        if work.terms.deadline is not None:
            times += (work.terms.deadline, urgent_at(work, self.now, self._policy) or NEVER)
        if work.phase is Phase.SUSPENDED and work.image is not None:
            times.append(roams_at(work, self._fleet, self._policy) or NEVER)
        return min((at for at in times if at > self.now), default=NEVER)

    def home_of(self, work: Work) -> Home | None:
        """Where suspended work may go on by now (`homes.py`); None: it may start anywhere."""
        entry = self._entries.get(work.id)
        if entry is not None and entry.place is not None and self.works[work.id] is work:
            return entry.place.shape.home
        # What spares are there for does not wait until its home may be given up.
        now = NEVER if self._fleet.spares.are_for(work) else self.now
        return home_of(work, self._fleet, now, self._policy)


class Surplus:
    """How many of each deployment's running replicas are above its minimum."""

    def __init__(self, roster: Roster) -> None:
        self.deployments: dict[DeploymentId, Deployment] = {}
        self.replicas: dict[WorkId, Replica] = {}
        self._roster = roster
        self._members: dict[DeploymentId, dict[WorkId, None]] = {}
        self._known: dict[DeploymentId, int] = {}  # what the works' entries were made with
        self._stale: dict[DeploymentId, None] = {}

    def put_deployment(self, deployment: Deployment) -> None:
        """A deployment came, or is now like this."""
        self.deployments[deployment.id] = deployment
        self._stale[deployment.id] = None

    def remove_deployment(self, deployment_id: DeploymentId) -> None:
        """There is no such deployment any more."""
        del self.deployments[deployment_id]
        self._stale[deployment_id] = None

    def put_replica(self, replica: Replica) -> None:
        """A replica came, or is now like this."""
        if replica.id in self.replicas:
            self.remove_replica(replica.id)
        self.replicas[replica.id] = replica
        self._members.setdefault(replica.deployment_id, {})[replica.id] = None
        self._stale[replica.deployment_id] = None
        self._roster.refresh(replica.id)

    def remove_replica(self, work_id: WorkId) -> None:
        """There is no such replica any more."""
        deployment_id = self.replicas.pop(work_id).deployment_id
        del self._members[deployment_id][work_id]
        self._stale[deployment_id] = None
        self._roster.refresh(work_id)

    def touch(self, work_id: WorkId) -> None:
        """The work of a replica has changed."""
        replica = self.replicas.get(work_id)
        if replica is not None:
            self._stale[replica.deployment_id] = None

    def of(self, deployment_id: DeploymentId) -> int:
        """How many of its running replicas it can do without; 0 of an unknown one."""
        deployment = self.deployments.get(deployment_id)
        if deployment is None:
            return 0
        works = (self._roster.works.get(m) for m in self._members.get(deployment_id, ()))
        return -deployment.replicas_min + sum(
            1
            for work in works
            if work is not None
            and work.want is Want.RUN
            and work.phase in (Phase.STARTING, Phase.RUNNING)
        )

    def of_work(self, work_id: WorkId) -> int:
        """What was known of its deployment when things were last settled."""
        replica = self.replicas.get(work_id)
        return 0 if replica is None else self._known.get(replica.deployment_id, 0)

    def settle(self) -> None:
        """Count anew where something changed, and look again at the works that it matters to."""
        while self._stale:
            deployment_id, _ = self._stale.popitem()
            before, after = self._known.pop(deployment_id, 0), self.of(deployment_id)
            if deployment_id in self.deployments:
                self._known[deployment_id] = after
            if (before > 0) != (after > 0):
                for work_id in self._members.get(deployment_id, ()):
                    self._roster.refresh(work_id)
                self._stale.pop(deployment_id, None)  # its count has not changed by that


def _level(work: Work, now: Instant, policy: Policy) -> int:
    if is_urgent(work, now, policy):
        return URGENT
    return STARVED if is_starved(work, now, policy) else level_of(work, now, policy)


def _waits(work: Work) -> bool:
    waits = work.phase in (Phase.PENDING, Phase.SUSPENDED)
    return waits and work.want is Want.RUN and work.ready


def _wants(work: Work) -> bool:
    return work.want is Want.RUN and work.phase is not Phase.ENDED


def _ended(work: Work) -> tuple[Instant, WorkId]:
    return (work.ended_at or EPOCH, work.id)
