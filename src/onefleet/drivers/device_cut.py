"""Taking a tree of processes off its devices, and putting it back: which call, when, and then.

Two machines without a clock or a process; a shell asks the driver what they say. Both speak to all
processes of a worker together, in steps:

    TakeOff   find who uses a device > lock all > checkpoint all > OFF
    PutBack   look > restore all that are checkpointed > unlock all that are locked > look > BACK

Whatever fails on the way off is undone in reverse: then the worker runs as if nothing had been,
and is told why (REFUSED). When undoing fails, too, the worker cannot be trusted any more (UNKNOWN).
Where there is too little memory on a device for all of them, and nothing else went wrong, those
that came on are taken off again: nothing is lost (OFF). Whether such a process can be put back
later is up to the driver: https://github.com/NVIDIA/cuda-checkpoint/issues/44 is of one that
refuses it for good.

All are locked before the first is checkpointed, and at the same time: the work of one may wait
for that of another (a collective), and would never be done if the other were held. If that
happens all the same, the lock runs into its limit; all are let go, and it is tried again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from onefleet.drivers.device_checkpoint import DeviceErrorKind, DeviceState

_HELD = (DeviceState.LOCKED, DeviceState.CHECKPOINTED)


class Verb(StrEnum):
    STATE = "state"
    LOCK = "lock"
    CHECKPOINT = "checkpoint"
    RESTORE = "restore"
    UNLOCK = "unlock"


class Answer(NamedTuple):
    """What came of a call on one process. state: of a STATE that succeeded. text: of an error."""

    state: DeviceState | None = None
    error: DeviceErrorKind | None = None
    text: str = ""


Answers = Mapping[int, Answer]  # by process id


class Outcome(StrEnum):
    OFF = "off"  # all are checkpointed: nothing is left on a device
    BACK = "back"  # all are running
    REFUSED = "refused"  # all are running, and it could not be done
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Ask:
    """Call the driver on all of these processes at once; answered by their Answers.

    limit_ms: of a lock. devices: of a restore, new by old name.
    """

    verb: Verb
    pids: tuple[int, ...]
    limit_ms: int = 0
    devices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so long, then go on with no answers."""

    ms: int


@dataclass(frozen=True, slots=True)
class End:
    """pids: of those that use a device, as far as they live."""

    outcome: Outcome
    pids: tuple[int, ...] = ()
    why: str = ""


Step = Ask | Pause | End


@dataclass(frozen=True, slots=True)
class LockRules:
    """How often to try to lock all, and for how long the first time; each next time is twice as
    long. pause_ms: for how long all run between two tries, so that they come out of each other's
    way.
    """

    tries: int = 4
    first_ms: int = 2_000
    pause_ms: int = 50


class PutBack:
    """From whatever state the processes are in to RUNNING.

    locked: those of them that are known to be locked and no more. They are let go before anybody
    is asked anything: a process that shares device memory with a locked one does not answer.
    strict: the processes were just made from an image, so each has to be CHECKPOINTED. A process
    that has ended meanwhile is left out. Where all were off, and there is too little memory for
    them, all are off again.
    """

    def __init__(
        self,
        pids: Sequence[int],
        devices: Mapping[str, str] | None = None,
        *,
        locked: Sequence[int] = (),
        strict: bool = False,
    ) -> None:
        self._pids = list(pids)
        self._devices = dict(devices or {})
        self._locked = list(locked)
        self._allowed = frozenset({DeviceState.CHECKPOINTED})
        if not strict:
            self._allowed |= {DeviceState.LOCKED, DeviceState.RUNNING}
        self._asked: Ask | None = None
        self._was: dict[int, DeviceState] | None = None  # when they were looked at first
        self._full = ""  # whom there is too little memory for
        self._left = False  # those that came on all the same were told to go

    def begin(self) -> Step:
        if self._locked:
            return self._ask(Verb.UNLOCK, self._locked)
        return self._ask(Verb.STATE, self._pids)

    def answered(self, answers: Answers) -> Step:
        """The next step, given what came of the one before."""
        asked = self._asked
        assert asked is not None and sorted(answers) == sorted(asked.pids)
        self._pids = _living(self._pids, answers)
        failed = _first_error(answers)
        if asked.verb is Verb.RESTORE and self._lacks_memory(answers):
            self._full = f"restore failed on {failed}"
            return self._ask(Verb.STATE, self._pids)
        if failed:
            before = f"{self._full}; then " if self._full else ""
            why = f"{before}{asked.verb} failed on {failed}"
            return End(Outcome.UNKNOWN, tuple(self._pids), why)
        if self._full:
            return self._leave_again(asked.verb, _states(answers))
        match asked.verb:
            case Verb.STATE if self._was is None:
                return self._look(_states(answers))
            case Verb.STATE:
                return self._verify(_states(answers))
            case Verb.RESTORE:
                return self._unlock()
            case _:
                return self._ask(Verb.STATE, self._pids)

    def _look(self, states: dict[int, DeviceState]) -> Step:
        self._was = states
        for pid, state in states.items():
            if state not in self._allowed:
                return End(Outcome.UNKNOWN, tuple(self._pids), f"process {pid} is {state}")
        saved = [pid for pid in self._pids if states[pid] is DeviceState.CHECKPOINTED]
        return self._ask(Verb.RESTORE, saved) if saved else self._unlock()

    def _lacks_memory(self, answers: Answers) -> bool:
        """Whether that is all that went wrong, of processes that all were off."""
        kinds = {a.error for a in answers.values()} - {None, DeviceErrorKind.GONE}
        assert self._was is not None
        were = {self._was[pid] for pid in self._pids}
        return kinds == {DeviceErrorKind.OUT_OF_MEMORY} and were == {DeviceState.CHECKPOINTED}

    def _leave_again(self, asked: Verb, states: Mapping[int, DeviceState]) -> Step:
        """Take those off that came on; then see that all are off."""
        if asked is Verb.CHECKPOINT:
            return self._ask(Verb.STATE, self._pids)
        on = [pid for pid, state in states.items() if state is DeviceState.LOCKED]
        if on and not self._left:
            self._left = True
            return self._ask(Verb.CHECKPOINT, on)
        for pid, state in states.items():
            if state is not DeviceState.CHECKPOINTED:
                why = f"{self._full}; process {pid} is {state}"
                return End(Outcome.UNKNOWN, tuple(self._pids), why)
        return End(Outcome.OFF, tuple(self._pids), self._full)

    def _unlock(self) -> Step:
        assert self._was is not None
        return self._ask(Verb.UNLOCK, [p for p in self._pids if self._was[p] in _HELD])

    def _verify(self, states: dict[int, DeviceState]) -> Step:
        for pid, state in states.items():
            if state is not DeviceState.RUNNING:
                return End(Outcome.UNKNOWN, tuple(self._pids), f"process {pid} is still {state}")
        return End(Outcome.BACK, tuple(self._pids))

    def _ask(self, verb: Verb, pids: Sequence[int]) -> Step:
        if not pids:
            return End(Outcome.BACK, tuple(self._pids))
        devices = self._devices if verb is Verb.RESTORE else {}
        self._asked = Ask(verb, tuple(pids), devices=devices)
        return self._asked


class TakeOff:
    """From RUNNING to CHECKPOINTED for those of `pids` that use a device, or back."""

    def __init__(self, pids: Sequence[int], rules: LockRules) -> None:
        self._pids = list(pids)
        self._rules = rules
        self._asked: Ask | None = None
        self._tries = 0
        self._undo: PutBack | None = None
        self._why = ""  # it is being undone
        self._again = False  # when it is undone, try again

    def begin(self) -> Step:
        return self._ask(Verb.STATE)

    def answered(self, answers: Answers) -> Step:
        """The next step, given what came of the one before; no answers after a Pause."""
        if self._undo is not None:
            return self._undone(self._undo.answered(answers))
        asked = self._asked
        if asked is None:
            return self._lock()
        assert sorted(answers) == sorted(asked.pids)
        self._pids = _living(self._pids, answers)
        failed = _first_error(answers)
        match asked.verb:
            case Verb.STATE if failed:
                # Nothing was touched yet, so nothing has to be undone.
                return End(Outcome.REFUSED, (), f"nobody knows who uses a device: {failed}")
            case Verb.STATE:
                return self._find(_states(answers))
            case Verb.LOCK if failed:
                return self._not_locked(answers, failed)
            case Verb.LOCK:
                return self._ask(Verb.CHECKPOINT)
            case _ if failed:
                return self._give_up((), f"{asked.verb} failed on {failed}", again=False)
            case _:
                return End(Outcome.OFF, tuple(self._pids))

    def _find(self, states: dict[int, DeviceState]) -> Step:
        self._pids = [pid for pid in self._pids if states[pid] is not DeviceState.NONE]
        for pid in self._pids:
            if states[pid] is not DeviceState.RUNNING:
                return End(Outcome.REFUSED, (), f"process {pid} is {states[pid]} already")
        return self._lock()

    def _lock(self) -> Step:
        self._tries += 1
        return self._ask(Verb.LOCK, self._rules.first_ms << (self._tries - 1))

    def _not_locked(self, answers: Answers, failed: str) -> Step:
        locked = [pid for pid, answer in sorted(answers.items()) if answer.error is None]
        kinds = {answer.error for answer in answers.values()}
        if kinds <= {None, DeviceErrorKind.GONE, DeviceErrorKind.NOT_READY}:
            limit_ms = self._rules.first_ms << (self._tries - 1)
            why = f"its work on the device was not done within {limit_ms} ms ({failed})"
            return self._give_up(locked, why, again=self._tries < self._rules.tries)
        return self._give_up(locked, f"lock failed on {failed}", again=False)

    def _give_up(self, locked: Sequence[int], why: str, again: bool) -> Step:
        self._why, self._again = why, again
        self._undo = PutBack(self._pids, locked=locked)
        return self._undone(self._undo.begin())

    def _undone(self, step: Step) -> Step:
        if not isinstance(step, End):
            return step
        self._undo = self._asked = None
        self._pids = list(step.pids)
        if step.outcome is not Outcome.BACK:
            return End(Outcome.UNKNOWN, step.pids, f"{self._why}; undoing that, {step.why}")
        if not self._again:
            return End(Outcome.REFUSED, step.pids, self._why)
        return Pause(self._rules.pause_ms)

    def _ask(self, verb: Verb, limit_ms: int = 0) -> Step:
        if not self._pids:
            return End(Outcome.OFF)
        self._asked = Ask(verb, tuple(self._pids), limit_ms)
        return self._asked


def _living(pids: Sequence[int], answers: Answers) -> list[int]:
    return [
        pid for pid in pids if pid not in answers or answers[pid].error is not DeviceErrorKind.GONE
    ]


def _states(answers: Answers) -> dict[int, DeviceState]:
    return {pid: a.state for pid, a in sorted(answers.items()) if a.state is not None}


def _first_error(answers: Answers) -> str:
    """Of a process that lives."""
    for pid, answer in sorted(answers.items()):
        if answer.error is not None and answer.error is not DeviceErrorKind.GONE:
            return f"process {pid}: {answer.text or answer.error}"
    return ""
