"""What the fleet's failures teach: how long nodes with work were watched, and how many were lost.

Both are kept as marks of the store, so that a control plane that restarts goes on learning. Only
nodes that hold work count: one that was left in good order has saved its own, and its end is no
failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onefleet.core.checkpointing import Failures
from onefleet.core.policy import Policy
from onefleet.domain.fleet import Node, NodeState
from onefleet.domain.ids import NO_GENERATION, Instant, NodeId
from onefleet.store.base import State

#: Marks: node-milliseconds, and nodes.
WATCHED, LOST = "fleet.watched_ms", "fleet.lost"


class Watch:
    """Adds up for how long nodes were watched that is not in the store yet."""

    def __init__(self, now: Instant) -> None:
        self._at = now
        self._generation = NO_GENERATION
        self._nodes = 0
        self.unwritten_ms = 0

    def advance(self, state: State, now: Instant) -> None:
        """The state is this now; until now it was what the last call said."""
        self.unwritten_ms += max(now - self._at, 0) * self._nodes
        self._at = now
        if state.generation != self._generation:
            self._generation = state.generation
            working = _working(state)
            lost = (name for name in working if _is_lost(state, name))
            self._nodes = len(working) - sum(1 for _ in lost)

    def failures(self, state: State) -> Failures:
        """All that was seen so far."""
        watched_ms = state.marks.get(WATCHED, 0) + self.unwritten_ms
        return Failures(watched_ms, state.marks.get(LOST, 0))


def lost_now(state: State, fenced: Sequence[Node]) -> int:
    """How many of the nodes that are given up held work. state: before that."""
    working = _working(state) if fenced else {}
    return sum(1 for node in fenced if node.id in working)


def learnt(policy: Policy, failures: Failures) -> Policy:
    """The policy, with what was seen added to what it believes of a node's failures."""
    return replace(policy, node_mttf_ms=failures.node_mttf_ms(policy.node_mttf_ms))


def _working(state: State) -> Mapping[NodeId, None]:
    """The nodes that hold work."""
    slots = (slot for work in state.works.values() for slot in work.placement)
    return dict.fromkeys(slot.node_id for slot in slots)


def _is_lost(state: State, node_id: NodeId) -> bool:
    """Of such a node: whether it is not there, so that nobody watches it."""
    node = state.nodes.get(node_id)
    return node is None or node.state is NodeState.LOST
