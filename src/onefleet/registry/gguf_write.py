"""Writes GGUF files, version 3: the counterpart of `gguf.read_head`."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onefleet.registry.gguf import (
    ALIGNMENT_DEFAULT,
    MAGIC,
    SCALARS,
    Scalar,
    TensorKind,
    ValueKind,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One metadata entry. For an array, `kind` is that of its items and `value` a sequence."""

    key: str
    kind: ValueKind
    value: Scalar | Sequence[Scalar]


@dataclass(frozen=True, slots=True)
class Data:
    """A tensor to write. shape: fastest dimension first. chunks: gives its bytes, in order."""

    name: str
    kind: TensorKind
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes]]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) // self.kind.elements * self.kind.size_bytes


def write(path: Path, entries: Sequence[Entry], tensors: Sequence[Data]) -> int:
    """Write the file; return its size in bytes. A tensor's bytes are asked for once, in order."""
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(entries))]
    head += [_entry(entry) for entry in entries]
    offset = 0
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        head += [_string(tensor.name), shape, struct.pack("<IQ", tensor.kind.number, offset)]
        offset += _padded(tensor.size_bytes)
    text = b"".join(head)
    with path.open("wb") as file:
        file.write(text.ljust(_padded(len(text)), b"\0"))
        for tensor in tensors:
            written = sum(file.write(chunk) for chunk in tensor.chunks())
            assert written == tensor.size_bytes, f"{tensor.name}: {written} bytes"
            file.write(b"\0" * (_padded(written) - written))
        return file.tell()


def _entry(entry: Entry) -> bytes:
    if isinstance(entry.value, (str, int, float)):
        body = struct.pack("<I", entry.kind) + _value(entry.kind, entry.value)
    else:
        head = struct.pack("<IIQ", ValueKind.ARRAY, entry.kind, len(entry.value))
        body = head + b"".join(_value(entry.kind, item) for item in entry.value)
    return _string(entry.key) + body


def _value(kind: ValueKind, value: Scalar) -> bytes:
    if kind is ValueKind.STRING:
        assert isinstance(value, str)
        return _string(value)
    return SCALARS[kind].pack(value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(count: int) -> int:
    return -(-count // ALIGNMENT_DEFAULT) * ALIGNMENT_DEFAULT
