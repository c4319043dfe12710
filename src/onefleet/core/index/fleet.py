"""The fleet's side of the index: nodes, who is on them, what they have left."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

from onefleet.core.index.room import Bay, Hold, Kept, Room, Shelved, bays_of, survey
from onefleet.core.index.shelves import Shelf, Shelves
from onefleet.core.index.spares import Spares
from onefleet.domain.fleet import DeviceKind, Node, NodeState
from onefleet.domain.ids import Instant, NodeId, WorkId
from onefleet.domain.work import Demand

_NOT = object()


class Fleet:
    """Nodes and what is on them. `settle` before anything is looked up in rooms and shelves.

    products: of all devices of a kind of each node, if they are alike. rooms: of usable nodes only.
    spares: those of them that are kept empty, which stand on shelves of their own (aside). awaited:
    nodes that works are on their way to, or have to go back to. open: nodes that others can fetch
    images from. turned: nodes that became usable or unusable, or began or ceased to be open. late:
    nodes that are not given up and whose lease ran out. absent: nodes that are lost or unknown, and
    on which works or images lie.
    """

    def __init__(self, spares: Iterable[tuple[DeviceKind, int]] = ()) -> None:
        self.nodes: dict[NodeId, Node] = {}
        self.products: dict[NodeId, dict[DeviceKind, str]] = {}
        self.rooms: dict[NodeId, Room] = {}
        self.shelves = Shelves()
        self.aside = Shelves()
        self.spares = Spares(spares)
        self.awaited: dict[NodeId, dict[WorkId, None]] = {}
        self.holds: dict[NodeId, dict[WorkId, Hold]] = {}
        self.images: dict[NodeId, dict[WorkId, None]] = {}
        self.kept: dict[NodeId, list[Kept]] = {}
        self.usable: dict[NodeId, None] = {}
        self.open: dict[NodeId, None] = {}
        self.turned: dict[NodeId, None] = {}
        self.late: dict[NodeId, None] = {}
        self.absent: dict[NodeId, None] = {}
        self.now = Instant(0)
        self._leases: Mapping[NodeId, Instant] = {}
        self._bays: dict[NodeId, tuple[Bay, ...]] = {}
        self._shelved: dict[NodeId, tuple[Shelves, tuple[Shelved, ...]]] = {}
        self._dirty: dict[NodeId, None] = {}
        self._due: list[tuple[Instant, NodeId]] = []

    # --- what changes ------------------------------------------------------------------------

    def put(self, node: Node) -> None:
        """A node came, or is now like this."""
        self.nodes[node.id] = node
        self.products[node.id] = _products(node)
        self._bays[node.id] = bays_of(node)
        self.spares.put(node)
        self._look_at(node.id)

    def remove(self, node_id: NodeId) -> None:
        """There is no record of it any more."""
        del self.nodes[node_id], self.products[node_id], self._bays[node_id]
        self.spares.remove(node_id)
        self._look_at(node_id)

    def advance(self, now: Instant, leases: Mapping[NodeId, Instant]) -> None:
        """Time has passed; these leases are in force, in place of what the records say."""
        self.now, self._leases = now, leases
        while self._due and self._due[0][0] <= now:
            self._look_at(heapq.heappop(self._due)[1])
        for node_id in tuple(self.late):
            self._look_at(node_id)

    def hold(self, node_id: NodeId, hold: Hold) -> None:
        """A work has something on the node."""
        self.holds.setdefault(node_id, {})[hold.work.id] = hold
        if (room := self._room(node_id)) is not None:
            room.hold(hold)
        self._dirty[node_id] = None
        self._check_absent(node_id)

    def let_go(self, node_id: NodeId, work_id: WorkId) -> None:
        """The work has nothing there any more."""
        on_node = self.holds[node_id]
        hold = on_node.pop(work_id)
        if (room := self._room(node_id)) is not None:
            room.hold(hold, -1)
        if not on_node:
            del self.holds[node_id]
        self._dirty[node_id] = None
        self._check_absent(node_id)

    def lay(self, node_id: NodeId, work_id: WorkId) -> None:
        """A suspended work's image lies there."""
        self.images.setdefault(node_id, {})[work_id] = None
        self._check_absent(node_id)

    def take_up(self, node_id: NodeId, work_id: WorkId) -> None:
        """No image of it lies there any more that it waits with."""
        there = self.images[node_id]
        del there[work_id]
        if not there:
            del self.images[node_id]
        self._check_absent(node_id)

    def await_there(self, node_id: NodeId, work_id: WorkId) -> None:
        """The work is on its way there, or can go on nowhere else: it is no spare."""
        self.awaited.setdefault(node_id, {})[work_id] = None
        self._dirty[node_id] = None

    def await_no_more(self, node_id: NodeId, work_id: WorkId) -> None:
        """The work is there, or goes elsewhere."""
        there = self.awaited[node_id]
        del there[work_id]
        if not there:
            del self.awaited[node_id]
        self._dirty[node_id] = None

    def keep(self, node_id: NodeId, kept: Kept, sign: int = 1) -> None:
        """Keep something for a work that waits, or do so no more (sign -1)."""
        there = self.kept.setdefault(node_id, [])
        if sign > 0:
            there.append(kept)
        else:
            there.remove(kept)
        if (room := self._room(node_id)) is not None:
            room.keep(kept, sign)
        self._dirty[node_id] = None

    # --- what is looked up -------------------------------------------------------------------

    def suiting(self, demand: Demand, spares: bool) -> Sequence[Sequence[Shelf]]:
        """The shelves with nodes that may have something for the demand; those of spares last."""
        ordinary = self.shelves.suiting(demand)
        return (ordinary, self.aside.suiting(demand)) if spares else (ordinary,)

    def lease_of(self, node: Node) -> Instant:
        """When its lease runs out."""
        return self._leases.get(node.id, node.lease_expires_at)

    def is_absent(self, node_id: NodeId) -> bool:
        """Whether it is lost, or nobody knows it."""
        node = self.nodes.get(node_id)
        return node is None or node.state is NodeState.LOST

    def works_on(self, node_id: NodeId) -> Iterable[Hold]:
        """What is on the node."""
        return self.holds.get(node_id, {}).values()

    def settle(self) -> None:
        """See to it that rooms and shelves are those of the nodes as they are."""
        if not self._dirty:
            return
        if self.spares.wanted:
            for node_id in self._dirty:
                self.spares.see(node_id, self._is_idle(node_id))
            self._dirty.update(dict.fromkeys(self.spares.settle()))
        for node_id in self._dirty:
            shelved: tuple[Shelved, ...] = ()
            if node_id not in self.usable:
                self.rooms.pop(node_id, None)
            else:
                room = self._room(node_id)
                if room is None:
                    room = self.rooms[node_id] = survey(
                        self.nodes[node_id],
                        self._bays[node_id],
                        self.works_on(node_id),
                        self.kept.get(node_id, ()),
                    )
                shelved = room.shelved()
            shelves = self.aside if node_id in self.spares.now else self.shelves
            stood_on, before = self._shelved.pop(node_id, (shelves, ()))
            if stood_on is not shelves:
                stood_on.change(node_id, before, ())
                before = ()
            shelves.change(node_id, before, shelved)
            if shelved:
                self._shelved[node_id] = (shelves, shelved)
        self._dirty.clear()

    # --- how ---------------------------------------------------------------------------------

    def _is_idle(self, node_id: NodeId) -> bool:
        there = node_id in self.holds or node_id in self.awaited
        return node_id in self.usable and not there

    def _room(self, node_id: NodeId) -> Room | None:
        """The node's room, unless it has to be surveyed anew."""
        room = self.rooms.get(node_id)
        return None if room is None or room.node is not self.nodes.get(node_id) else room

    def _look_at(self, node_id: NodeId) -> None:
        """See whether it is usable, and from when on it will not be."""
        self._dirty[node_id] = None
        self._check_absent(node_id)
        node = self.nodes.get(node_id)
        self.late.pop(node_id, None)
        before = [states.pop(node_id, _NOT) is not _NOT for states in (self.usable, self.open)]
        if node is not None and node.state is not NodeState.LOST:
            lease = self.lease_of(node)
            if lease <= self.now:
                self.late[node_id] = None
            else:
                heapq.heappush(self._due, (lease, node_id))
                if node.state is NodeState.READY:
                    self.usable[node_id] = None
                if node.address:
                    self.open[node_id] = None
        if before != [node_id in states for states in (self.usable, self.open)]:
            self.turned[node_id] = None

    def _check_absent(self, node_id: NodeId) -> None:
        there = node_id in self.holds or node_id in self.images
        if there and self.is_absent(node_id):
            self.absent[node_id] = None
        else:
            self.absent.pop(node_id, None)


def _products(node: Node) -> dict[DeviceKind, str]:
    found: dict[DeviceKind, dict[str, None]] = {}
    for device in node.devices:
        found.setdefault(device.kind, {})[device.product] = None
    return {kind: next(iter(names)) for kind, names in found.items() if len(names) == 1}
