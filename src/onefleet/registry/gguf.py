"""Reads the head of a GGUF file: metadata and tensor table, never the weights.

A model file comes from anywhere, and llama.cpp trusts much of what it says. So everything that a
header claims is checked against named limits and against the size of the file before the pool
takes it; each lie is an error of its own. Memory stays small whatever the header says: long
arrays are walked over, not kept.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little
endian). A string is a 64-bit length and UTF-8 bytes; tensor data begins at the next multiple of
the alignment after the head.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, NoReturn

from onefleet.domain.errors import InvalidRequest

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT_DEFAULT = 32

ENTRIES_MAX = 65_536  # metadata entries
TENSORS_MAX = 65_536
DIMENSIONS_MAX = 4
ELEMENTS_MAX = 1 << 48  # of one tensor
KEY_BYTES_MAX = 65_535  # by the format's own rule
STRING_BYTES_MAX = 16 << 20
ARRAY_ITEMS_MAX = 16 << 20
ARRAY_KEPT_MAX = 4096  # longer arrays are checked and walked over
HEAD_BYTES_MAX = 512 << 20  # all before the tensor data
ALIGNMENT_MAX = 1 << 20


class ValueKind(IntEnum):
    """What a metadata value is."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


SCALARS: dict[ValueKind, struct.Struct] = {
    ValueKind.U8: struct.Struct("<B"),
    ValueKind.I8: struct.Struct("<b"),
    ValueKind.U16: struct.Struct("<H"),
    ValueKind.I16: struct.Struct("<h"),
    ValueKind.U32: struct.Struct("<I"),
    ValueKind.I32: struct.Struct("<i"),
    ValueKind.F32: struct.Struct("<f"),
    ValueKind.BOOL: struct.Struct("<?"),
    ValueKind.U64: struct.Struct("<Q"),
    ValueKind.I64: struct.Struct("<q"),
    ValueKind.F64: struct.Struct("<d"),
}


@dataclass(frozen=True, slots=True)
class TensorKind:
    """How a tensor's elements are stored: blocks of `elements` in `size_bytes` each."""

    number: int
    name: str
    elements: int
    size_bytes: int


#: ggml's tensor types, from ggml.h and ggml-common.h; those that only computations use left out.
TENSOR_KINDS: dict[int, TensorKind] = {
    number: TensorKind(number, name, elements, size)
    for number, name, elements, size in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
    )
}
KIND_BY_NAME: dict[str, TensorKind] = {kind.name: kind for kind in TENSOR_KINDS.values()}

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Array:
    """A metadata array. items: None when it was too long to be kept (ARRAY_KEPT_MAX)."""

    kind: ValueKind
    count: int
    items: tuple[Scalar, ...] | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the tensor table. shape: fastest dimension first. offset: in the file."""

    name: str
    kind: TensorKind
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Head:
    """What a GGUF file says of itself, checked."""

    version: int
    alignment: int
    metadata: dict[str, Scalar | Array]
    tensors: tuple[Tensor, ...]
    data_offset: int
    file_bytes: int


def read_head(path: Path) -> Head:
    """Read and check the head of a GGUF file.

    Raises InvalidRequest, naming the file and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _Reader(file, path, size).head()
    except OSError as error:
        raise InvalidRequest(
            f"cannot read {path}: {error.strerror or error}",
            hint="give the path of a GGUF file that the pool may read",
            param="source",
        ) from None


class _Reader:
    """A cursor over the head that cannot pass the end of the file."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self._file = file
        self._path = path
        self._size = size
        self._end = min(size, HEAD_BYTES_MAX)
        self._at = 0

    def head(self) -> Head:
        if self._size < len(MAGIC) or self._take(len(MAGIC), "the magic number") != MAGIC:
            self._wrong('it does not begin with "GGUF"', "it is not a GGUF file")
        if self._size < 24:
            self._wrong(f"it ends after {self._size} bytes", "the shortest head has 24")
        version = self._number("the version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "big"), "little") in VERSIONS
            why = "it is big endian" if swapped else "versions 2 and 3 are known"
            self._wrong(f"its format version is {version}", why)
        tensors = self._count("tensors", TENSORS_MAX)
        entries = self._count("metadata entries", ENTRIES_MAX)
        metadata: dict[str, Scalar | Array] = {}
        for _ in range(entries):
            key = self._string("a metadata key", KEY_BYTES_MAX)
            if key in metadata:
                self._wrong(f'the metadata key "{key[:80]}" is there twice', "each is there once")
            metadata[key] = self._value(key)
        alignment = self._alignment(metadata)
        table = [self._tensor() for _ in range(tensors)]
        start = -(-self._at // alignment) * alignment
        placed = tuple(self._place(entry, start, alignment) for entry in table)
        self._check_apart(placed)
        return Head(version, alignment, metadata, placed, start, self._size)

    # --- parts ---------------------------------------------------------------------------------

    def _value(self, key: str) -> Scalar | Array:
        kind = self._kind(key)
        if kind is ValueKind.ARRAY:
            return self._array(key)
        if kind is ValueKind.STRING:
            return self._string(f'the value of "{key[:80]}"', STRING_BYTES_MAX)
        return self._scalar(kind, key)

    def _array(self, key: str) -> Array:
        kind = self._kind(key)
        if kind is ValueKind.ARRAY:
            self._wrong(f'"{key[:80]}" is an array of arrays', "no known model has one")
        count = self._count(f'items in "{key[:80]}"', ARRAY_ITEMS_MAX)
        kept = count <= ARRAY_KEPT_MAX
        if kind is ValueKind.STRING:
            what = f'an item of "{key[:80]}"'
            if kept:
                texts = tuple(self._string(what, STRING_BYTES_MAX) for _ in range(count))
                return Array(kind, count, texts)
            for _ in range(count):
                self._skip(self._length(what, STRING_BYTES_MAX), what)
            return Array(kind, count, None)
        layout = SCALARS[kind]
        if not kept:
            self._skip(layout.size * count, f'"{key[:80]}"')
            return Array(kind, count, None)
        data = self._take(layout.size * count, f'"{key[:80]}"')
        return Array(kind, count, tuple(item for (item,) in layout.iter_unpack(data)))

    def _scalar(self, kind: ValueKind, key: str) -> Scalar:
        layout = SCALARS[kind]
        value: int | float | bool = layout.unpack(self._take(layout.size, f'"{key[:80]}"'))[0]
        return value

    def _kind(self, key: str) -> ValueKind:
        number = self._number(f'the type of "{key[:80]}"')
        if number > max(ValueKind):
            self._wrong(f'"{key[:80]}" has the value type {number}', "types 0 to 12 are known")
        return ValueKind(number)

    def _alignment(self, metadata: dict[str, Scalar | Array]) -> int:
        value = metadata.get("general.alignment", ALIGNMENT_DEFAULT)
        if not isinstance(value, int) or not 8 <= value <= ALIGNMENT_MAX or value & (value - 1):
            self._wrong(
                f"its alignment is {str(value)[:80]}", f"it is a power of two, 8 to {ALIGNMENT_MAX}"
            )
        return value

    def _tensor(self) -> Tensor:
        name = self._string("a tensor's name", KEY_BYTES_MAX)
        short = name[:80]
        dimensions = self._number(f'the dimensions of "{short}"')
        if not 1 <= dimensions <= DIMENSIONS_MAX:
            self._wrong(
                f'the tensor "{short}" has {dimensions} dimensions', f"1 to {DIMENSIONS_MAX} are"
            )
        data = self._take(8 * dimensions, f'the shape of "{short}"')
        shape = struct.unpack(f"<{dimensions}Q", data)
        number = self._number(f'the type of "{short}"')
        offset = struct.unpack("<Q", self._take(8, f'the offset of "{short}"'))[0]
        kind = TENSOR_KINDS.get(number)
        if kind is None:
            self._wrong(f'the tensor "{short}" has the type {number}', "it is not known here")
        elements = math.prod(shape)
        if not 0 < elements <= ELEMENTS_MAX:
            self._wrong(
                f'the tensor "{short}" has {elements} elements', f"1 to {ELEMENTS_MAX} are taken"
            )
        if shape[0] % kind.elements:
            self._wrong(
                f'a row of the tensor "{short}" has {shape[0]} elements',
                f"{kind.name} stores blocks of {kind.elements}",
            )
        return Tensor(name, kind, shape, offset, elements // kind.elements * kind.size_bytes)

    def _place(self, tensor: Tensor, start: int, alignment: int) -> Tensor:
        """The tensor with its offset in the file, checked to lie in it."""
        if tensor.offset % alignment:
            self._wrong(
                f'the tensor "{tensor.name[:80]}" is at offset {tensor.offset}',
                f"offsets are multiples of {alignment}",
            )
        end = start + tensor.offset + tensor.size_bytes
        if end > self._size:
            self._wrong(
                f'the tensor "{tensor.name[:80]}" ends at byte {end}, the file at {self._size}',
                "the file is cut short, or its header lies",
            )
        return Tensor(
            tensor.name, tensor.kind, tensor.shape, start + tensor.offset, tensor.size_bytes
        )

    def _check_apart(self, tensors: tuple[Tensor, ...]) -> None:
        names: set[str] = set()
        before: Tensor | None = None
        for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.name)):
            if tensor.name in names:
                self._wrong(f'the tensor "{tensor.name[:80]}" is there twice', "each is once")
            names.add(tensor.name)
            if before is not None and before.offset + before.size_bytes > tensor.offset:
                self._wrong(
                    f'the tensors "{before.name[:80]}" and "{tensor.name[:80]}" overlap',
                    "each has bytes of its own",
                )
            before = tensor

    # --- bytes ---------------------------------------------------------------------------------

    def _number(self, what: str) -> int:
        return int.from_bytes(self._take(4, what), "little")

    def _count(self, what: str, most: int) -> int:
        count = int.from_bytes(self._take(8, f"the number of {what}"), "little")
        if count > most:
            self._wrong(f"it claims {count} {what}", f"the limit is {most}")
        return count

    def _length(self, what: str, most: int) -> int:
        length = int.from_bytes(self._take(8, f"the length of {what}"), "little")
        if length > most:
            self._wrong(f"{what} claims {length} bytes", f"the limit is {most}")
        return length

    def _string(self, what: str, most: int) -> str:
        data = self._take(self._length(what, most), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self._wrong(f"{what} is not UTF-8", "all text of a GGUF file is")

    def _skip(self, count: int, what: str) -> None:
        self._check_room(count, what)
        self._at += count
        self._file.seek(count, 1)

    def _take(self, count: int, what: str) -> bytes:
        self._check_room(count, what)
        data = self._file.read(count)
        if len(data) != count:  # it became shorter while it was read
            self._wrong(f"it ends at byte {self._at + len(data)}, within {what}", "it was cut")
        self._at += count
        return data

    def _check_room(self, count: int, what: str) -> None:
        if count <= self._end - self._at:
            return
        if self._end < self._size:
            self._wrong(f"its header is over {HEAD_BYTES_MAX} bytes long", "that is the limit")
        self._wrong(
            f"it ends at byte {self._size}, within {what}",
            "the file is cut short, or its header lies",
        )

    def _wrong(self, what: str, why: str) -> NoReturn:
        raise InvalidRequest(
            f"{self._path} is no good GGUF file: {what}",
            why=why,
            hint="get the file again and compare its size and digest with its source",
            param="source",
        )
