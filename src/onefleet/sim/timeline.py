"""Virtual time: who does what when. Two drivers of the same simulation.

`HeapTimeline` is the fast one: a heap of (time, sequence). Its actions are coroutines that never
really wait, because the store of a simulation is in memory: `run_now` finishes each in one step
and fails loudly if it does not. `LoopTimeline` runs the same actions as tasks of an asyncio loop
whose clock is virtual, which is how live processes run them. Both must decide the same.
"""

from __future__ import annotations

import asyncio
import heapq
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from onefleet.domain.ids import Instant

Action = Callable[[], Coroutine[Any, Any, None]]
ResultT = TypeVar("ResultT")

#: Ties are broken by this much (seconds) on the loop, so that they keep the order of the heap.
_TIE_S = 1e-8
#: Actions of one millisecond, so that ties never reach the next one.
_TIES_MAX = 90_000


class Timeline(Protocol):
    """A virtual clock, and actions to come."""

    def now(self) -> Instant:
        """The time of the action that runs."""
        ...

    def at(self, when: Instant, action: Action) -> None:
        """Run it then, after what was asked for that moment before; at once if it is past."""
        ...

    def run(self, until: Instant, after_each: Callable[[], bool]) -> None:
        """Run all actions up to and including `until`, or until `after_each`, which is called
        after every action, says that it is enough. Exceptions come out."""
        ...


def run_now(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine that does not wait for anything. Raises AssertionError when it does."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: ResultT = done.value
        return result
    coroutine.close()
    raise AssertionError("it waited: something in the simulation does real I/O")


class HeapTimeline:
    """Actions in the order of their time, then of their asking."""

    def __init__(self) -> None:
        self._heap: list[tuple[Instant, int, Action]] = []
        self._sequence = 0
        self._now = Instant(0)

    def now(self) -> Instant:
        return self._now

    def at(self, when: Instant, action: Action) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (max(when, self._now), self._sequence, action))

    def run(self, until: Instant, after_each: Callable[[], bool]) -> None:
        while self._heap and self._heap[0][0] <= until:
            self._now, _, action = heapq.heappop(self._heap)
            run_now(action())
            if after_each():
                return


class LoopTimeline:
    """The same on an asyncio loop with a virtual clock."""

    def __init__(self) -> None:
        self._loop = _VirtualLoop()
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._now = Instant(0)
        self._ties: dict[Instant, int] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._after_each: Callable[[], bool] = lambda: False

    def now(self) -> Instant:
        return self._now

    def at(self, when: Instant, action: Action) -> None:
        due = max(when, self._now)
        tie = self._ties[due] = self._ties.get(due, 0) + 1
        assert tie < _TIES_MAX, "too many actions at one moment"
        self._loop.call_at(due / 1000 + tie * _TIE_S, self._fire, due, action)

    def run(self, until: Instant, after_each: Callable[[], bool]) -> None:
        self._after_each = after_each
        self._loop.call_at(until / 1000 + _TIES_MAX * _TIE_S, self._finish)
        try:
            self._loop.run_until_complete(self._end)
        finally:
            self._loop.close()

    def _finish(self) -> None:
        if not self._end.done():
            self._end.set_result(None)

    def _fire(self, due: Instant, action: Action) -> None:
        if self._end.done():
            return
        task = self._loop.create_task(self._perform(due, action))
        self._tasks[task] = None
        task.add_done_callback(self._done)

    async def _perform(self, due: Instant, action: Action) -> None:
        self._now = due
        await action()
        if self._after_each():
            self._finish()

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        error = task.exception()
        if error is not None and not self._end.done():
            self._end.set_exception(error)


class _VirtualLoop(asyncio.SelectorEventLoop):
    """A loop that jumps to its next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.virtual_s = 0.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.virtual_s


class _Jump(selectors.SelectSelector):
    """Never waits: a timeout passes by moving the clock."""

    def __init__(self, loop: _VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits, and nothing will ever happen"
        self._loop.virtual_s += max(timeout, 0.0)
        return super().select(0)
