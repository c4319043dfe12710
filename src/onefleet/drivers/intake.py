"""Follows the page files of an image as criu writes them: on to the disk, and into their checksums.

criu writes pages one after the other and never goes back. So the disk can take them in, and the
other core can read them, before the dump is through; what is left to do while the worker stands
still is the end of each file.
"""

from __future__ import annotations

import io
import os

import xxhash

from onefleet.drivers import linux
from onefleet.drivers.page_check import PAGES

#: Read at a time; between two of these the dump may have come to its end.
_STEP = 8 << 20


class Intake:
    """Of one folder. `step` until the dump is through, then `checksum` for each file."""

    def __init__(self, folder: str, durable: bool) -> None:
        """durable: the folder is on a disk, which is to have the files."""
        self._folder = folder
        self._durable = durable
        self._files: dict[str, tuple[io.FileIO, xxhash.xxh3_128]] = {}
        self._buffer = memoryview(bytearray(_STEP))

    def step(self) -> bool:
        """Take in some of what is there; whether there may be more.

        It never raises, because criu is in the middle of its work: what could not be read is left
        for later.
        """
        try:
            for name in os.listdir(self._folder):
                if name.startswith(PAGES) and name not in self._files:
                    file = io.FileIO(f"{self._folder}/{name}")
                    self._files[name] = (file, xxhash.xxh3_128())
            more = [self._read(name) for name in sorted(self._files)]
        except OSError:
            self.close()
            return False
        return any(more)

    def _read(self, name: str) -> bool:
        file, state = self._files[name]
        count = file.readinto(self._buffer)
        state.update(self._buffer[:count])
        if count and self._durable:
            linux.start_writing(file.fileno())
        return count == _STEP

    def checksum(self, name: str) -> str | None:
        """XXH3 (128 bits, hex) of all of a file that nobody writes to any more; None for one that
        was not followed.
        """
        if name not in self._files:
            return None
        file, state = self._files[name]
        while count := file.readinto(self._buffer):
            state.update(self._buffer[:count])
        return state.hexdigest()

    def close(self) -> None:
        """Let go of the files."""
        for file, _ in self._files.values():
            file.close()
        self._files.clear()
