"""The simulated engine's model under any sequence of requests, departures and late ticks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

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

shapes = st.builds(
    EngineShape,
    slots=st.integers(1, 4),
    context_length=st.integers(32, 400),
    kv_tokens=st.sampled_from((0, 64, 320, 1024)),
    prefill_tokens_s=st.sampled_from((0, 1, 333, 5000)),
    decode_tokens_s=st.sampled_from((0, 1, 7, 3000)),
)
steps = st.lists(
    st.tuples(
        st.sampled_from(("submit", "submit", "cancel", "tick")),
        st.integers(1, 300),  # prompt tokens, or which request leaves
        st.integers(1, 60),  # answer tokens
        st.integers(0, 3),  # which prompt: those of one family share their beginning
        st.integers(0, 2000),  # milliseconds since the step before
    ),
    max_size=40,
)


@given(shapes, steps)
def test_every_request_gets_exactly_its_tokens_or_a_refusal(
    shape: EngineShape, script: list[tuple[str, int, int, int, int]]
) -> None:
    model = EngineModel(shape)
    wanted: dict[int, int] = {}
    got: dict[int, int] = {}
    gone: set[int] = set()
    now = 0

    def take(effects: list[Emit | Refuse]) -> None:
        model.check()
        for effect in effects:
            assert effect.request not in gone, "nothing comes after the end"
            if isinstance(effect, Refuse):
                gone.add(effect.request)
                continue
            got[effect.request] = got.get(effect.request, 0) + effect.count
            assert effect.count > 0
            assert effect.finished == (got[effect.request] == wanted[effect.request])
            if effect.finished:
                gone.add(effect.request)

    for number, (what, size, answer, family, wait) in enumerate(script):
        now += wait
        if what == "submit":
            blocks = tuple(family * 1000 + i for i in range(size // BLOCK_TOKENS))
            wanted[number] = answer
            event = Submit(number, size, answer, blocks if shape.kv_tokens else ())
            take(model.handle(event, Instant(now)))
        elif what == "cancel":
            request = size % (number + 1)
            effects = model.handle(Cancel(request), Instant(now))
            gone.add(request)
            take(effects)
        else:
            take(model.handle(Tick(), Instant(now)))
    for _ in range(10_000):
        deadline = model.next_deadline()
        if deadline is None:
            break
        now = max(now, deadline)
        take(model.handle(Tick(), Instant(now)))
    assert all(request in gone for request in wanted), "nobody waits for ever"
    assert (model.running, model.waiting, model.kv_blocks_used) == (0, 0, 0)


@given(shapes, steps)
def test_every_tick_at_a_deadline_brings_something(
    shape: EngineShape, script: list[tuple[str, int, int, int, int]]
) -> None:
    model = EngineModel(shape)
    for number, (_, size, answer, _, _) in enumerate(script):
        model.handle(Submit(number, size, answer), Instant(0))
    before = -1
    while (deadline := model.next_deadline()) is not None:
        assert deadline > before, "time goes on, it is no busy loop"
        before = deadline
        assert model.handle(Tick(), deadline)
