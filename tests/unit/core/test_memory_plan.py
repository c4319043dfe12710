from __future__ import annotations

import pytest

from onefleet.core.memory_plan import NodeRoom, kv_token_bytes, plan_memory
from onefleet.domain.errors import Infeasible
from onefleet.domain.ids import NodeId
from onefleet.domain.serving import ModelShape, Purpose

SMOLLM2 = ModelShape("llama", 134_515_008, 30, 8192, 576, 3, 64)
WEIGHTS = 98_362_432
GB = 1_000_000_000


def node(name: str, free: int, memory: int) -> NodeRoom:
    return NodeRoom(NodeId(f"node-{name}"), name, free, memory)


def test_the_text_says_what_it_needs_and_where_it_fits() -> None:
    nodes = [node("a", 2 * GB, 4 * GB), node("b", 3 * GB, 4 * GB), node("c", 0, 4 * GB)]
    planned = plan_memory(SMOLLM2, Purpose.CHAT, WEIGHTS, nodes)
    assert planned.text == (
        "weights 98 MB + KV 377 MB (4 slots × 4096 tokens) + 403 MB overhead = 879 MB"
        " → fits 2/3 nodes; picked b"
    )
    assert planned.picked == "node-b"
    assert planned.fits == ("node-b", "node-a")
    assert planned.could_fit == ("node-b", "node-a", "node-c")
    assert planned.total_bytes == planned.weights_bytes + planned.kv_bytes + planned.overhead_bytes


def test_kv_memory_is_two_float16_a_layer_head_and_number() -> None:
    assert kv_token_bytes(SMOLLM2, Purpose.CHAT) == 30 * 3 * 64 * 2 * 2
    assert kv_token_bytes(SMOLLM2, Purpose.EMBEDDING) == 0


def test_what_was_given_stays_and_the_models_own_length_is_the_most() -> None:
    nodes = [node("a", 9 * GB, 9 * GB)]
    planned = plan_memory(SMOLLM2, Purpose.CHAT, WEIGHTS, nodes, slots=2, context_length=99_999)
    assert (planned.slots, planned.context_length) == (2, 8192)


def test_what_is_chosen_shrinks_until_it_fits() -> None:
    planned = plan_memory(SMOLLM2, Purpose.CHAT, WEIGHTS, [node("a", GB, 600_000_000)])
    assert (planned.slots, planned.context_length) == (4, 1024)
    planned = plan_memory(SMOLLM2, Purpose.CHAT, WEIGHTS, [node("a", GB, 526_000_000)])
    assert (planned.slots, planned.context_length) == (2, 512)


def test_a_busy_node_could_take_it_later() -> None:
    planned = plan_memory(SMOLLM2, Purpose.CHAT, WEIGHTS, [node("a", GB // 2, 4 * GB)])
    assert planned.picked is None and planned.fits == () and planned.could_fit == ("node-a",)
    assert "when other work leaves; now the most free is 500 MB on a" in planned.text


def test_before_a_node_is_known_nothing_is_refused() -> None:
    assert "no node is known yet" in plan_memory(SMOLLM2, Purpose.CHAT, WEIGHTS, []).text


@pytest.mark.parametrize(
    ("memory", "slots", "context_length", "hint"),
    [
        (GB, 8, 8192, "with 8 slots a context of 2707 tokens fits"),
        (GB, 64, 4096, "with 4096 tokens of context 5 slots fit"),
        (515_000_000, 8, 4096, "one slot with a context of 606 tokens fits"),
        (300_000_000, 0, 0, "take a model whose weights"),
    ],
)
def test_what_can_never_fit_says_what_would(
    memory: int, slots: int, context_length: int, hint: str
) -> None:
    nodes = [node("a", memory, memory)]
    with pytest.raises(Infeasible) as caught:
        plan_memory(
            SMOLLM2, Purpose.CHAT, WEIGHTS, nodes, slots=slots, context_length=context_length
        )
    assert hint in caught.value.hint
    assert "the largest node has" in caught.value.what
