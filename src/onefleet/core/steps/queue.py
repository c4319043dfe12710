"""Who gets what: the queue is worked off, rank by rank.

What fits is placed. For what does not, room is made where its rank permits it, and what is free or
leaving is kept, so that nothing later in the queue takes it; in the next passes it comes first, so
that nothing that goes before it takes what others made room for it with. The first of a rank that
got nothing has devices kept for it (`heads.py`): after its patience at once, before that against
lower ranks only. What can be suspended may use them meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from onefleet.core.blockers import Waiting
from onefleet.core.capacity import Nodes, Shy
from onefleet.core.deadlines import is_urgent
from onefleet.core.guarantees import Guarantees
from onefleet.core.index import Home, Room
from onefleet.core.index.lines import Queue
from onefleet.core.ordering import RANK_NAMES, STARVED, TIERS, URGENT, gives_way_from
from onefleet.core.plan import Freeze, Place, Resize, Stop, Suspend
from onefleet.core.preemption import Rights
from onefleet.core.scratch import Scratch
from onefleet.core.shares import Shares
from onefleet.core.starvation import is_starved
from onefleet.core.steps.defragment import defragment, is_worth_a_search
from onefleet.core.steps.heads import Heads
from onefleet.core.steps.narrow import narrow_for
from onefleet.core.steps.still import freeze_for
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Demand, Phase, Work, WorkKind


class Hopeless:
    """Demands that found nothing. What asks for as much of the same, or for more, finds nothing
    either."""

    def __init__(self) -> None:
        self._least: dict[object, int] = {}

    def add(self, demand: Demand, home: Home | None) -> None:
        """Nothing was found for it. home: where it may go on."""
        key, size = _without_size(demand, home)
        self._least[key] = min(size, self._least.get(key, size))

    def has(self, demand: Demand, home: Home | None) -> bool:
        """Whether it is known that nothing will be found for it."""
        key, size = _without_size(demand, home)
        return size >= self._least.get(key, size + 1)

    def add_elsewhere(self, demand: Demand, home: Home | None) -> None:
        """Nothing was found for it away from home either, if it was looked for."""
        if home is not None and home.kin is not None:
            self.add(demand, Home((), (), home.kin))

    def left(self, demand: Demand, home: Home | None) -> Home | None:
        """Where to look: at home only, if it is known that nothing will be found elsewhere."""
        if home is None or home.kin is None:
            return home
        elsewhere = (None, Home((), (), home.kin))
        hopeless = any(self.has(demand, place) for place in elsewhere)
        return home._replace(kin=None) if hopeless else home

    def clear(self) -> None:
        """There is more now."""
        self._least.clear()


def _without_size(demand: Demand, home: Home | None) -> tuple[object, int]:
    """Single workers that differ in their devices alone are compared by these; gangs are not."""
    if demand.workers > 1:
        return (demand, home), 0
    same = (demand.kind, demand.memory_bytes, demand.milli, demand.speeds, demand.zones, home)
    return same, demand.devices_min


def _gives_back(work: Work) -> bool:
    """Whether it can be had to give devices back at once, without a loss."""
    return work.kind is WorkKind.JOB and work.suspendable


class Placing:
    """Steps order and place. contended, waiting: what explains afterwards why works wait.

    thorough: look at each work in the queue, and not only at those that could get something.
    """

    def __init__(self, this: Scratch, thorough: bool) -> None:
        self.this = this
        self.thorough = thorough
        self.waiting: dict[WorkId, Waiting] = {}
        self.contended: dict[DeviceKind, list[WorkId]] = {}
        self.started = self.restored = self.moved = self.narrowed = self.rescued = 0
        self.guarantees = Guarantees(this.index)
        self.searched = False  # for moves that make one piece of what is free
        self.heads = Heads(this)
        self.no_fit = {lent: Hopeless() for lent in (True, False)}
        #: In this rank: claims, takes turns, gives back.
        self.no_room: dict[tuple[bool, bool, bool], Hopeless] = {}
        self.shares = {tier: Shares(this.index, tier, this.now) for tier in Tier}
        self.queues: list[Queue] = []

    def order(self) -> None:
        """Order what is ready to be placed: by rank, who goes first in it, level, share and age."""
        index = self.this.index
        index.settle()
        sizes = zip(index.roster.lines.sizes, RANK_NAMES, strict=True)
        told = [f"{size} {name}" for size, name in sizes if size]
        text = ", ".join(told) + " in the queue" if told else "the queue is empty"
        self.this.report("order", text)
        self.queues = [
            index.roster.lines.queue(rank, self.shares[tier]) for rank, tier in enumerate(TIERS)
        ]

    def place(self) -> None:
        """Place what fits, make room where a rank permits it, keep devices for who waits long."""
        for rank, queue in enumerate(self.queues):
            self._keep_for_stranded(rank)
            heads: dict[DeviceKind, Work] = {}
            self.no_room = {
                (claims, turns, gives_back): Hopeless()
                for claims, turns, gives_back in product((True, False), repeat=3)
            }
            served = self._serve_nominees(rank)
            for work_id in queue:
                work = self.this.works[work_id]
                if work_id in served or self._place_one(work) or self._make_room(work, rank, queue):
                    continue
                head = heads.setdefault(work.demand.kind, work)
                if head is work and self._is_late(work):
                    self._keep_for(work, rank, self._rights(work, queue))
            for work in heads.values():  # whatever its own tier may do, lower tiers do not pass it
                if not self._is_late(work):
                    self._keep_for(work, rank, None)
            if self.heads.lend():
                self.no_fit[True].clear()
        self.heads.set(opened=False)
        self.this.report("place", f"{self.started} works started")
        told = f"{self.moved} works moved out of the way of others"
        told += f", {self.narrowed} made narrower" if self.narrowed else ""
        self.this.report("preempt", told)
        self.this.report("resume", f"{self.restored} works restored")
        if self.this.index.fleet.spares.wanted:
            told = f"{len(self.this.index.fleet.spares.now)} nodes are kept as spares"
            self.this.report("spares", f"{told}, {self.rescued} works placed on others of them")

    def _serve_nominees(self, rank: int) -> set[WorkId]:
        """Give those of this rank that others made room for what came free, or keep it for them."""
        roster, served = self.this.index.roster, set[WorkId]()
        found = [self.this.works[n] for n in roster.nominees.waiting if roster.ranks[n] == rank]
        for work in sorted(found, key=lambda work: (work.phase_since, work.id)):
            if self._place_one(work) or self._keep_soon(work):
                served.add(work.id)
        return served

    # --- one work ----------------------------------------------------------------------------

    def _place_one(self, work: Work) -> bool:
        """Place it on free devices, if it fits whole."""
        index = self.this.index
        home = index.roster.home_of(work)
        fitting = self._fit(work, home, lent=False)
        if fitting is None and _gives_back(work):
            fitting = self._fit(work, home, lent=True)
        if fitting is None:
            return False
        self.rescued += any(node_id in index.fleet.spares.now for node_id in fitting)
        slots = self.this.capacity.take(work.demand, fitting)
        restore = work.phase is Phase.SUSPENDED
        self.this.placed[work.id] = (len(self.this.decisions), work)
        self.this.decide(Place(work.id, slots, restore))
        self.shares[work.tier].grant(work)
        if restore:
            self.restored += 1
        else:
            self.started += 1
        return True

    def _fit(self, work: Work, home: Home | None, *, lent: bool) -> Nodes | None:
        """Where it fits whole. lent: on what is kept for others, too."""
        shy, spares = self.guarantees.shy(work), self.this.index.fleet.spares.are_for(work)
        no_fit = self.no_fit[lent]  # what is free only gets less, while the same is lent
        if shy is None and not spares and no_fit.has(work.demand, home):
            return None
        self.heads.set(opened=lent)
        fitting = None
        if work.kind is WorkKind.REPLICA:  # it stays for long: not where an image needs the room
            fitting = self.this.capacity.fit(work.demand, home, self._claims(work.demand))
        fitting = fitting or self.this.capacity.fit(work.demand, home, shy, spares=spares)
        if fitting is None and shy is None:
            no_fit.add(work.demand, home)
        return fitting

    def _make_room(self, work: Work, rank: int, queue: Queue) -> bool:
        """Keep what is leaving for it; if that is too little, make more leave, if that suffices."""
        this, demand = self.this, work.demand
        self.heads.set(opened=_gives_back(work))
        if self.guarantees.shy(work) is not None:
            return True  # it takes what is free and may be taken, and nothing is kept for it
        home, spares = this.index.roster.home_of(work), this.index.fleet.spares.are_for(work)
        self._line_up(work, late=queue.late)
        turns = self._is_late(work)
        no_room = self.no_room[queue.claims, turns, _gives_back(work)]
        if no_room.has(demand, home):
            self._pass_over(queue, turns)
            return False
        fitting = this.capacity.fit_soon(demand, home, spares=spares)
        if fitting is None and self._place_on(narrow_for(this, work, rank, home), work):
            return True
        if fitting is None and this.index.roster.debts.is_tried_for(work.id):
            return False
        if fitting is None:
            left = no_room.left(demand, home)
            chosen = this.victims.choose(work, rank, left, self._rights(work, queue))
            if not chosen and not self._defragment(work, rank, home):
                if home is not None and self._is_late(work):
                    self._relocate(work, rank, home.nodes)
                no_room.add(demand, home)
                no_room.add_elsewhere(demand, left)
                self._pass_over(queue, turns)
                return False
            reasons = [self._reason(victim, work, claims=queue.claims) for victim in chosen]
            queue.hope()
            if self._place_on(freeze_for(this, work, home, chosen, reasons), work):
                return True
            if not self._move_all(work, list(zip(chosen, reasons, strict=True))):
                return False
            fitting = this.capacity.fit_soon(demand, home, spares=spares)
            assert fitting is not None, "what was chosen did not suffice"
        self._keep(work, fitting)
        return True

    def _keep_soon(self, work: Work) -> bool:
        """Keep what is free or leaving for it, if that is enough."""
        if self.guarantees.shy(work) is not None:
            return False
        self.heads.set(opened=_gives_back(work))
        home = self.this.index.roster.home_of(work)
        spares = self.this.index.fleet.spares.are_for(work)
        fitting = self.this.capacity.fit_soon(work.demand, home, spares=spares)
        if fitting is None:
            return False
        self._line_up(work, late=False)
        self._keep(work, fitting)
        return True

    def _line_up(self, work: Work, *, late: bool) -> None:
        """It got nothing at once. late: tenants that are under their part go before it."""
        line = self.contended.setdefault(work.demand.kind, [])
        self.waiting[work.id] = Waiting(line, len(line), kept=False, late=late)
        line.append(work.id)

    def _keep(self, work: Work, fitting: Nodes) -> None:
        """Keep what is free or leaving there for it."""
        self.this.capacity.keep(work.demand, fitting)
        self.waiting[work.id] = self.waiting[work.id]._replace(kept=True)
        self.shares[work.tier].grant(work)

    def _defragment(self, work: Work, rank: int, home: Home | None) -> bool:
        """Have jobs moved so that it finds its devices in one piece; one search a pass."""
        if self.searched or not self._is_late(work) or not is_worth_a_search(self.this, work, home):
            return False
        self.searched = True
        count = defragment(self.this, work, rank, home)
        self.moved += count
        if count:
            self._hope()
        return count > 0

    def _place_on(self, freed: Sequence[Resize | Freeze], work: Work) -> bool:
        """Place it on what comes free at once."""
        if not freed:
            return False
        for change in freed:
            self.this.decide(change)
            self.this.victims.excuse(change.work_id)
            if isinstance(change, Resize):
                self.narrowed += 1
            else:
                self.moved += 1
        for hopeless in self.no_fit.values():
            hopeless.clear()
        self._hope()
        self.contended[work.demand.kind].pop()
        del self.waiting[work.id]
        return self._place_one(work)

    def _rights(self, work: Work, queue: Queue) -> Rights:
        """What the work that the queue just gave may take of its own rank."""
        level = self.this.index.roster.level_of(work.id)
        above = gives_way_from(level)
        sheltered = () if level == STARVED else queue.under.sheltered
        return Rights(self._is_late(work), above, queue.claims, sheltered)

    def _is_late(self, work: Work) -> bool:
        """Whether it has waited for its patience, or has none as its deadline is near."""
        late = self.this.waited_ms(work) >= self.this.policy.patience_ms
        return late or self.this.index.roster.level_of(work.id) == URGENT

    def _hope(self) -> None:
        """More may come free than was needed."""
        for hopeless in self.no_room.values():
            hopeless.clear()

    def _pass_over(self, queue: Queue, turns: bool) -> None:
        """Others of its shape find no more, unless they have waited and it has not: then those of
        its own line, which have not waited longer."""
        if not self.thorough:
            if turns:
                queue.pass_over()
            else:
                queue.skip()

    def _reason(self, victim: Work, waiting: Work, *, claims: bool) -> str:
        ranks = self.this.index.roster.ranks
        reason = f"makes room for {waiting.id} ({waiting.tier})"
        if ranks[victim.id] == ranks[waiting.id]:
            whose = "which has had less device time"
            if claims:
                whose = "whose tenant has had less than a third of its part"
            elif is_urgent(waiting, self.this.now, self.this.policy):
                whose = "whose deadline is near"
            elif is_starved(waiting, self.this.now, self.this.policy):
                whose = "which has had next to nothing of its time"
            reason += f", {whose}"
        return reason

    def _move_all(self, waiting: Work, chosen: Sequence[tuple[Work, str]]) -> bool:
        """Move them, each for its reason. Whether all were asked: if some could not be saved when
        they last were, these alone, so that none of the others is suspended in vain."""
        asked = [pair for pair in chosen if pair[0].saves_failed] or chosen
        for victim, reason in asked:
            self._move(victim, waiting, reason)
        return len(asked) == len(chosen)

    def _move(self, victim: Work, waiting: Work, reason: str) -> None:
        if victim.kind is WorkKind.REPLICA:
            self.this.decide(Stop(victim.id, reason, waiting.id))
        else:
            self.this.decide(Suspend(victim.id, reason, waiting.id))
        self._hope()
        self.moved += 1

    def _relocate(self, work: Work, rank: int, nodes: Nodes) -> None:
        """Ask one replica a pass to move out of the way of an image, if it can run elsewhere."""
        mover = self.this.victims.relocate(work, rank, nodes)
        if mover is not None:
            reason = f"moves out of the way of {work.id}"
            self.this.decide(Stop(mover.id, reason, work.id))
            self.moved += 1

    # --- what is kept ------------------------------------------------------------------------

    def _claims(self, demand: Demand) -> Shy:
        """Whether another lasting work of this demand would leave no room there for an image."""
        fleet = self.this.index.fleet

        def claimed(room: Room) -> bool:
            left, most = room.kinds[demand.kind], 0
            for work_id in fleet.images.get(room.node.id, ()):
                work = self.this.works[work_id]
                if work.demand.kind is demand.kind:
                    home = self.this.index.roster.home_of(work)
                    count = 0 if home is None else home.nodes.count(room.node.id)
                    most = max(most, count * work.demand.devices_min)
            return most > len(left.bay.devices) - left.lasting - demand.devices_min and most > 0

        return claimed

    def _keep_for_stranded(self, rank: int) -> None:
        """Keep what is free for works of this rank that lost their place and are tried again soon:
        for a gang, too, what its other workers held."""
        index = self.this.index
        roster = index.roster
        found = [self.this.works[name] for name in roster.stranded if roster.ranks[name] == rank]
        for work in sorted(found, key=lambda work: (work.submitted_at, work.id)):
            self.heads.set(opened=_gives_back(work))
            fitting = self.this.capacity.fit(work.demand, roster.home_of(work), spares=True)
            if fitting is not None:
                self.this.capacity.keep(work.demand, fitting)

    def _keep_for(self, work: Work, rank: int, rights: Rights | None) -> None:
        """Keep what is free, and comes free, where the work will fit soonest."""
        if self.heads.keep(work, rank, rights):
            self.waiting[work.id] = self.waiting[work.id]._replace(kept=True)
