"""Off the devices and back: whatever fails at whichever call, the end that is told is true."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from onefleet.drivers.device_checkpoint import DeviceError, DeviceErrorKind, DeviceState
from onefleet.drivers.device_cut import (
    Answer,
    Answers,
    Ask,
    End,
    LockRules,
    Outcome,
    Pause,
    PutBack,
    TakeOff,
    Verb,
)
from onefleet.drivers.device_fake import FakeDevices, FakeProcess, Fault

RULES = LockRules(tries=3, first_ms=100, pause_ms=10)
SIZE = 1 << 20
KINDS = DeviceErrorKind


def a_node(processes: int, devices: int = 2) -> FakeDevices:
    """Processes 10, 11, .., one device each as far as there are some, their numbers 10, 11, .."""
    node = FakeDevices({f"gpu{n}": 8 * SIZE for n in range(devices)})
    for n in range(processes):
        node.processes[10 + n] = FakeProcess((f"gpu{n % devices}",), SIZE, number=10 + n)
    return node


def call(node: FakeDevices, ask: Ask, pid: int) -> Answer:
    try:
        match ask.verb:
            case Verb.STATE:
                return Answer(node.state(pid))
            case Verb.LOCK:
                node.lock(pid, ask.limit_ms)
            case Verb.CHECKPOINT:
                node.checkpoint(pid)
            case Verb.RESTORE:
                node.restore(pid, ask.devices)
            case Verb.UNLOCK:
                node.unlock(pid)
    except DeviceError as error:
        return Answer(error=error.kind, text=error.text)
    return Answer()


def carry_out(
    machine: TakeOff | PutBack,
    node: FakeDevices,
    asked: list[Ask | Pause] | None = None,
    between: Callable[[], None] = lambda: None,
) -> End:
    step = machine.begin()
    while not isinstance(step, End):
        if asked is not None:
            asked.append(step)
        answers: Answers = {}
        if isinstance(step, Ask):
            answers = {pid: call(node, step, pid) for pid in step.pids}
        else:
            between()
        step = machine.answered(answers)
    return step


def verbs(asked: list[Ask | Pause]) -> list[str]:
    return [str(step.verb) if isinstance(step, Ask) else "pause" for step in asked]


def states(node: FakeDevices) -> set[DeviceState]:
    return {process.state for process in node.processes.values()}


def test_all_are_locked_before_one_is_taken_off() -> None:
    node, asked = a_node(3), list[Ask | Pause]()
    end = carry_out(TakeOff([9, 10, 11, 12], RULES), unknown(node, 9), asked)
    assert end == End(Outcome.OFF, (10, 11, 12))
    assert [(a.verb, a.pids) for a in asked if isinstance(a, Ask)] == [
        (Verb.STATE, (9, 10, 11, 12)),
        (Verb.LOCK, (10, 11, 12)),
        (Verb.CHECKPOINT, (10, 11, 12)),
    ]
    assert states(node) - {DeviceState.NONE} == {DeviceState.CHECKPOINTED}
    assert node.used("gpu0") == node.used("gpu1") == 0
    assert not node.work(10)


def unknown(node: FakeDevices, pid: int) -> FakeDevices:
    """A process that uses no device."""
    node.processes[pid] = FakeProcess((), 0, DeviceState.NONE, number=None)
    return node


def test_a_tree_that_uses_no_device_is_only_asked() -> None:
    asked = list[Ask | Pause]()
    assert carry_out(TakeOff([9], RULES), unknown(a_node(0), 9), asked) == End(Outcome.OFF)
    assert verbs(asked) == ["state"]


def test_back_on_other_devices_with_the_same_numbers() -> None:
    node, asked = a_node(2, devices=4), list[Ask | Pause]()
    carry_out(TakeOff([10, 11], RULES), node)
    moved = {"gpu0": "gpu2", "gpu1": "gpu3"}
    end = carry_out(PutBack([10, 11], moved, strict=True), node, asked)
    assert end == End(Outcome.BACK, (10, 11))
    assert verbs(asked) == ["state", "restore", "unlock", "state"]
    assert [p.devices for p in node.processes.values()] == [("gpu2",), ("gpu3",)]
    assert [p.number for p in node.processes.values()] == [10, 11]
    assert node.work(10)


def test_work_that_waits_for_other_work_is_let_go_and_tried_again() -> None:
    """The lock limit passes while one is held; all run for a moment, and the next try fits."""
    node, asked = a_node(2), list[Ask | Pause]()
    node.processes[11].busy_ms = 10_000

    def let_run() -> None:
        assert states(node) == {DeviceState.RUNNING}
        node.processes[11].busy_ms -= 9_850

    assert carry_out(TakeOff([10, 11], RULES), node, asked, let_run).outcome is Outcome.OFF
    locks = [a.limit_ms for a in asked if isinstance(a, Ask) and a.verb is Verb.LOCK]
    assert locks == [100, 200]
    assert verbs(asked)[1:5] == ["lock", "unlock", "state", "pause"]


def test_work_that_is_never_done_leaves_all_running_and_says_so() -> None:
    node, asked = a_node(2), list[Ask | Pause]()
    node.processes[10].busy_ms = 1_000_000
    end = carry_out(TakeOff([10, 11], RULES), node, asked)
    assert (end.outcome, states(node)) == (Outcome.REFUSED, {DeviceState.RUNNING})
    assert end.why == (
        "its work on the device was not done within 400 ms (process 10: device not ready)"
    )
    assert verbs(asked).count("lock") == RULES.tries


def test_a_process_in_somebody_elses_hands_is_not_touched() -> None:
    node, asked = a_node(2), list[Ask | Pause]()
    node.processes[11].state = DeviceState.LOCKED
    end = carry_out(TakeOff([10, 11], RULES), node, asked)
    assert end == End(Outcome.REFUSED, (), "process 11 is locked already")
    assert verbs(asked) == ["state"]


def test_one_that_does_not_answer_while_another_is_locked_is_asked_after_that() -> None:
    """Processes that share device memory: the locked one is let go before anybody is asked."""
    node, asked = a_node(2), list[Ask | Pause]()
    node.processes[11].faults[Verb.LOCK] = [Fault(KINDS.NO_ANSWER, done=True)]
    end = carry_out(TakeOff([10, 11], RULES), node, asked)
    assert (end.outcome, states(node)) == (Outcome.REFUSED, {DeviceState.RUNNING})
    assert [(a.verb, a.pids) for a in asked if isinstance(a, Ask)][1:4] == [
        (Verb.LOCK, (10, 11)),
        (Verb.UNLOCK, (10,)),
        (Verb.STATE, (10, 11)),
    ]


def test_what_was_made_from_an_image_has_to_be_checkpointed() -> None:
    node = a_node(1)
    assert carry_out(PutBack([10], strict=True), node) == End(
        Outcome.UNKNOWN, (10,), "process 10 is running"
    )


def test_too_little_memory_on_the_way_back_is_told() -> None:
    node = a_node(1)
    carry_out(TakeOff([10], RULES), node)
    node.processes[99] = FakeProcess(("gpu0",), 8 * SIZE)
    end = carry_out(PutBack([10], strict=True), node)
    assert end.why == "restore failed on process 10: out of memory"
    del node.processes[99]
    assert carry_out(PutBack([10]), node).outcome is Outcome.UNKNOWN, "the real one stays broken"


def faults(verb: Verb) -> Iterator[Fault]:
    for kind in KINDS:
        yield Fault(kind)
        yield Fault(kind, done=True)
        if verb is not Verb.STATE and kind not in (KINDS.GONE, KINDS.NOT_READY):
            yield Fault(kind, leaves=DeviceState.FAILED)


CALLS = [(verb, nth) for verb in Verb for nth in range(3)]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_whatever_fails_on_the_way_off_the_end_is_true(processes: int) -> None:
    """Each call of each process with each fault, alone and with each other one after it."""
    pids = range(10, 10 + processes)
    seen = set()
    for first, second in itertools.product(CALLS, [None, *CALLS]):
        for fault, pid in itertools.product(faults(first[0]), pids):
            node = a_node(processes)
            node.processes[pid].faults[first[0]] = _at(first[1], fault)
            other = pids[-1] if pid != pids[-1] else pids[0]
            if second is not None and (other, second[0]) != (pid, first[0]):
                node.processes[other].faults[second[0]] = _at(second[1], Fault(KINDS.OTHER))
            end = carry_out(TakeOff(list(pids), RULES), node)
            seen.add(end.outcome)
            _is_true(end, node)
    assert seen == {Outcome.OFF, Outcome.REFUSED, Outcome.UNKNOWN}


@pytest.mark.parametrize("processes", [1, 2])
def test_whatever_fails_on_the_way_back_the_end_is_true(processes: int) -> None:
    pids = range(10, 10 + processes)
    seen = set()
    for (verb, nth), pid, strict in itertools.product(CALLS, pids, (True, False)):
        for fault in faults(verb):
            node = a_node(processes)
            carry_out(TakeOff(list(pids), RULES), node)
            node.processes[pid].faults[verb] = _at(nth, fault)
            end = carry_out(PutBack(list(pids), strict=strict), node)
            seen.add(end.outcome)
            _is_true(end, node)
    assert seen == {Outcome.OFF, Outcome.BACK, Outcome.UNKNOWN}


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_one_failure_that_the_driver_survives_costs_the_worker_nothing(processes: int) -> None:
    pids = range(10, 10 + processes)
    for verb, pid in itertools.product((Verb.STATE, Verb.LOCK, Verb.CHECKPOINT), pids):
        for fault in faults(verb):
            if fault.leaves is None:
                node = a_node(processes)
                node.processes[pid].faults[verb] = [fault]
                end = carry_out(TakeOff(list(pids), RULES), node)
                assert end.outcome in (Outcome.OFF, Outcome.REFUSED), (verb, pid, fault, end)


def _at(nth: int, fault: Fault) -> list[Fault | None]:
    return [*[None] * nth, fault]


def _is_true(end: End, node: FakeDevices) -> None:
    """What the end says is so; no number is lost unless the driver gave the process up."""
    held = {DeviceState.RUNNING, DeviceState.LOCKED, DeviceState.CHECKPOINTED}
    match end.outcome:
        case Outcome.OFF:
            assert states(node) <= {DeviceState.CHECKPOINTED}
            assert sorted(end.pids) == sorted(node.processes)
        case Outcome.BACK | Outcome.REFUSED:
            assert states(node) <= {DeviceState.RUNNING}
        case Outcome.UNKNOWN:
            assert end.why
    for pid, process in node.processes.items():
        if process.state in held:
            assert pid in (process.number, process.kept)
            assert process.number is None or process.kept is None
    if end.outcome is Outcome.REFUSED:
        assert end.why
        assert all(node.work(pid) for pid in node.processes)


@pytest.mark.parametrize("forgives", [True, False])
def test_who_finds_too_little_memory_is_off_again_and_nothing_is_lost(forgives: bool) -> None:
    """One of two comes on, the other does not: both are off, and tried again when there is room."""
    node = FakeDevices({"gpu0": 8 * SIZE, "gpu1": 8 * SIZE}, forgives)
    for pid in (10, 11):
        node.processes[pid] = FakeProcess((f"gpu{pid - 10}",), SIZE, number=pid)
    carry_out(TakeOff([10, 11], RULES), node)
    node.processes[99] = FakeProcess(("gpu1",), 8 * SIZE)
    asked = list[Ask | Pause]()
    end = carry_out(PutBack([10, 11]), node, asked)
    assert end == End(Outcome.OFF, (10, 11), "restore failed on process 11: out of memory")
    assert verbs(asked) == ["state", "restore", "state", "checkpoint", "state"]
    assert [node.processes[pid].kept for pid in (10, 11)] == [10, 11]
    del node.processes[99]
    end = carry_out(PutBack([10, 11]), node)
    assert end.outcome is (Outcome.BACK if forgives else Outcome.UNKNOWN)
    assert (end.why == "") is forgives
    if forgives:
        assert [node.work(pid) for pid in (10, 11)] == [True, True]


def test_what_is_not_all_off_again_is_not_said_to_be() -> None:
    for verb, fault in itertools.product((Verb.STATE, Verb.CHECKPOINT), faults(Verb.CHECKPOINT)):
        node = a_node(2)
        carry_out(TakeOff([10, 11], RULES), node)
        node.processes[99] = FakeProcess(("gpu1",), 8 * SIZE)
        nth = 1 if verb is Verb.STATE else 0
        node.processes[10].faults[verb] = _at(nth, fault)
        end = carry_out(PutBack([10, 11]), node)
        del node.processes[99]
        assert end.outcome in (Outcome.OFF, Outcome.UNKNOWN)
        assert "out of memory" in end.why
        _is_true(end, node)
