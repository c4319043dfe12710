"""The planner: a snapshot in, a complete plan out.

`plan` reads as a recipe of fixed steps; each leaves a step report that says what it did or why it
did nothing. Every decision is applied at once to a scratch copy of the works, so that each step
sees what the earlier ones did, and nothing is remembered between passes: what is kept for whom
follows from the snapshot alone, and so the same plan follows from the same snapshot.

Elastic work gets its width when it is placed: as wide as the free devices allow when nothing else
waits for them. It is neither shrunk nor widened later on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from onefleet.core.blockers import Blockers, Waiting, image_nodes
from onefleet.core.capacity import Capacity
from onefleet.core.feasibility import feasibility, workers_at_most
from onefleet.core.ordering import RANK_NAMES, Queue, held_by_tenant, ranks
from onefleet.core.plan import (
    Blocker,
    Decision,
    DropImage,
    Fence,
    Gate,
    Lose,
    Place,
    Plan,
    StepReport,
    Stop,
    Suspend,
    applied,
    apply_plan,
    describe,
    fenced_nodes,
)
from onefleet.core.plan_check import check_plan
from onefleet.core.policy import Policy
from onefleet.core.preemption import Victims
from onefleet.core.snapshot import Snapshot, usable
from onefleet.domain.fleet import DeviceKind, Node, NodeState
from onefleet.domain.ids import Instant, NodeId, WorkId
from onefleet.domain.work import Demand, Phase, Want, Work, WorkKind

__all__ = [
    "Blocker",
    "Decision",
    "DropImage",
    "Fence",
    "Gate",
    "Lose",
    "Place",
    "Plan",
    "StepReport",
    "Stop",
    "Suspend",
    "apply_plan",
    "check_plan",
    "describe",
    "feasibility",
    "fenced_nodes",
    "plan",
]


def plan(snapshot: Snapshot, policy: Policy, now: Instant, rng: random.Random) -> Plan:
    """Decide one pass. rng: for policies that break ties by chance; this one does by id."""
    this = _Pass(snapshot, policy, now)
    this.fence()
    this.drop_images()
    this.stop()
    this.suspend()
    queues = this.order()
    this.place(queues)
    this.widen()
    blockers = this.explain()
    return Plan(
        snapshot.generation,
        now,
        tuple(this.decisions.values()),
        tuple(this.steps),
        MappingProxyType(blockers),
    )


class _Pass:
    """One pass: the scratch copy, and the steps in the order in which they run."""

    def __init__(self, snapshot: Snapshot, policy: Policy, now: Instant) -> None:
        self.snapshot = snapshot
        self.policy = policy
        self.now = now
        self.works: dict[WorkId, Work] = dict(snapshot.works)
        self.nodes = dict(snapshot.nodes)
        self.decisions: dict[int, Decision] = {}
        self.steps: list[StepReport] = []
        self.absent: dict[WorkId, NodeId] = {}
        self.waiting: dict[WorkId, Waiting] = {}
        self.placed: dict[WorkId, int] = {}  # to the number of the decision
        self.contended: dict[DeviceKind, list[WorkId]] = {}

    # --- step 1 to 4: what must happen whoever waits ------------------------------------------

    def fence(self) -> None:
        """Give up nodes whose lease ran out longer ago than the grace, and what ran there."""
        grace_ms = self.policy.lease_grace_ms
        fenced = 0
        for node in self.snapshot.nodes.values():
            over_ms = self.now - node.lease_expires_at
            if node.state is not NodeState.LOST and over_ms >= grace_ms:
                reason = f"no word from its agent for {over_ms} ms after its lease ran out"
                self._decide(Fence(node.id, reason))
                self.nodes[node.id] = replace(node, state=NodeState.LOST)
                fenced += 1
        lost = 0
        for work in self.snapshot.works.values():
            missing = self._missing_node(work)
            if missing is None:
                continue
            if self._waits_for(work, missing):
                self.absent[work.id] = missing
            else:
                self._decide(Lose(work.id, f"node {missing}, where it ran, is lost"))
                lost += 1
        text = f"{fenced} nodes given up, {lost} works lost with them"
        if self.absent:
            text += f", {len(self.absent)} jobs wait for their node, as no other could run them"
        self._report("fence", text)

    def drop_images(self) -> None:
        """Give up images on nodes that have been away for too long."""
        dropped = 0
        for work in self.works.values():
            if work.phase is not Phase.SUSPENDED or work.want is not Want.RUN:
                continue
            for node_id in dict.fromkeys(image_nodes(work) or ()):
                node = self.nodes.get(node_id)
                if node is not None and node.state is not NodeState.LOST:
                    continue
                away_since = work.phase_since
                if node is not None:
                    away_since = max(away_since, node.lease_expires_at)
                if self.now - away_since >= self.policy.image_wait_ms:
                    reason = f"its image lay on node {node_id}, which did not come back"
                    self._decide(DropImage(work.id, reason))
                    dropped += 1
                    break
        self._report("images", f"{dropped} images given up")

    def stop(self) -> None:
        """Stop what its owner wants stopped."""
        stopped = 0
        for work in tuple(self.works.values()):
            if work.want is Want.STOP and work.phase not in (Phase.STOPPING, Phase.ENDED):
                self._decide(Stop(work.id, "its owner wants it stopped"))
                stopped += 1
        self._report("stop", f"{stopped} works stopped for their owners")

    def suspend(self) -> None:
        """Suspend what its owner wants suspended."""
        suspended, cannot = 0, 0
        for work in tuple(self.works.values()):
            if work.want is not Want.SUSPEND or work.phase is not Phase.RUNNING:
                continue
            if work.suspendable and work.not_before <= self.now:
                self._decide(Suspend(work.id, "its owner wants it suspended"))
                suspended += 1
            else:
                cannot += 1
        text = f"{suspended} works suspended for their owners"
        self._report("suspend", text + (f", {cannot} cannot be saved now" if cannot else ""))

    # --- step 5 to 7: who gets what ------------------------------------------------------------

    def order(self) -> list[Queue]:
        """Order what is ready to be placed, by rank, tenant's share and age."""
        self.after = replace(self.snapshot, nodes=self.nodes, works=self.works)
        self.ranks = ranks(self.after)
        self.held = held_by_tenant(self.works)
        self.capacity = Capacity(self.after, self.now)
        self.claims = claims(self.works)
        self.victims = Victims(self.after, self.ranks, self.policy, self.now)
        lines: list[list[Work]] = [[] for _ in RANK_NAMES]
        for work in self.works.values():
            if self._ready(work):
                lines[self.ranks[work.id]].append(work)
        told = [f"{len(line)} {name}" for line, name in zip(lines, RANK_NAMES, strict=True) if line]
        self._report("order", ", ".join(told) + " in the queue" if told else "the queue is empty")
        return [Queue(line, self.held) for line in lines]

    def place(self, queues: list[Queue]) -> None:
        """Place what fits, make room where a rank permits it, keep devices for who waits long."""
        self.started = self.restored = self.moved = 0
        self.no_fit: dict[tuple[object, ...], bool] = {}
        self.no_room: dict[tuple[object, ...], bool] = {}
        for rank, queue in enumerate(queues):
            heads: dict[DeviceKind, Work] = {}
            for work in queue:
                if self._place_one(work, queue) or self._make_room(work, rank, queue):
                    continue
                head = heads.setdefault(work.demand.kind, work)
                if head is work and self._waited_ms(work) >= self.policy.patience_ms:
                    self._keep_for(work)
            for work in heads.values():  # whatever its own tier may do, lower tiers do not pass it
                if self._waited_ms(work) < self.policy.patience_ms:
                    self._keep_for(work)
        self._report("place", f"{self.started} works started")
        self._report("preempt", f"{self.moved} works moved out of the way of others")
        self._report("resume", f"{self.restored} works restored")

    def widen(self) -> None:
        """Let elastic work that was placed in this pass have what nobody else waits for."""
        widened = 0
        for work_id, number in self.placed.items():
            decision = self.decisions[number]
            demand = self.works[work_id].demand
            assert isinstance(decision, Place)
            if demand.devices_max <= demand.devices_min or self.contended.get(demand.kind):
                continue
            wider = self.capacity.widen(decision.placement, demand)
            if wider != decision.placement:
                self.decisions[number] = replace(decision, placement=wider)
                self.works[work_id] = replace(self.works[work_id], placement=wider)
                widened += 1
        self._report("widen", f"{widened} elastic works got more than their minimum")

    def explain(self) -> dict[WorkId, tuple[Blocker, ...]]:
        """Name everything that holds up each work that does not run."""
        finder = Blockers(self.after, self.capacity, self.policy, self.now)
        blockers = {
            work.id: finder.of(work, self.waiting.get(work.id))
            for work in self.works.values()
            if work.phase not in (Phase.RUNNING, Phase.ENDED)
        }
        for work_id, node_id in self.absent.items():
            text = f"its node {node_id} is lost; it is waited for, as no other node could run it"
            blockers[work_id] = (Blocker(Gate.START, text), *blockers.get(work_id, ()))
        self._report("explain", f"{len(blockers)} works do not run")
        return blockers

    # --- what the steps are made of ------------------------------------------------------------

    def _missing_node(self, work: Work) -> NodeId | None:
        """The first node that it runs on and that is lost."""
        for slot in work.placement:
            node = self.nodes.get(slot.node_id)
            if node is None or node.state is NodeState.LOST:
                return slot.node_id
        return None

    def _waits_for(self, work: Work, node_id: NodeId) -> bool:
        """Whether its lost node is waited for, so that nothing of its run is thrown away.

        A job that no other node could run gains nothing from being given up; its agent saved it
        when its lease ran out, or both sleep together.
        """
        node = self.nodes.get(node_id)
        if node is None or work.kind is WorkKind.REPLICA or work.want is Want.STOP:
            return False
        if self.now - node.lease_expires_at >= self.policy.image_wait_ms:
            return False
        others = [node for node in self.nodes.values() if usable(node, self.now)]
        return feasibility(work.demand, others) is not None

    def _decide(self, decision: Decision) -> None:
        self.decisions[len(self.decisions)] = decision
        if not isinstance(decision, Fence):
            work = self.works[decision.work_id]
            self.works[work.id] = applied(work, decision, self.now)

    def _report(self, step: str, text: str) -> None:
        self.steps.append(StepReport(step, text))

    def _waited_ms(self, work: Work) -> int:
        return self.now - work.phase_since

    def _ready(self, work: Work) -> bool:
        """Whether nothing but devices keeps it from being placed."""
        if work.phase not in (Phase.PENDING, Phase.SUSPENDED) or work.want is not Want.RUN:
            return False
        if not work.ready or work.not_before > self.now:
            return False
        if work.phase is Phase.SUSPENDED and self._waited_ms(work) < self.policy.resume_hold_ms:
            return False
        return all(node_id in self.capacity.rooms for node_id in image_nodes(work) or ())

    def _place_one(self, work: Work, queue: Queue) -> bool:
        """Place it on free devices, if it fits whole."""
        nodes = image_nodes(work)
        key = _shape(work.demand, nodes)
        if key in self.no_fit:  # free devices only get fewer within a pass
            return False
        fitting = None
        if work.kind is WorkKind.REPLICA:  # it stays for long: not where an image needs the room
            fitting = self.capacity.fit(work.demand, nodes, avoid=self._claimed(work.demand))
        fitting = fitting or self.capacity.fit(work.demand, nodes)
        if fitting is None:
            self.no_fit[key] = True
            return False
        slots = self.capacity.take(work.demand, fitting)
        restore = work.phase is Phase.SUSPENDED
        self.placed[work.id] = len(self.decisions)
        self._decide(Place(work.id, slots, restore))
        queue.granted(work, work.demand.workers * work.demand.devices_min)
        if restore:
            self.restored += 1
        else:
            self.started += 1
        return True

    def _make_room(self, work: Work, rank: int, queue: Queue) -> bool:
        """Keep what is leaving for it; if that is too little, make more leave, if that suffices."""
        demand, nodes = work.demand, image_nodes(work)
        line = self.contended.setdefault(demand.kind, [])
        ahead = len(line)
        line.append(work.id)
        self.waiting[work.id] = Waiting(line, ahead, kept=False)
        key = (rank, *_shape(demand, nodes))
        if key in self.no_room:
            return False
        fitting = self.capacity.fit(demand, nodes, soon=True)
        if fitting is None:
            chosen = self.victims.choose(work, rank, nodes, self.capacity)
            if not chosen:
                if nodes is not None and self._waited_ms(work) >= self.policy.patience_ms:
                    self._relocate(work, rank, nodes)
                self.no_room[key] = True
                return False
            for victim in chosen:
                self._move(victim, work)
            fitting = self.capacity.fit(demand, nodes, soon=True)
            assert fitting is not None, "what was chosen did not suffice"
        self.capacity.keep(demand, fitting)
        self.waiting[work.id] = Waiting(line, ahead, kept=True)
        queue.granted(work, demand.workers * demand.devices_min)
        return True

    def _move(self, victim: Work, waiting: Work) -> None:
        reason = f"makes room for {waiting.id} ({waiting.tier})"
        if victim.kind is WorkKind.REPLICA:
            self._decide(Stop(victim.id, reason, waiting.id))
        else:
            self._decide(Suspend(victim.id, reason, waiting.id))
        self.capacity.free_soon(victim)
        self.no_room.clear()  # a victim may free more than is needed
        self.moved += 1

    def _relocate(self, work: Work, rank: int, nodes: tuple[NodeId, ...]) -> None:
        """Ask one replica a pass to move out of the way of an image, if it can run elsewhere."""
        mover = self.victims.relocate(work, rank, nodes, self.capacity)
        if mover is not None:
            self._decide(Stop(mover.id, f"moves out of the way of {work.id}", work.id))
            self.capacity.free_soon(mover)
            self.moved += 1

    def _claimed(self, demand: Demand) -> tuple[NodeId, ...]:
        """Nodes where another lasting work of this demand would leave no room for an image."""
        lasting, found = self._lasting(), []
        for node_id, devices in self.claims.get(demand.kind, {}).items():
            room = self.capacity.rooms.get(node_id)
            if room is None:
                continue
            total = sum(1 for device in room.node.devices if device.kind is demand.kind)
            held = lasting.get((demand.kind, node_id), 0)
            if total - held - demand.devices_min < devices:
                found.append(node_id)
        return tuple(found)

    def _keep_for(self, work: Work) -> None:
        """Keep what is free, and comes free, where the work will fit soonest."""
        target = self._target(work)
        if target:
            self.capacity.keep(work.demand, target)
            self.waiting[work.id] = self.waiting[work.id]._replace(kept=True)

    def _target(self, work: Work) -> tuple[NodeId, ...]:
        """The node of each rank where it will fit when the jobs there have ended.

        Replicas do not end, so that nodes that they fill are no use. The node with most to give is
        chosen: what is kept there cannot become less, so that the choice stays and the wait ends.
        """
        nodes = image_nodes(work)
        if nodes is not None:
            return nodes
        demand, lasting = work.demand, self._lasting()
        offers: list[tuple[int, NodeId, int]] = []
        for node_id, room in self.capacity.rooms.items():
            held = lasting.get((demand.kind, node_id), 0)
            workers = workers_at_most(room.node, demand)
            workers = min(workers, self._count(room.node, demand, held))
            if workers > 0:
                offers.append((-room.count_soon(demand.kind), node_id, workers))
        offers.sort()
        for _, node_id, workers in offers:
            if workers >= demand.workers:
                return (node_id,) * demand.workers
        ranks_: list[NodeId] = []
        for _, node_id, workers in offers:
            ranks_.extend([node_id] * min(workers, demand.workers - len(ranks_)))
        return tuple(ranks_) if len(ranks_) == demand.workers else ()

    @staticmethod
    def _count(node: Node, demand: Demand, lasting: int) -> int:
        devices = sum(1 for device in node.devices if device.kind is demand.kind)
        return max(devices - lasting, 0) // max(demand.devices_min, 1)

    def _lasting(self) -> dict[tuple[DeviceKind, NodeId], int]:
        """Devices held by replicas that stay, by kind and node."""
        lasting: dict[tuple[DeviceKind, NodeId], int] = {}
        for work in self.works.values():
            if work.kind is WorkKind.REPLICA and work.phase in (Phase.STARTING, Phase.RUNNING):
                for slot in work.placement:
                    key = (work.demand.kind, slot.node_id)
                    lasting[key] = lasting.get(key, 0) + len(slot.devices)
        return lasting


def claims(works: Mapping[WorkId, Work]) -> dict[DeviceKind, dict[NodeId, int]]:
    """The most devices that one suspended work's image needs on each node, by kind."""
    found: dict[DeviceKind, dict[NodeId, int]] = {}
    for work in works.values():
        nodes = image_nodes(work) or ()
        most = found.setdefault(work.demand.kind, {})
        for node_id in dict.fromkeys(nodes):
            needed = nodes.count(node_id) * work.demand.devices_min
            most[node_id] = max(most.get(node_id, 0), needed)
    return found


def _shape(demand: Demand, nodes: tuple[NodeId, ...] | None) -> tuple[object, ...]:
    """What decides whether work fits."""
    return (demand, nodes)
