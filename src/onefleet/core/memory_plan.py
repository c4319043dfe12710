"""Whether a model fits before it is downloaded or started: weights, KV memory, overhead; and where.

KV memory of a sequence is, for each token and layer, a key and a value of `head_length` float16
numbers for each of `heads_kv` heads. It is an upper bound: models whose layers look at a sliding
window need less. The overheads were measured as the resident memory of an engine process beyond
its weights and KV memory (25 to 75 MiB), and include what it may keep of old prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onefleet.domain.errors import Infeasible
from onefleet.domain.ids import NodeId
from onefleet.domain.serving import ModelShape, Purpose

#: An engine's code, buffers and logits.
PROCESS_BYTES = 128 << 20

#: What an engine may keep of old prompts, beyond its KV memory.
PROMPT_CACHE_BYTES = 256 << 20

#: Chosen where nobody chose, as far as they fit.
SLOTS_DEFAULT = 4
CONTEXT_DEFAULT = 4096

#: A context is not made shorter than this to make it fit.
CONTEXT_MIN = 512

_FLOAT16_BYTES = 2
_KEY_AND_VALUE = 2


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """Memory of a node in which a replica may run. free_bytes: now; memory_bytes: when empty."""

    node_id: NodeId
    name: str
    free_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """One replica's need, and the nodes that have it. picked: None where none has it now.

    fits: nodes with that much free now. could_fit: nodes with that much when they are empty.
    text: all of it in one line.
    """

    slots: int
    context_length: int
    weights_bytes: int
    kv_bytes: int
    overhead_bytes: int
    fits: tuple[NodeId, ...]
    could_fit: tuple[NodeId, ...]
    picked: NodeId | None
    text: str

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.overhead_bytes


def kv_token_bytes(shape: ModelShape, purpose: Purpose) -> int:
    """KV memory of one token; an embedding model keeps none."""
    if purpose is Purpose.EMBEDDING:
        return 0
    return shape.layers * shape.heads_kv * shape.head_length * _KEY_AND_VALUE * _FLOAT16_BYTES


def plan_memory(
    shape: ModelShape,
    purpose: Purpose,
    weights_bytes: int,
    nodes: Sequence[NodeRoom],
    *,
    slots: int = 0,
    context_length: int = 0,
) -> MemoryPlan:
    """Plan one replica. slots and context_length (tokens for each slot) of 0 are chosen.

    What is chosen is made smaller until it fits; what was given stays. Raises Infeasible, saying
    what would fit, when no node could take it even empty; with no nodes nothing is refused.
    """
    need = _Need(shape, purpose, weights_bytes)
    longest = shape.context_length
    chosen = min(context_length or CONTEXT_DEFAULT, longest)
    chosen_slots = slots or SLOTS_DEFAULT
    room = max((node.memory_bytes for node in nodes), default=0)
    while nodes and need.total(chosen_slots, chosen) > room:
        if not context_length and chosen > CONTEXT_MIN:
            chosen = max(CONTEXT_MIN, chosen // 2)
        elif not slots and chosen_slots > 1:
            chosen_slots -= 1
        else:
            raise _infeasible(need, chosen_slots, chosen, room)
    total = need.total(chosen_slots, chosen)
    ordered = sorted(nodes, key=lambda node: (-node.free_bytes, node.node_id))
    free_now = [node for node in ordered if node.free_bytes >= total]
    could = [node for node in ordered if node.memory_bytes >= total]
    return MemoryPlan(
        slots=chosen_slots,
        context_length=chosen,
        weights_bytes=weights_bytes,
        kv_bytes=need.kv(chosen_slots, chosen),
        overhead_bytes=need.overhead,
        fits=tuple(node.node_id for node in free_now),
        could_fit=tuple(node.node_id for node in could),
        picked=free_now[0].node_id if free_now else None,
        text=f"{need.text(chosen_slots, chosen)} → {_where(nodes, free_now, could)}",
    )


@dataclass(frozen=True, slots=True)
class _Need:
    shape: ModelShape
    purpose: Purpose
    weights_bytes: int

    @property
    def overhead(self) -> int:
        kept = 0 if self.purpose is Purpose.EMBEDDING else PROMPT_CACHE_BYTES
        return PROCESS_BYTES + kept

    def kv(self, slots: int, context_length: int) -> int:
        return slots * context_length * kv_token_bytes(self.shape, self.purpose)

    def total(self, slots: int, context_length: int) -> int:
        return self.weights_bytes + self.kv(slots, context_length) + self.overhead

    def text(self, slots: int, context_length: int) -> str:
        kv = f"KV {_size(self.kv(slots, context_length))} ({slots} slots × {context_length} tokens)"
        parts = f"weights {_size(self.weights_bytes)} + {kv} + {_size(self.overhead)} overhead"
        return f"{parts} = {_size(self.total(slots, context_length))}"


def _where(
    nodes: Sequence[NodeRoom], free_now: Sequence[NodeRoom], could: Sequence[NodeRoom]
) -> str:
    if not nodes:
        return "no node is known yet"
    if free_now:
        return f"fits {len(free_now)}/{len(nodes)} nodes; picked {free_now[0].name}"
    most = max(nodes, key=lambda node: (node.free_bytes, node.node_id))
    return (
        f"fits {len(could)}/{len(nodes)} nodes when other work leaves; now the most free is "
        f"{_size(most.free_bytes)} on {most.name}"
    )


def _infeasible(need: _Need, slots: int, context_length: int, room: int) -> Infeasible:
    """What would fit: a shorter context, else fewer slots, else only a smaller model."""
    token = kv_token_bytes(need.shape, need.purpose)
    left = room - need.weights_bytes - need.overhead
    hint = f"take a model whose weights and {_size(need.overhead)} of overhead fit, or add a node"
    if token and left // (slots * token) >= CONTEXT_MIN:
        hint = f"with {slots} slots a context of {left // (slots * token)} tokens fits"
    elif token and left // (context_length * token) >= 1:
        hint = (
            f"with {context_length} tokens of context {left // (context_length * token)} slots fit"
        )
    elif token and left // token >= CONTEXT_MIN:
        hint = f"one slot with a context of {left // token} tokens fits"
    return Infeasible(
        f"a replica needs {_size(need.total(slots, context_length))}, the largest node has "
        f"{_size(room)}",
        why=need.text(slots, context_length),
        hint=hint,
        param="context_length",
    )


def _size(count: int) -> str:
    if count >= 1_000_000_000:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB"
