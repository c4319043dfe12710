"""One correction of criu's process tree image, without which a tree can be restored only once.

A daemon (a process that was orphaned, and whose session's leader has ended) belongs to the tree
because the worker's root adopts orphans. criu restores it under a stand-in for the dead leader,
but that stand-in ends before the root adopts again, so the daemon would fall to the cell's first
process, outside the tree, and the next save would have to refuse. So such processes are moved
into the root's session in the image: criu then restores them as the children that they were.

The file: two 32-bit marks, then per process a 32-bit size and a protobuf message of varints
(1 pid, 2 parent, 3 group, 4 session, 5 threads; criu's images/pstree.proto).
"""

from __future__ import annotations

import os
import struct

from onefleet.domain.errors import UpstreamFailed

_MARKS = 8
_PID, _SESSION = 1, 4


def keep_daemons(path: str) -> None:
    """Rewrite the file if it holds processes of a session without leader. Raises OSError."""
    with open(path, "rb") as file:
        data = file.read()
    entries = _parse(path, data)
    pids = [number for entry in entries for field, number in entry if field == _PID]
    root = pids[0]
    changed = [
        [(f, root if f == _SESSION and number not in pids else number) for f, number in entry]
        for entry in entries
    ]
    if changed == entries:
        return
    with open(f"{path}.new", "wb") as file:
        file.write(data[:_MARKS] + b"".join(_packed(entry) for entry in changed))
    os.replace(f"{path}.new", path)


def _parse(path: str, data: bytes) -> list[list[tuple[int, int]]]:
    entries: list[list[tuple[int, int]]] = []
    at = _MARKS
    try:
        while at < len(data):
            (size,) = struct.unpack_from("<I", data, at)
            at += 4
            end = at + size
            entry: list[tuple[int, int]] = []
            while at < end:
                key, at = _varint(data, at)
                if key & 7 != 0:
                    raise ValueError(f"field {key >> 3} is not a number")
                value, at = _varint(data, at)
                entry.append((key >> 3, value))
            entries.append(entry)
    except (IndexError, ValueError, struct.error) as error:
        raise UpstreamFailed(f"{path} is not a process tree as known", why=str(error)) from error
    return entries


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _packed(entry: list[tuple[int, int]]) -> bytes:
    body = b"".join(_encoded(field << 3) + _encoded(value) for field, value in entry)
    return struct.pack("<I", len(body)) + body


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
