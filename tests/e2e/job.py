"""A deterministic program with some memory of its own: the test's training job.

usage: job.py STEPS [FINISH]

Each step mixes a few numbers into a state of 16 MB and prints a line; the last line is the
digest of the whole state, so that one lost or repeated step shows. It takes its time until the
file FINISH is there, and does not come to its end before.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from array import array

WORDS = 2_000_000
STRIDE = 4_001
PACE_S = 0.02


def main() -> None:
    steps, finish = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    state = array("Q", range(WORDS))
    carry = 1
    for step in range(steps):
        while finish and not os.path.exists(finish):
            time.sleep(PACE_S)
            if step < steps - 1:
                break
        for index in range(step % 97, WORDS, STRIDE):
            carry = (carry * 6364136223846793005 + state[index]) % 2**64
            state[index] = carry
        print(f"step {step} loss {carry / 2**64:.6f}", flush=True)
    print(hashlib.sha256(state.tobytes()).hexdigest(), flush=True)


if __name__ == "__main__":
    main()
