"""A gang's private network, and what its workers are told of it.

Each worker has a cell of its own, as if it were a machine with one process. Its address and its
name come from its rank alone. So they are the same wherever the worker is brought back, and the
gang's connections outlive a move.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

#: The network that every gang has to itself; nothing outside its cells sees it.
NETWORK, PREFIX_BITS = (10, 77), 16
#: Rank 0 is .0.2: the network's own address and the usual one of a gateway stay free.
_FIRST = 2
#: The most workers that the addresses suffice for.
WORKERS_MAX = 2**16 - _FIRST - 1
#: The name of a worker's network device inside its cell.
DEVICE = "eth0"
#: torch.distributed's own default. In a private network nobody else can have taken it.
PORT = 29_500
#: Where a gang without a private network looks for a port: below those that systems hand out.
_PORTS = range(20_000, 30_000)
#: A hold that nobody ends within this time ends by itself, and the worker runs (on).
HOLD_MS = 120_000
#: A gang that has not been saved whole within this time of its order runs on. It is well under
#: HOLD_MS: so when the last worker was saved the first one still stood, and what they were saved
#: as is of one moment.
CUT_LIMIT_MS = 90_000


@dataclass(frozen=True, slots=True)
class GangPlace:
    """One worker's place in its gang.

    gang: names the network; the same on all nodes, and as long as any worker is in it. node: the
    address of this machine for the others, and nodes: those of the other machines that have a
    worker of this gang; both empty for a gang that lies on one machine.
    """

    gang: str
    rank: int
    workers: int
    node: str = ""
    nodes: tuple[str, ...] = ()


def address(rank: int) -> str:
    """The IPv4 address of a rank."""
    if not 0 <= rank < WORKERS_MAX:
        raise ValueError(f"rank {rank} is not in 0..{WORKERS_MAX - 1}")
    high, low = divmod(rank + _FIRST, 256)
    return f"{NETWORK[0]}.{NETWORK[1]}.{high}.{low}"


def hostname(rank: int) -> str:
    """The name of a rank's cell, which all of the gang can resolve."""
    return f"rank{rank}"


def environment(place: GangPlace) -> dict[str, str]:
    """What torch.distributed and its like read, for a worker in a cell of its own.

    A worker is alone on its "machine": its local rank is 0, whatever it shares a node with.
    """
    return _ranks(place) | {
        "MASTER_ADDR": address(0),
        "MASTER_PORT": str(PORT),
        "GLOO_SOCKET_IFNAME": DEVICE,
        "NCCL_SOCKET_IFNAME": DEVICE,
    }


def shared_environment(place: GangPlace, master: str = "127.0.0.1") -> dict[str, str]:
    """The same for workers without cells, which share their machines' networks.

    master: the address of rank 0's node. The port follows from the gang's id.
    """
    digest = hashlib.sha256(place.gang.encode()).digest()
    port = _PORTS[int.from_bytes(digest[:4], "big") % len(_PORTS)]
    return _ranks(place) | {"MASTER_ADDR": master, "MASTER_PORT": str(port)}


def threads(width: int) -> dict[str, str]:
    """How many threads numeric libraries start, for a worker of that nominal width in cores.

    They would else take it from the cores that they are bound to when they start, and as many
    threads as then would sum in another order. A worker keeps this count at every size: it is
    started with it, and is then bound to more or fewer cores without being told.
    """
    count = str(max(width, 1))
    return {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count}


def _ranks(place: GangPlace) -> dict[str, str]:
    rank, workers = str(place.rank), str(place.workers)
    return {
        "RANK": rank,
        "WORLD_SIZE": workers,
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": rank,
        "ONEFLEET_RANK": rank,
        "ONEFLEET_WORKERS": workers,
    }
