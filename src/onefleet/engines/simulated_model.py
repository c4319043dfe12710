"""What a simulated engine does with time and KV memory, as a pure machine.

Theory: an engine with continuous batching has `slots` sequences in work at once. Prompts are
computed one after the other at `prefill_tokens_s`; each sequence then gets its tokens at
`decode_tokens_s`, the first one as its prompt is done. KV memory is counted in blocks. Whole
blocks of a prompt are kept by content after use, so that a later prompt with the same beginning
skips them; the least recently used are dropped when room is needed. A sequence is admitted, in
order of arrival, when a slot is free and the blocks of its prompt and of its whole answer fit.

Speeds are whole tokens a second, 0 is infinitely fast. Times inside are microseconds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import assert_never

from onefleet.domain.ids import Instant

#: Tokens in a KV block.
BLOCK_TOKENS = 16

#: Sequences that may wait for a slot.
WAITING_MAX = 4096


@dataclass(frozen=True, slots=True)
class EngineShape:
    """kv_tokens: the KV memory, in tokens; 0: without limit, and no prompt is ever kept."""

    slots: int
    context_length: int
    kv_tokens: int
    prefill_tokens_s: int = 0
    decode_tokens_s: int = 0

    @property
    def instant(self) -> bool:
        """Every answer is complete as soon as it is asked for."""
        return not (self.kv_tokens or self.prefill_tokens_s or self.decode_tokens_s)


@dataclass(frozen=True, slots=True)
class Submit:
    """A request. blocks: content hashes of the prompt's whole blocks, each over all before it.

    decode_tokens_s: a speed of its own; None: the engine's.
    """

    request: int
    prompt_tokens: int
    answer_tokens: int
    blocks: tuple[int, ...] = ()
    decode_tokens_s: int | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client left."""

    request: int


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline came."""


EngineEvent = Submit | Cancel | Tick


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request was not taken; why is a person's line. busy: later it may be."""

    request: int
    why: str
    busy: bool


@dataclass(frozen=True, slots=True)
class Emit:
    """The next `count` tokens of the answer are there. cached: prompt tokens that were reused."""

    request: int
    count: int
    cached: int
    finished: bool


EngineEffect = Refuse | Emit


@dataclass(slots=True, eq=False)
class _Sequence:
    submitted: Submit
    private_blocks: int = 0  # of the prompt's tail and the answer
    cached: int = 0
    ready_us: int = -1  # when its prompt is computed; -1: another prompt is before it
    emitted: int = 0


@dataclass(slots=True)
class _Blocks:
    """Blocks that are kept by content. users: in use, by how many; idle: least recent first."""

    users: dict[int, int] = field(default_factory=dict)
    idle: OrderedDict[int, None] = field(default_factory=OrderedDict)


class EngineModel:
    """The machine. Effects come in the order in which they are to be seen."""

    def __init__(self, shape: EngineShape) -> None:
        self.shape = shape
        self._waiting: OrderedDict[int, _Sequence] = OrderedDict()
        self._running: OrderedDict[int, _Sequence] = OrderedDict()
        self._prompts: deque[_Sequence] = deque()  # admitted, in order; the first is computed
        self._blocks = _Blocks()
        self._private_blocks = 0
        self._blocks_max = shape.kv_tokens // BLOCK_TOKENS

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def kv_blocks_used(self) -> int:
        """Blocks that sequences in work hold."""
        return len(self._blocks.users) + self._private_blocks

    @property
    def kv_blocks_kept(self) -> int:
        """Blocks that nobody holds, kept for reuse."""
        return len(self._blocks.idle)

    def handle(self, event: EngineEvent, now: Instant) -> list[EngineEffect]:
        """Take one event at `now` (ms); return what clients see of it."""
        now_us = now * 1000
        effects: list[EngineEffect] = []
        match event:
            case Submit():
                refusal = self._refusal(event)
                if refusal is not None:
                    return [refusal]
                self._waiting[event.request] = _Sequence(event)
            case Cancel():
                self._cancel(event.request, now_us)
            case Tick():
                pass
            case _:
                assert_never(event)
        while True:
            admitted = self._admit(now_us)
            freed = self._advance(now_us, effects)
            if not (admitted or freed):
                return effects

    def next_deadline(self) -> Instant | None:
        """The first moment (ms) at which a token is due; None: nothing is in work."""
        due = [_next_us(sequence, self.shape) for sequence in self._running.values()]
        known = [moment for moment in due if moment >= 0]
        return Instant(-(-min(known) // 1000)) if known else None

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken."""
        assert len(self._running) <= self.shape.slots
        assert len(self._waiting) <= WAITING_MAX
        assert all(count > 0 for count in self._blocks.users.values())
        assert not any(block in self._blocks.users for block in self._blocks.idle)
        assert self._private_blocks == sum(s.private_blocks for s in self._running.values())
        if self._blocks_max:
            assert self.kv_blocks_used + self.kv_blocks_kept <= self._blocks_max
        for sequence in self._running.values():
            assert sequence.emitted < sequence.submitted.answer_tokens
        assert not self._prompts or self._prompts[0].ready_us >= 0
        for request in self._waiting:
            assert request not in self._running

    # --- admission -----------------------------------------------------------------------------

    def _refusal(self, event: Submit) -> Refuse | None:
        total = event.prompt_tokens + event.answer_tokens
        assert event.answer_tokens > 0
        assert event.request not in self._waiting
        assert event.request not in self._running
        if event.prompt_tokens >= self.shape.context_length:
            return Refuse(
                event.request,
                f"the prompt has {event.prompt_tokens} tokens, the context is "
                f"{self.shape.context_length} tokens long",
                busy=False,
            )
        if self._blocks_max and _blocks_of(total) > self._blocks_max:
            return Refuse(
                event.request,
                f"prompt and answer need {total} tokens of KV memory, the engine has "
                f"{self.shape.kv_tokens}",
                busy=False,
            )
        if len(self._waiting) >= WAITING_MAX:
            return Refuse(event.request, f"{WAITING_MAX} requests wait already", busy=True)
        return None

    def _admit(self, now_us: int) -> bool:
        admitted = False
        while self._waiting and len(self._running) < self.shape.slots:
            request, sequence = next(iter(self._waiting.items()))
            if self._blocks_max and not self._take_blocks(sequence):
                break
            del self._waiting[request]
            self._running[request] = sequence
            self._prompts.append(sequence)
            if len(self._prompts) == 1:
                self._start_prompt(now_us)
            admitted = True
        return admitted

    def _take_blocks(self, sequence: _Sequence) -> bool:
        """Hold what the sequence needs, dropping idle blocks; False: it does not fit now."""
        kept, wanted = self._blocks, sequence.submitted
        matched = 0
        for block in wanted.blocks:
            if block not in kept.users and block not in kept.idle:
                break
            matched += 1
        private = _blocks_of(wanted.prompt_tokens + wanted.answer_tokens) - len(wanted.blocks)
        shared = sum(1 for block in wanted.blocks if block in kept.users)
        if self.kv_blocks_used + len(wanted.blocks) - shared + private > self._blocks_max:
            return False
        for block in wanted.blocks:
            kept.idle.pop(block, None)
            kept.users[block] = kept.users.get(block, 0) + 1
        sequence.private_blocks = private
        self._private_blocks += private
        while self.kv_blocks_used + len(kept.idle) > self._blocks_max:
            kept.idle.popitem(last=False)
        # At least one token of the prompt is computed: its logits start the answer.
        sequence.cached = min(matched * BLOCK_TOKENS, wanted.prompt_tokens - 1)
        return True

    def _release(self, sequence: _Sequence, computed: int) -> None:
        """Give its blocks back; the first `computed` blocks of its prompt are kept for reuse."""
        self._private_blocks -= sequence.private_blocks
        if not self._blocks_max:
            return
        kept = self._blocks
        # Last block first: what is shared by most prompts, the beginning, is dropped last.
        for index, block in reversed(list(enumerate(sequence.submitted.blocks))):
            kept.users[block] -= 1
            if not kept.users[block]:
                del kept.users[block]
                if index < computed:
                    kept.idle[block] = None

    # --- time ----------------------------------------------------------------------------------

    def _start_prompt(self, from_us: int) -> None:
        sequence = self._prompts[0]
        tokens = sequence.submitted.prompt_tokens - sequence.cached
        sequence.ready_us = from_us + _duration_us(tokens, self.shape.prefill_tokens_s)

    def _advance(self, now_us: int, effects: list[EngineEffect]) -> bool:
        """Give out what is due; True when a slot became free."""
        while self._prompts and self._prompts[0].ready_us <= now_us:
            done = self._prompts.popleft()
            if self._prompts:
                self._start_prompt(done.ready_us)
        freed = []
        for request, sequence in self._running.items():
            count = _tokens_due(sequence, now_us, self.shape) - sequence.emitted
            if count <= 0:
                continue
            sequence.emitted += count
            finished = sequence.emitted == sequence.submitted.answer_tokens
            effects.append(Emit(request, count, sequence.cached, finished))
            if finished:
                freed.append(request)
        for request in freed:
            sequence = self._running.pop(request)
            self._release(sequence, len(sequence.submitted.blocks))
        return bool(freed)

    def _cancel(self, request: int, now_us: int) -> None:
        self._waiting.pop(request, None)
        sequence = self._running.pop(request, None)
        if sequence is None:
            return
        if sequence not in self._prompts:
            self._release(sequence, len(sequence.submitted.blocks))
            return
        self._release(sequence, sequence.cached // BLOCK_TOKENS)
        first = self._prompts[0] is sequence
        self._prompts.remove(sequence)
        if first and self._prompts:
            self._start_prompt(now_us)


def _blocks_of(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def _duration_us(tokens: int, tokens_s: int) -> int:
    return tokens * 1_000_000 // tokens_s if tokens_s else 0


def _speed(sequence: _Sequence, shape: EngineShape) -> int:
    own = sequence.submitted.decode_tokens_s
    return shape.decode_tokens_s if own is None else own


def _next_us(sequence: _Sequence, shape: EngineShape) -> int:
    """When its next token is due; -1 while another prompt is before it."""
    if sequence.ready_us < 0:
        return -1
    return sequence.ready_us + _duration_us(sequence.emitted, _speed(sequence, shape))


def _tokens_due(sequence: _Sequence, now_us: int, shape: EngineShape) -> int:
    if sequence.ready_us < 0 or sequence.ready_us > now_us:
        return 0
    speed = _speed(sequence, shape)
    most = sequence.submitted.answer_tokens
    if not speed:
        return most
    # The greatest n for which token n (from 0) is due; the exact inverse of _duration_us.
    return min(most, ((now_us - sequence.ready_us + 1) * speed - 1) // 1_000_000 + 1)
