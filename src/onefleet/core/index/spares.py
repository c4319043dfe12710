"""Hot spares: nodes that are kept empty for work that loses its place by a failure.

Of each kind of device the policy says how many. Which nodes they are follows from the fleet as it
is: of those that are in order and on which nothing is, and which nothing is on its way to, the
first of the most common sort, so that one can take the place of whichever node fails. A spare that
is used is empty no more, and the next node that is takes its place; nothing is remembered.

The last node in service of a kind is no spare: there would be nothing to spare it for.

A node with several kinds of device counts for each of them, and is kept empty as a whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from onefleet.core.feasibility import feasibility
from onefleet.core.promise import stock_of
from onefleet.domain.fleet import DeviceKind, Node, NodeState
from onefleet.domain.ids import NodeId
from onefleet.domain.work import WHOLE, Demand, Work

#: What a node has: thousandths of devices by kind and class. Nodes that have the same are of one
#: sort.
Sort = tuple[tuple[tuple[DeviceKind, str], int], ...]
Stock = dict[tuple[DeviceKind, str], int]
#: Spares that a text names.
NAMES_TOLD = 4


class Spares:
    """now: the nodes that are spares, by id, as of the last `settle`."""

    def __init__(self, wanted: Iterable[tuple[DeviceKind, int]]) -> None:
        #: What is rarer than CPU cores first: who has it has these as well.
        order = sorted(wanted, key=lambda entry: (entry[0] is DeviceKind.CPU, entry[0]))
        self.wanted = {kind: count for kind, count in order if count > 0}
        self.now: dict[NodeId, None] = {}
        self._nodes: dict[NodeId, Node] = {}
        self._sorts: dict[NodeId, Sort] = {}
        self._known: dict[Sort, int] = {}  # nodes of a sort, whatever their state
        self._serving: dict[DeviceKind, int] = {}  # nodes in service that have the kind
        self._sound: dict[Sort, list[NodeId]] = {}  # those in order
        self._idle: dict[Sort, list[NodeId]] = {}  # of these, the empty ones
        self._stale = False
        self._kept: list[Node] | None = None

    @classmethod
    def of(cls, nodes: Iterable[Node], wanted: Iterable[tuple[DeviceKind, int]]) -> Spares:
        """Those of a fleet that nobody keeps an index of. `now` stays empty."""
        found = cls(wanted)
        for node in nodes:
            found.put(node)
        return found

    # --- what changes ------------------------------------------------------------------------

    def put(self, node: Node) -> None:
        """A node came, or is now like this."""
        if self.wanted:
            self.remove(node.id)
            self._nodes[node.id], self._sorts[node.id] = node, _sort_of(node)
            self._count(node, 1)

    def remove(self, node_id: NodeId) -> None:
        """There is no record of it any more."""
        node = self._nodes.pop(node_id, None)
        if node is not None:
            self._list(self._idle, node, False)
            self._count(node, -1)
            del self._sorts[node_id]

    def see(self, node_id: NodeId, idle: bool) -> None:
        """Whether the node can take something, and nothing is on it or on its way there."""
        node = self._nodes.get(node_id)
        if node is not None:
            self._list(self._idle, node, idle and _is_sound(node))

    def settle(self) -> Sequence[NodeId]:
        """Choose; return the nodes that became spares, or ceased to be."""
        if not self._stale:
            return ()
        before, self.now = self.now, dict.fromkeys(sorted(self._chosen(self._idle)))
        self._stale = False
        return [name for name in (*before, *self.now) if (name in before) != (name in self.now)]

    # --- what is looked up -------------------------------------------------------------------

    def are_for(self, work: Work) -> bool:
        """Whether spares are kept, and the work may be placed on them."""
        return work.stranded and bool(self.wanted)

    def of_empty_fleet(self) -> list[Node]:
        """Those that it would be if nothing was on any node: so many are kept in the long run."""
        if self._kept is None:
            self._kept = [self._nodes[name] for name in self._chosen(self._sound)]
        return self._kept

    def stock(self) -> Stock:
        """Thousandths of devices that are kept in the long run, by kind and class."""
        found: Stock = {}
        for node in self.of_empty_fleet():
            for key, milli in stock_of(node).items():
                found[key] = found.get(key, 0) + milli
        return found

    # --- how ---------------------------------------------------------------------------------

    def _chosen(self, nodes: Mapping[Sort, Sequence[NodeId]]) -> list[NodeId]:
        found: list[NodeId] = []
        have: dict[DeviceKind, int] = {}
        taken: dict[Sort, int] = {}
        for kind, count in self.wanted.items():
            missing = min(count, self._serving.get(kind, 0) - 1) - have.get(kind, 0)
            able = [sort for sort in nodes if any(of is kind for (of, _), _ in sort)]
            for sort in sorted(able, key=lambda sort: (-self._known[sort], sort)):
                if missing <= 0:
                    break
                first = taken.get(sort, 0)
                names = nodes[sort][first : first + missing]
                taken[sort], missing = first + len(names), missing - len(names)
                found += names
                for of in dict.fromkeys(of for (of, _), _ in sort):
                    have[of] = have.get(of, 0) + len(names)
        return found

    def _count(self, node: Node, sign: int) -> None:
        sort = self._sorts[node.id]
        self._known[sort] = self._known.get(sort, 0) + sign
        for kind in dict.fromkeys(kind for kind, _ in stock_of(node)):
            self._serving[kind] = self._serving.get(kind, 0) + sign
        self._list(self._sound, node, sign > 0 and _is_sound(node))
        if not self._known[sort]:
            del self._known[sort]
        self._stale, self._kept = True, None

    def _list(self, lists: dict[Sort, list[NodeId]], node: Node, there: bool) -> None:
        sort = self._sorts[node.id]
        line = lists.setdefault(sort, [])
        at = bisect_left(line, node.id)
        was = at < len(line) and line[at] == node.id
        if there and not was:
            line.insert(at, node.id)
        elif was and not there:
            del line[at]
        if was != there:
            self._stale = True
        if not line:
            del lists[sort]


def infeasible(
    demand: Demand, nodes: Iterable[Node], wanted: Iterable[tuple[DeviceKind, int]]
) -> str | None:
    """As `feasibility`, but beside the spares of these nodes; says so where they are the reason."""
    fleet = list(nodes)
    kept = Spares.of(fleet, wanted).of_empty_fleet()
    why = feasibility(demand, [node for node in fleet if node not in kept])
    if why is None or not kept or feasibility(demand, fleet) is not None:
        return why
    return f"{why}; {told(kept)}"


def told(spares: Sequence[Node]) -> str:
    """That these are kept, with some of their names."""
    names = ", ".join(node.name for node in spares[:NAMES_TOLD])
    more = f" and {len(spares) - NAMES_TOLD} more" if len(spares) > NAMES_TOLD else ""
    if len(spares) == 1:
        return f"1 node is kept as a spare ({names})"
    return f"{len(spares)} nodes are kept as spares ({names}{more})"


def _is_sound(node: Node) -> bool:
    """Whether all of it is in service."""
    return node.state is NodeState.READY and not node.cordons and bool(node.devices)


def _sort_of(node: Node) -> Sort:
    found: Stock = {}
    for device in node.devices:
        key = (device.kind, device.product)
        found[key] = found.get(key, 0) + WHOLE
    return tuple(sorted(found.items()))
