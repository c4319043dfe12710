"""Addresses and environments of a gang's workers."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from onefleet.domain import gang
from onefleet.domain.gang import GangPlace


def test_every_rank_has_an_address_of_its_own_in_the_network() -> None:
    network = ip_network("10.77.0.0/16")
    found = [ip_address(gang.address(rank)) for rank in range(gang.WORKERS_MAX)]
    assert len(set(found)) == gang.WORKERS_MAX
    hosts = set(network.hosts())
    assert hosts.issuperset(found)
    assert [gang.address(rank) for rank in (0, 1, 253, 254)] == [
        *("10.77.0.2", "10.77.0.3", "10.77.0.255", "10.77.1.0"),
    ]
    for rank in (-1, gang.WORKERS_MAX):
        with pytest.raises(ValueError, match=str(rank)):
            gang.address(rank)


def test_a_worker_is_told_what_torch_reads() -> None:
    told = gang.environment(GangPlace("job-1", rank=3, workers=8))
    assert (told["RANK"], told["WORLD_SIZE"], told["LOCAL_RANK"]) == ("3", "8", "0")
    assert (told["MASTER_ADDR"], told["MASTER_PORT"]) == ("10.77.0.2", "29500")
    assert told["GLOO_SOCKET_IFNAME"] == "eth0"
    moved = GangPlace("job-1", rank=3, workers=8, node="192.0.2.1", nodes=("192.0.2.2",))
    assert gang.environment(moved) == told  # nothing of where it runs


def test_gangs_without_cells_have_ports_that_follow_from_their_ids() -> None:
    told = [gang.shared_environment(GangPlace(f"job-{n}", n, 8)) for n in range(50)]
    ports = {int(one["MASTER_PORT"]) for one in told}
    assert len(ports) >= 48
    assert all(20_000 <= port < 30_000 for port in ports)
    assert {one["MASTER_ADDR"] for one in told} == {"127.0.0.1"}
    one, other = (gang.shared_environment(GangPlace("job-1", rank, 2)) for rank in (0, 1))
    assert one["MASTER_PORT"] == other["MASTER_PORT"]


def test_numeric_libraries_start_as_many_threads_as_the_worker_is_wide() -> None:
    assert gang.threads(4)["OMP_NUM_THREADS"] == "4"
    assert set(gang.threads(0).values()) == {"1"}
