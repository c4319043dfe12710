"""A gang over several machines: network namespaces with a network between them stand for these."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from onefleet.domain.errors import Conflict
from onefleet.domain.gang import GangPlace
from onefleet.drivers import linux
from onefleet.drivers.criu import CriuDriver
from onefleet.drivers.criu_setup import CriuTool
from onefleet.drivers.netlink import Links
from onefleet.drivers.rights import rights

from .conftest import wait_for
from .gangs import Gang, ring

pytestmark = [
    pytest.mark.criu,
    pytest.mark.skipif(rights().user_namespace, reason="a tunnel between machines needs root"),
]


class Machine:
    """A network namespace with an address in the network of all machines."""

    def __init__(self, number: int) -> None:
        self.address = f"192.0.2.{number + 1}"
        self._holder = subprocess.Popen(["unshare", "-n", "sleep", "1000"])
        mine = os.readlink("/proc/self/ns/net")
        wait_for(lambda: os.readlink(f"/proc/{self.pid}/ns/net"), lambda there: there != mine)

    @property
    def pid(self) -> int:
        return self._holder.pid

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """What is started in here is started on this machine."""
        back = os.open("/proc/self/ns/net", os.O_RDONLY)
        there = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        linux.enter(there, linux.NEW_NETWORK)
        try:
            yield
        finally:
            linux.enter(back, linux.NEW_NETWORK)
            os.close(back)
            os.close(there)

    def plug_into(self, switch: Machine) -> None:
        name = f"to-{self.address}"[:15]
        with switch.inside():
            links = Links()
            links.add_pair(name, "eth0", self.pid, bytes([2, 0, 0, 0, 0, self.pid % 256]), 1500)
            links.join(links.index(name), links.index("switch"))
            links.close()
        with self.inside():
            linux.loopback_up()
            links = Links()
            links.set_up(links.index("eth0"))
            links.add_address(links.index("eth0"), self.address, 24)
            links.close()

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


@pytest.fixture
def machines() -> Iterator[Sequence[Machine]]:
    switch, *found = (Machine(number) for number in range(4))
    with switch.inside():
        links = Links()
        links.add_bridge("switch")
        links.close()
    for machine in found:
        machine.plug_into(switch)
    yield found
    for machine in (switch, *found):
        machine.close()


@pytest.fixture
def gang(can_criu: CriuTool, tmp_path: Path) -> Iterator[Gang]:
    gang = ring(CriuDriver(lambda: can_criu), tmp_path, 3, 500)
    yield gang
    gang.close()


def place(gang: Gang, rank: int, here: Machine, others: Sequence[Machine]) -> GangPlace:
    nodes = tuple(m.address for m in others if m is not here)
    return GangPlace(gang.name, rank, gang.workers, here.address, nodes)


def test_a_gang_runs_over_machines_and_its_ranks_move(
    gang: Gang, machines: Sequence[Machine]
) -> None:
    """Rank 2 goes from the second machine to a third one that was not the gang's, then to the
    first, where rank 0 is.
    """
    first, second, third = machines

    async def scenario() -> list[list[str]]:
        driver = gang.driver
        two = (first, second)
        for rank, machine in enumerate((first, second, second)):
            with machine.inside():
                await driver.start(gang.spec(rank, gang=place(gang, rank, machine, two)))
        gang.goes_on(20)
        for number, target in enumerate((third, first)):
            for rank, machine in ((0, first), (1, second)):
                others = [m.address for m in machines if m is not machine]
                await driver.connect(gang.ranks[rank].folder, machine.address, others)
            image = gang.image(2, f"image{number}")
            await driver.save(gang.ranks[2].folder, image)
            gang.move(2, f"machine{number}")
            with target.inside():
                await driver.restore(gang.spec(2, gang=place(gang, 2, target, machines)), image)
            gang.goes_on(20)
        return await gang.ended()

    said = asyncio.run(scenario())
    assert said[0] == said[1] == said[2]
    assert len(said[0]) == 501


def test_machines_that_have_no_address_for_each_other_are_refused(gang: Gang) -> None:
    async def scenario() -> None:
        nowhere = GangPlace(gang.name, 0, 3, "", ("192.0.2.9",))
        with pytest.raises(Conflict, match="cannot reach"):
            await gang.driver.start(gang.spec(0, gang=nowhere))
        await gang.driver.start(gang.spec(0))
        with pytest.raises(Conflict, match="cannot reach"):
            await gang.driver.connect(gang.ranks[0].folder, "", ["192.0.2.9"])
        await gang.driver.stop(gang.ranks[0].folder, 0)

    asyncio.run(scenario())
