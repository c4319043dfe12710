"""A program whose state is in the memory of a GPU: what it prints, only an unbroken run prints.

usage: python -m onefleet.drivers.gpu_counter

The counter of `drivers.proof`, whose two numbers live on the first GPU that it sees.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any

from onefleet.drivers.cuda_checkpoint import load
from onefleet.drivers.proof import FACTOR, MASK

#: Enough that it cannot be taken for what a context needs.
HELD_BYTES = 64 << 20
_PAUSE_S = 0.002


class Memory:
    """HELD_BYTES on the first GPU, of which two numbers are used. Raises SystemExit."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._call("cuInit", 0)
        (device,) = self._call("cuDeviceGet", 0)
        (context,) = self._call("cuDevicePrimaryCtxRetain", device)
        self._call("cuCtxSetCurrent", context)
        (self._place,) = self._call("cuMemAlloc", HELD_BYTES)
        self._numbers = (ctypes.c_uint64 * 2)()

    def read(self) -> tuple[int, int]:
        size = ctypes.sizeof(self._numbers)
        self._call("cuMemcpyDtoH", ctypes.addressof(self._numbers), self._place, size)
        return self._numbers[0], self._numbers[1]

    def write(self, n: int, x: int) -> None:
        self._numbers[:] = [n, x]
        size = ctypes.sizeof(self._numbers)
        self._call("cuMemcpyHtoD", self._place, ctypes.addressof(self._numbers), size)
        self._numbers[:] = [0, 0]  # nothing of it stays here

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        code, *values = getattr(self._driver, name)(*arguments)
        if int(code):
            raise SystemExit(f"{name}: {code.name}")
        return tuple(values)


def main() -> None:
    memory = Memory(load())
    memory.write(0, 1)
    while True:
        n, x = memory.read()
        n += 1
        x = (x * FACTOR + n) & MASK
        memory.write(n, x)
        sys.stdout.write(f"{n} {x}\n")
        sys.stdout.flush()
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()
