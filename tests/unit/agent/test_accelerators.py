"""Devices of every kind: what a worker is told of them, and how it is then saved."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests import fake_cuda

from onefleet.agent import accelerators
from onefleet.agent.accelerators import ACCELERATORS, SavedBy
from onefleet.agent.crew import Crew
from onefleet.agent.protocol import Start, WorkerKey
from onefleet.domain.fleet import CheckpointMode, Device, DeviceKind
from onefleet.domain.ids import DeviceId, Generation, WorkId
from onefleet.domain.layout import Layout
from onefleet.drivers.base import Capability, WorkerSpec
from onefleet.drivers.fake import FakeDriver
from onefleet.wire.agent import JobSpec, Order, OrderVerb

NCCL = {"NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_NVLS_ENABLE"}
KEY = WorkerKey(WorkId("job-1"), 0)


def device(kind: DeviceKind, number: int = 0, simulated: bool = False) -> Device:
    uuid = f"GPU-{number:08x}-0000-0000-0000-000000000000" if kind is DeviceKind.GPU else ""
    name = DeviceId(f"n1/{kind}{number}")
    return Device(name, kind, number, "a device", 1 << 30, simulated, uuid)


CORE, FPGA, ASIC = (device(k) for k in (DeviceKind.CPU, DeviceKind.FPGA, DeviceKind.ASIC))
GPU, OTHER_GPU = device(DeviceKind.GPU, 3), device(DeviceKind.GPU, 7)


def test_every_kind_says_who_saves_its_state() -> None:
    assert set(ACCELERATORS) == set(DeviceKind)
    for found in ACCELERATORS.values():
        assert bool(found.why_not) == (found.saved_by is SavedBy.NOBODY)


def test_a_worker_sees_its_own_gpus_by_uuid_and_no_other() -> None:
    told = accelerators.environment([CORE, OTHER_GPU, GPU], 1)
    assert told["CUDA_VISIBLE_DEVICES"] == f"{OTHER_GPU.uuid},{GPU.uuid}"
    assert accelerators.environment([CORE], 1)["CUDA_VISIBLE_DEVICES"] == ""
    simulated = device(DeviceKind.GPU, simulated=True)
    assert accelerators.environment([simulated], 1)["CUDA_VISIBLE_DEVICES"] == ""
    assert accelerators.gpus([CORE, GPU, simulated]) == (GPU.uuid,)
    assert accelerators.cores([CORE, GPU]) == (0,)


def test_only_a_gang_on_gpus_is_kept_from_sharing_their_memory() -> None:
    assert set(accelerators.environment([GPU], 2)) >= NCCL
    assert not NCCL & set(accelerators.environment([GPU], 1))
    assert not NCCL & set(accelerators.environment([CORE], 8))


@pytest.mark.parametrize(
    ("held", "workers", "gpus_why", "driver", "says"),
    [
        ([CORE], 8, "not proved", "", ""),
        ([GPU], 1, "", "570.1", ""),
        ([GPU], 1, "not proved", "570.1", "not proved"),
        ([GPU, OTHER_GPU], 1, "", "580.1", "more than one GPU cannot be saved: it is 580.1"),
        ([GPU], 2, "", "580.1", "needed is 590"),
        ([GPU], 2, "", "590.1", ""),
        ([CORE, FPGA], 1, "", "", "FPGA"),
        ([ASIC], 1, "", "", "ASIC"),
        ([device(DeviceKind.ASIC, simulated=True)], 1, "", "", ""),
    ],
)
def test_why_a_worker_cannot_be_saved_from_outside(
    held: Sequence[Device], workers: int, gpus_why: str, driver: str, says: str
) -> None:
    told = accelerators.why_not_saved(held, workers, gpus_why, driver)
    assert (says in told) if says else (told == "")


class Seen(FakeDriver):
    """Remembers what it was asked to start. gpus: what comes of trying to save theirs."""

    def __init__(self, mode: CheckpointMode, gpus: str = "") -> None:
        super().__init__(mode=mode)
        self.specs: list[WorkerSpec] = []
        self.tried: list[Sequence[str]] = []
        self._gpus_why = gpus

    async def probe_gpus(self, gpus: Sequence[str]) -> Capability:
        self.tried.append(gpus)
        mode = CheckpointMode.NONE if self._gpus_why else CheckpointMode.CRIU
        return Capability(mode, self._gpus_why, "")

    async def start(self, spec: WorkerSpec) -> None:
        self.specs.append(spec)
        await super().start(spec)


def a_crew(tmp_path: Path, devices: Sequence[Device], gpus: str = "") -> tuple[Crew, Seen, Seen]:
    local, criu = Seen(CheckpointMode.COOPERATIVE), Seen(CheckpointMode.CRIU, gpus)
    layout = Layout(tmp_path)
    layout.agent.mkdir(parents=True, exist_ok=True)
    return Crew(layout, {"local": local, "criu": criu}, devices), local, criu


def start(crew: Crew, devices: Sequence[Device], workers: int = 1, **environment: str) -> None:
    job = JobSpec(
        name="j",
        tenant_id="t",
        command=("true",),
        workers=workers,
        environment=tuple(environment.items()),
    )
    order = Order(
        work_id=KEY.work_id,
        rank=0,
        epoch=Generation(1),
        verb=OrderVerb.RUN,
        devices=tuple(d.id for d in devices),
        job=job,
    )
    asyncio.run(crew.perform(Start(KEY, order)))


@pytest.fixture
def driver_590(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onefleet.agent.crew.nvidia_driver", lambda: "590.44")


@pytest.mark.usefixtures("driver_590")
def test_a_job_on_gpus_is_saved_by_criu_where_that_was_proved(tmp_path: Path) -> None:
    crew, local, criu = a_crew(tmp_path, [CORE, GPU])
    asyncio.run(crew.prove())
    assert criu.tried == [(GPU.uuid,)]
    start(crew, [GPU])
    assert (local.specs, [spec.gpus for spec in criu.specs]) == ([], [(GPU.uuid,)])
    assert (crew.mode(KEY), crew.why_not_criu(KEY)) == (CheckpointMode.CRIU, "")


@pytest.mark.usefixtures("driver_590")
def test_the_next_agent_knows_what_was_proved(tmp_path: Path) -> None:
    crew, _, _ = a_crew(tmp_path, [CORE, GPU])
    asyncio.run(crew.prove())
    later, local, criu = a_crew(tmp_path, [CORE, GPU])
    assert asyncio.run(later.prepare())
    start(later, [GPU])
    assert (criu.tried, len(criu.specs), local.specs) == ([], 1, [])


@pytest.mark.parametrize(("held", "why"), [(GPU, "no room for it"), (FPGA, "FPGA")])
def test_a_job_on_what_nobody_saves_is_to_save_itself_and_says_why(
    tmp_path: Path, held: Device, why: str
) -> None:
    crew, local, criu = a_crew(tmp_path, [CORE, held], gpus="no room for it")
    asyncio.run(crew.prove())
    start(crew, [held])
    assert (len(local.specs), criu.specs) == (1, [])
    assert crew.mode(KEY) is CheckpointMode.COOPERATIVE
    assert why in crew.why_not_criu(KEY)


@pytest.mark.usefixtures("driver_590")
def test_a_jobs_own_settings_stand(tmp_path: Path) -> None:
    crew, _, criu = a_crew(tmp_path, [GPU])
    asyncio.run(crew.prove())
    start(crew, [GPU], workers=2, NCCL_P2P_DISABLE="0")
    told = dict(criu.specs[0].environment)
    assert (told["NCCL_P2P_DISABLE"], told["NCCL_SHM_DISABLE"]) == ("0", "1")


def test_a_gpu_is_known_by_its_uuid(tmp_path: Path) -> None:
    library = fake_cuda.build(tmp_path)
    program = (
        "from onefleet.agent.devices import NvidiaProbe, nvidia_driver\n"
        "for d in NvidiaProbe().discover('n1'): print(d.id, d.index, d.uuid, d.memory_bytes)\n"
        "print(nvidia_driver())"
    )
    said = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LD_LIBRARY_PATH": str(library)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    rest = "0000-0000-0000-000000000000"
    assert said[-3:] == [
        f"n1/gpu-00000001 0 GPU-00000001-{rest} {80 << 30}",
        f"n1/gpu-00000002 1 GPU-00000002-{rest} {80 << 30}",
        "580.95.05",
    ]
