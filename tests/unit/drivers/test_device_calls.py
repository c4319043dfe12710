"""The process that makes the calls on GPUs, with the real bindings and a driver without a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import fake_cuda

from onefleet.drivers import device_calls, device_lines
from onefleet.drivers.device_checkpoint import DeviceErrorKind, DeviceState
from onefleet.drivers.device_cut import Answer, Ask, Verb
from onefleet.drivers.device_fake import FakeDevices, FakeProcess
from onefleet.drivers.proof import FACTOR, GPU_COUNTER, MASK

A, B = (f"GPU-{d * 8}-{d * 4}-{d * 4}-{d * 4}-{d * 12}" for d in "ab")


class Caller:
    """A running `device_calls`, as a supervisor speaks to it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "onefleet.drivers.device_calls"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def send(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(line), file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, verb: Verb, *pids: int, **more: Any) -> dict[int, Answer]:
        return device_lines.heard(self.send(device_lines.to_line(Ask(verb, pids, **more))))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("cuda-bindings is not installed")
    return fake_cuda.build(tmp_path_factory.mktemp("libcuda"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "calls"


@pytest.fixture
def caller(library: Path, log: Path) -> Iterator[Caller]:
    made = Caller({**os.environ, "LD_LIBRARY_PATH": str(library), "FAKE_CUDA_LOG": str(log)})
    yield made
    made.process.kill()
    made.process.communicate()


def test_the_calls_reach_the_driver_as_they_are_meant(caller: Caller, log: Path) -> None:
    first, second = 110, 111
    assert caller.ask(Verb.STATE, first) == {first: Answer(DeviceState.RUNNING)}
    assert caller.ask(Verb.LOCK, first, limit_ms=1234) == {first: Answer()}
    assert caller.ask(Verb.STATE, first) == {first: Answer(DeviceState.LOCKED)}
    assert caller.ask(Verb.CHECKPOINT, first) == {first: Answer()}
    assert caller.ask(Verb.STATE, first, second) == {
        first: Answer(DeviceState.CHECKPOINTED),
        second: Answer(DeviceState.RUNNING),
    }
    assert caller.ask(Verb.RESTORE, first, devices={A: B, B: A}) == {first: Answer()}
    assert caller.ask(Verb.UNLOCK, first) == {first: Answer()}
    a, b = "a" * 32, "b" * 32
    assert log.read_text().splitlines() == [
        f"lock {first} 1234",
        f"checkpoint {first} none",
        f"restore {first} init 1 {a}>{b} {b}>{a}",
        f"unlock {first}",
    ]


def test_the_same_devices_need_no_map(caller: Caller, log: Path) -> None:
    pid = 110
    for verb in (Verb.LOCK, Verb.CHECKPOINT, Verb.RESTORE):
        assert caller.ask(verb, pid) == {pid: Answer()}
    assert log.read_text().splitlines()[-1] == f"restore {pid} init 1"


def test_processes_are_called_at_the_same_time(caller: Caller) -> None:
    caller.ask(Verb.STATE, 1)  # the bindings are loaded
    began = time.monotonic()
    pids = (102, 202, 302, 402, 502, 602)
    assert caller.ask(Verb.LOCK, *pids) == dict.fromkeys(pids, Answer())
    assert time.monotonic() - began < 0.3 * 4


def test_an_error_of_a_process_that_lives_is_told(caller: Caller) -> None:
    init = 1
    assert caller.ask(Verb.LOCK, init, limit_ms=5)[init] == Answer(
        error=DeviceErrorKind.NOT_READY,
        text="CUDA_ERROR_NOT_READY (600) from cuCheckpointProcessLock",
    )
    assert caller.ask(Verb.UNLOCK, init)[init].error is DeviceErrorKind.ILLEGAL_STATE


def test_a_process_without_cuda_uses_no_device(caller: Caller) -> None:
    plain = subprocess.Popen(["sleep", "60"])
    try:
        if plain.pid < 1000:
            pytest.skip("the driver without a GPU takes low process ids for users of it")
        assert caller.ask(Verb.STATE, plain.pid)[plain.pid] == Answer(DeviceState.NONE)
    finally:
        plain.kill()
        plain.wait()


def test_a_process_that_has_ended_is_gone(caller: Caller) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    answer = caller.ask(Verb.CHECKPOINT, ended.pid)[ended.pid]
    assert answer == Answer(error=DeviceErrorKind.GONE, text="it has ended")


def test_the_node_is_described_by_its_management_library(caller: Caller) -> None:
    assert caller.send({"verb": "node"}) == {
        "driver": "580.95.05",
        "gpus": [
            {
                "name": f"GPU-0000000{n}-0000-0000-0000-000000000000",
                "product": "NVIDIA H100",
                "free_bytes": (80 - n) << 30,
                "used_bytes": n << 30,
                "holders": [[n * 10 + i, 1 << 20] for i in ((1, 2, 3) if n == 1 else (1,))],
            }
            for n in (1, 2)
        ],
    }


def test_the_counter_of_the_proof_keeps_its_numbers_on_the_gpu(library: Path, log: Path) -> None:
    counter = subprocess.Popen(
        [*GPU_COUNTER],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(library), "FAKE_CUDA_LOG": str(log)},
    )
    assert counter.stdout is not None
    try:
        x = 1
        for n in range(1, 21):
            x = (x * FACTOR + n) & MASK
            assert counter.stdout.readline() == f"{n} {x}\n"
    finally:
        counter.kill()
        counter.communicate()


def test_without_a_driver_every_answer_says_so() -> None:
    caller = Caller(dict(os.environ))
    try:
        if "failed" not in caller.send({"verb": "node"}):
            pytest.skip("this machine has an NVIDIA driver")
        state = caller.ask(Verb.STATE, os.getpid())[os.getpid()]
        assert state.error is DeviceErrorKind.NOT_SUPPORTED
    finally:
        caller.process.kill()
        caller.process.communicate()


class Hanging(FakeDevices):
    """A driver whose lock of one process does not return."""

    def lock(self, pid: int, limit_ms: int) -> None:
        if pid == 11:
            time.sleep(0.4)
        super().lock(pid, limit_ms)


def test_a_call_that_hangs_holds_up_its_own_process_only() -> None:
    devices = Hanging({"gpu0": 1 << 30})
    for pid in (10, 11):
        devices.processes[pid] = FakeProcess(("gpu0",))
    lanes = device_calls.Lanes(devices, lambda pid: True)
    answers = lanes.ask(Ask(Verb.LOCK, (10, 11)), 0.1)
    assert (answers[10], answers[11].error) == (Answer(), DeviceErrorKind.NO_ANSWER)
    assert lanes.ask(Ask(Verb.STATE, (10,)), 0.1) == {10: Answer(DeviceState.LOCKED)}
    # What is asked next waits for the call that hung, and hears what it did.
    assert lanes.ask(Ask(Verb.STATE, (11,)), 5) == {11: Answer(DeviceState.LOCKED)}
