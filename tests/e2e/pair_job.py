"""Two processes that need each other for every step, over TCP: the test's data-parallel job.

usage: pair_job.py STEPS [FINISH]

Each step both mix what the other had into their own state; the last line is a digest of all of it.
They take their time until the file FINISH is there, and do not come to their end before.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time

PACE_S = 0.02


def peer(rank: int) -> socket.socket:
    """The other one, by the address that a gang is told."""
    at = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if rank == 0:
        with socket.create_server(at) as server:
            return server.accept()[0]
    while True:
        try:
            return socket.create_connection(at)
        except OSError:  # not there yet
            time.sleep(PACE_S)


def main() -> None:
    steps, rank = int(sys.argv[1]), int(os.environ["RANK"])
    finish = sys.argv[2] if len(sys.argv) > 2 else ""
    state = hashlib.sha256(b"%d" % rank).digest()
    with peer(rank) as other:
        for step in range(steps):
            while finish and not os.path.exists(finish):
                time.sleep(PACE_S)
                if step < steps - 1:
                    break
            other.sendall(state)
            theirs = b""
            while len(theirs) < len(state):
                theirs += other.recv(len(state) - len(theirs))
            state = hashlib.sha256(state + theirs).digest()
            print(f"step {step} {state[:4].hex()}", flush=True)
    print(state.hex(), flush=True)


if __name__ == "__main__":
    main()
