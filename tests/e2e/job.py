"""A deterministic program with some memory of its own: the test's training job.

usage: job.py STEPS

Each step mixes a few numbers into a state of 16 MB and prints a line; the last line is the
digest of the whole state, so that one lost or repeated step shows.
"""

from __future__ import annotations

import hashlib
import sys
from array import array

WORDS = 2_000_000
STRIDE = 4_001


def main() -> None:
    steps = int(sys.argv[1])
    state = array("Q", range(WORDS))
    carry = 1
    for step in range(steps):
        for index in range(step % 97, WORDS, STRIDE):
            carry = (carry * 6364136223846793005 + state[index]) % 2**64
            state[index] = carry
        for _ in range(20_000):
            carry = (carry * 6364136223846793005 + 1442695040888963407) % 2**64
        print(f"step {step} loss {carry / 2**64:.6f}", flush=True)
    print(hashlib.sha256(state.tobytes()).hexdigest(), flush=True)


if __name__ == "__main__":
    main()
