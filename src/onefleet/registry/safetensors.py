"""Reads safetensors files: the header is checked, the tensors' bytes are streamed.

The format: https://github.com/huggingface/safetensors. Eight bytes of header length, a JSON
header that names type, shape and byte range of each tensor, then the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from onefleet.domain.errors import InvalidRequest

HEADER_BYTES_MAX = 100_000_000  # the format's own limit
TENSORS_MAX = 200_000
DIMENSIONS_MAX = 8
ELEMENTS_MAX = 1 << 48

#: Bytes of one element.
ELEMENT_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1, "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file. shape: slowest dimension first, as the framework sees it."""

    path: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    def read(self) -> bytes:
        """All its bytes; for small tensors."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, a few MiB at a time. Raises InvalidRequest when the file became shorter."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            left = self.size_bytes
            while left:
                data = file.read(min(left, _CHUNK_BYTES))
                if not data:
                    raise _wrong(self.path, f'it ends within the tensor "{self.name[:80]}"')
                left -= len(data)
                yield data


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, by name.

    Raises InvalidRequest, naming the file and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_BYTES_MAX):
                raise _wrong(path, f"its header claims {length} bytes, the file has {size}")
            text = file.read(length)
    except OSError as error:
        raise _wrong(path, f"it cannot be read: {error.strerror or error}") from None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong(path, "its header is not JSON") from None
    if not isinstance(header, dict) or len(header) > TENSORS_MAX:
        raise _wrong(path, f"its header is not a table of at most {TENSORS_MAX} tensors")
    header.pop("__metadata__", None)
    found = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_apart(path, list(found.values()), size)
    return found


def _tensor(path: Path, name: str, entry: object, start: int) -> StoredTensor:
    fields = entry if isinstance(entry, dict) else {}
    kind, shape, span = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    short = f'the tensor "{name[:80]}"'
    if not isinstance(kind, str) or kind not in ELEMENT_BYTES:
        raise _wrong(path, f"{short} has the type {str(kind)[:40]}, which is not known here")
    if not _numbers(shape) or len(shape) > DIMENSIONS_MAX:
        raise _wrong(path, f"{short} has no good shape")
    elements = math.prod(shape)
    if not _numbers(span) or len(span) != 2 or elements > ELEMENTS_MAX:
        raise _wrong(path, f"{short} has no good byte range")
    size = elements * ELEMENT_BYTES[kind]
    if span[1] - span[0] != size:
        raise _wrong(path, f"{short} has {span[1] - span[0]} bytes, its shape needs {size}")
    return StoredTensor(path, name, kind, tuple(shape), start + span[0], size)


def _check_apart(path: Path, tensors: Sequence[StoredTensor], size: int) -> None:
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size_bytes)):
        if tensor.offset < end:
            raise _wrong(path, f'the tensors "{before[:80]}" and "{tensor.name[:80]}" overlap')
        end, before = tensor.offset + tensor.size_bytes, tensor.name
    if end > size:
        raise _wrong(path, f'the tensor "{before[:80]}" ends at byte {end}, the file at {size}')


def _numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value
    )


def _wrong(path: Path, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path} is no good safetensors file: {what}",
        why="the file is cut short, or its header lies",
        hint="get the file again and compare its size and digest with its source",
        param="source",
    )
