"""Real PyTorch training, over gloo: saved, restored and moved, with the same bits at the end."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from onefleet.domain.gang import threads
from onefleet.drivers.base import WorkerState
from onefleet.drivers.criu import CriuDriver
from onefleet.drivers.criu_setup import CriuTool
from onefleet.drivers.rights import rights

from .conftest import Bench
from .gangs import Gang

pytestmark = [
    pytest.mark.criu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not here"),
]
NEEDS_ROOT = pytest.mark.skipif(
    rights().user_namespace, reason="what it saves is a limit of ordinary users"
)

#: Data-parallel training as torch's documentation has it; not a line of it knows of suspends.
DDP = textwrap.dedent("""
    import hashlib, os, sys, time, warnings
    warnings.simplefilter("ignore")
    import torch, torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    steps = int(sys.argv[1])
    torch.manual_seed(7)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    net = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.Tanh(), torch.nn.Linear(512, 8))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(1, steps + 1):
        while step > steps - 3 and not os.path.exists("finish"): time.sleep(0.01)
        generator = torch.Generator().manual_seed(step * 1000 + rank)
        x = torch.randn(32, 64, generator=generator)
        loss = ((model(x) - x[:, :8] * 2) ** 2).mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        print(step, loss.item().hex(), flush=True)
        time.sleep(0.02)
    digest = hashlib.sha256()
    for value in model.state_dict().values(): digest.update(value.numpy().tobytes())
    print(digest.hexdigest(), flush=True)
    dist.destroy_process_group()
""")

LOADER = textwrap.dedent("""
    import hashlib, os, sys, time
    import torch
    from torch.utils.data import DataLoader, Dataset
    steps = int(sys.argv[1])
    class Numbers(Dataset):
        def __len__(self): return steps * 8
        def __getitem__(self, i):
            return torch.full((16,), float(i)).sin()
    torch.manual_seed(3)
    model = torch.nn.Linear(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = DataLoader(Numbers(), batch_size=8, num_workers=2, shuffle=True)
    for step, x in enumerate(batches, 1):
        while step > steps - 3 and not os.path.exists("finish"): time.sleep(0.01)
        loss = model(x).pow(2).mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        print(step, loss.item().hex(), flush=True)
        time.sleep(0.002)
    print(hashlib.sha256(model.weight.detach().numpy().tobytes()).hexdigest(), flush=True)
""")
STEPS = 300


def ddp(tool: CriuTool, root: Path) -> Gang:
    command = (sys.executable, "-I", "-u", "-c", DDP, str(STEPS))
    return Gang(CriuDriver(lambda: tool), root, 2, command)


@pytest.fixture(scope="module")
def undisturbed(can_criu: CriuTool, tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    gang = ddp(can_criu, tmp_path_factory.mktemp("alone"))

    async def scenario() -> list[list[str]]:
        await gang.start()
        return await gang.ended()

    try:
        return asyncio.run(scenario())
    finally:
        gang.close()


@pytest.fixture
def gang(can_criu: CriuTool, tmp_path: Path) -> Iterator[Gang]:
    gang = ddp(can_criu, tmp_path)
    yield gang
    gang.close()


def test_data_parallel_training_is_suspended_moved_and_gone_back(
    gang: Gang, undisturbed: list[list[str]]
) -> None:
    """Suspended as a whole and brought back elsewhere; checkpointed, killed, and brought back; and
    one rank moved alone.
    """

    async def scenario() -> None:
        driver = gang.driver
        await gang.start()
        gang.goes_on(10)
        await gang.save("first")
        images = [gang.image(rank, "first") for rank in (0, 1)]
        for rank in (0, 1):
            gang.move(rank, "elsewhere")
        await gang.each(lambda r: driver.restore(gang.spec(r), images[r], hold=True))
        await gang.finish(commit=True)
        gang.goes_on(10)
        await gang.save("kept", leave_running=True)
        gang.goes_on(10)
        await gang.stop()
        await gang.restore("kept")
        gang.goes_on(5)
        await driver.save(gang.ranks[1].folder, alone := gang.image(1, "alone"))
        gang.move(1, "further")
        await driver.restore(gang.spec(1), alone)
        gang.goes_on(5)
        assert await gang.ended() == undisturbed

    asyncio.run(scenario())


@pytest.fixture
def criu(can_criu: CriuTool, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(CriuDriver(lambda: can_criu), tmp_path)
    yield bench
    bench.close()


def test_torchrun_with_its_workers_in_one_cell(
    criu: Bench, undisturbed: list[list[str]], tmp_path: Path
) -> None:
    """The launcher, its rendezvous and both workers are one process tree."""
    (criu.work / "train.py").write_text(DDP)
    temporary = str(tmp_path)
    torchrun = (sys.executable, "-I", "-u", "-m", "torch.distributed.run")
    spec = criu.spec_of(
        *(*torchrun, "--nproc-per-node=2", "--redirects=1", "--log-dir=logs", "train.py"),
        str(STEPS),
        environment=tuple({**threads(1), "HOME": temporary, "TMPDIR": temporary}.items()),
    )

    def said(rank: int) -> list[str]:
        found = sorted(criu.work.glob(f"logs/*/attempt_0/{rank}/stdout.log"))
        return found[0].read_text().splitlines() if found else []

    async def scenario() -> None:
        await criu.driver.start(spec)
        for number in range(2):
            seen = len(said(1))
            async with asyncio.timeout(120):
                while len(said(1)) < seen + 10:
                    status = await criu.driver.status(criu.folder)
                    assert status.state is WorkerState.RUNNING, (status, criu.err())
                    await asyncio.sleep(0.05)
            await criu.driver.save(criu.folder, criu.image(f"image{number}"))
            await criu.driver.restore(spec, criu.image(f"image{number}"))
        (criu.work / "finish").touch()
        async with asyncio.timeout(120):
            while (await criu.driver.status(criu.folder)).state is not WorkerState.ENDED:
                await asyncio.sleep(0.05)
        assert (await criu.driver.status(criu.folder)).exit_code == 0, criu.err()
        assert [said(0), said(1)] == undisturbed

    asyncio.run(scenario())


@NEEDS_ROOT
def test_loader_processes_go_on_with_their_queues(criu: Bench) -> None:
    async def run(disturb: bool, name: str) -> list[str]:
        criu.folder = criu.root / "workers" / name
        (criu.work / "finish").unlink(missing_ok=True)
        command = (sys.executable, "-I", "-u", "-c", LOADER, "150")
        # Not TMPDIR: the path of a socket in it would be too long.
        told = {**threads(1), "TORCHINDUCTOR_CACHE_DIR": str(criu.root)}
        spec = criu.spec_of(*command, environment=tuple(told.items()))
        await criu.driver.start(spec)
        for number in range(2 if disturb else 0):
            criu.wait_lines(30 * (number + 1))
            await criu.driver.save(criu.folder, criu.image(f"image{number}"))
            await criu.driver.restore(spec, criu.image(f"image{number}"))
        (criu.work / "finish").touch()
        criu.wait_lines(151)
        async with asyncio.timeout(60):
            while (await criu.driver.status(criu.folder)).state is not WorkerState.ENDED:
                await asyncio.sleep(0.02)
        assert (await criu.driver.status(criu.folder)).exit_code == 0, criu.err()
        return criu.out().splitlines()

    async def scenario() -> None:
        assert await run(True, "disturbed") == await run(False, "alone")

    asyncio.run(scenario())
