from __future__ import annotations

from onefleet.domain.ids import Instant
from onefleet.engines.simulated_model import (
    BLOCK_TOKENS,
    Cancel,
    Emit,
    EngineModel,
    EngineShape,
    Refuse,
    Submit,
    Tick,
)


def at(ms: int) -> Instant:
    return Instant(ms)


def shape(**changes: int) -> EngineShape:
    fields = {"slots": 2, "context_length": 1000, "kv_tokens": 0} | changes
    return EngineShape(**fields)


def drain(model: EngineModel, until: int = 1_000_000) -> list[tuple[int, Emit]]:
    """Tick at every deadline; return (ms, emission)."""
    seen = []
    while (deadline := model.next_deadline()) is not None and deadline <= until:
        for effect in model.handle(Tick(), deadline):
            assert isinstance(effect, Emit)
            seen.append((int(deadline), effect))
        model.check()
    return seen


def test_infinitely_fast_engine_answers_at_once() -> None:
    model = EngineModel(shape())
    assert model.shape.instant
    assert model.handle(Submit(1, 10, 5), at(0)) == [Emit(1, 5, 0, True)]
    assert model.next_deadline() is None


def test_first_token_comes_after_the_prompt_and_the_rest_at_decode_speed() -> None:
    model = EngineModel(shape(prefill_tokens_s=1000, decode_tokens_s=100))
    assert model.handle(Submit(1, 200, 4), at(0)) == []
    assert [(ms, emit.count, emit.finished) for ms, emit in drain(model)] == [
        (200, 1, False),
        (210, 1, False),
        (220, 1, False),
        (230, 1, True),
    ]


def test_prompts_are_computed_one_after_the_other() -> None:
    model = EngineModel(shape(prefill_tokens_s=1000))
    model.handle(Submit(1, 100, 1), at(0))
    model.handle(Submit(2, 100, 1), at(10))
    assert [(ms, emit.request) for ms, emit in drain(model)] == [(100, 1), (200, 2)]


def test_a_third_request_waits_for_a_slot() -> None:
    model = EngineModel(shape(decode_tokens_s=10))
    for request in (1, 2, 3):
        model.handle(Submit(request, 10, 2), at(0))
    assert (model.running, model.waiting) == (2, 1)
    ends = {emit.request: ms for ms, emit in drain(model) if emit.finished}
    assert ends == {1: 100, 2: 100, 3: 200}


def test_a_prompt_with_a_known_beginning_skips_it() -> None:
    model = EngineModel(shape(kv_tokens=4096, prefill_tokens_s=1000))
    blocks = tuple(range(10))
    model.handle(Submit(1, 160, 1, blocks), at(0))
    drain(model)
    model.handle(Submit(2, 170, 1, blocks), at(1000))
    [(ms, emit)] = drain(model)
    assert emit.cached == 160
    assert ms == 1010


def test_one_token_of_a_known_prompt_is_still_computed() -> None:
    model = EngineModel(shape(kv_tokens=4096))
    blocks = tuple(range(10))
    model.handle(Submit(1, 160, 1, blocks), at(0))
    assert model.handle(Submit(2, 160, 1, blocks), at(1)) == [Emit(2, 1, 159, True)]


def test_kept_blocks_make_room_for_new_ones() -> None:
    model = EngineModel(shape(kv_tokens=10 * BLOCK_TOKENS))
    model.handle(Submit(1, 96, 1, tuple(range(6))), at(0))
    assert model.kv_blocks_kept == 6
    model.handle(Submit(2, 96, 1, tuple(range(100, 106))), at(1))
    model.check()
    # The beginning of the first prompt was kept longest.
    assert model.handle(Submit(3, 96, 1, tuple(range(6))), at(2)) == [Emit(3, 1, 48, True)]


def test_a_sequence_waits_until_its_memory_fits() -> None:
    model = EngineModel(shape(kv_tokens=10 * BLOCK_TOKENS, decode_tokens_s=100))
    model.handle(Submit(1, 96, 16, tuple(range(6))), at(0))
    model.handle(Submit(2, 96, 16, tuple(range(50, 56))), at(0))
    assert (model.running, model.waiting) == (1, 1)
    ends = {emit.request: ms for ms, emit in drain(model) if emit.finished}
    assert ends == {1: 150, 2: 300}


def test_what_can_never_fit_is_refused() -> None:
    model = EngineModel(shape(kv_tokens=64))
    [refused] = model.handle(Submit(1, 60, 16), at(0))
    assert isinstance(refused, Refuse) and not refused.busy and "76 tokens" in refused.why
    [refused] = model.handle(Submit(2, 1000, 1), at(0))
    assert isinstance(refused, Refuse) and "1000 tokens" in refused.why
    assert (model.running, model.waiting) == (0, 0)


def test_leaving_frees_the_slot_at_once() -> None:
    model = EngineModel(shape(slots=1, decode_tokens_s=10))
    model.handle(Submit(1, 10, 100), at(0))
    model.handle(Submit(2, 10, 1), at(5))
    assert model.handle(Cancel(1), at(50)) == [Emit(2, 1, 0, True)]
    assert model.next_deadline() is None


def test_leaving_while_the_prompt_is_computed_lets_the_next_one_start() -> None:
    model = EngineModel(shape(prefill_tokens_s=1000, kv_tokens=16_000))
    model.handle(Submit(1, 800, 1, tuple(range(50))), at(0))
    model.handle(Submit(2, 100, 1, tuple(range(500, 506))), at(0))
    model.handle(Cancel(1), at(10))
    model.check()
    assert model.kv_blocks_kept == 0, "what was not computed is not kept"
    assert [(ms, emit.request) for ms, emit in drain(model)] == [(110, 2)]


def test_leaving_a_request_that_is_not_there_does_nothing() -> None:
    model = EngineModel(shape())
    assert model.handle(Cancel(7), at(0)) == []
