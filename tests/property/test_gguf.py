"""The GGUF and safetensors readers on mutated files: an InvalidRequest or a sound answer."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefleet.domain.errors import InvalidRequest
from onefleet.registry import gguf
from onefleet.registry.gguf import read_head
from onefleet.registry.gguf_facts import facts
from onefleet.registry.gguf_write import Data, Entry, write
from onefleet.registry.safetensors import read_header

TINY = Path(gguf.__file__).parent / "data" / "tiny.gguf"

#: More than the head of the tiny model ever needs; a lie must not make it more.
MEMORY_BYTES_MAX = 24 << 20


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def small_model(folder: Path) -> bytes:
    path = folder / "small.gguf"
    kinds = gguf.ValueKind
    entries = [
        Entry("general.architecture", kinds.STRING, "llama"),
        Entry("llama.block_count", kinds.U32, 2),
        Entry("llama.context_length", kinds.U32, 64),
        Entry("llama.embedding_length", kinds.U32, 32),
        Entry("llama.attention.head_count", kinds.U32, 4),
        Entry("tokenizer.ggml.tokens", kinds.STRING, ["a", "b"]),
        Entry("tokenizer.ggml.token_type", kinds.I32, [1, 3]),
    ]
    kind = gguf.KIND_BY_NAME["F32"]
    tensors = [
        Data("token_embd.weight", kind, (32, 2), lambda: [b"\0" * 256]),
        Data("output_norm.weight", kind, (32,), lambda: [b"\0" * 128]),
    ]
    write(path, entries, tensors)
    return path.read_bytes()


edits = st.lists(
    st.tuples(st.integers(0, 2**31), st.binary(min_size=1, max_size=12)), min_size=1, max_size=6
)


def judge(path: Path) -> None:
    """Read it; a refusal must be ours, an answer must hold."""
    tracemalloc.start()
    try:
        head = read_head(path)
        facts(head, path)
        for tensor in head.tensors:
            assert 0 < tensor.offset <= tensor.offset + tensor.size_bytes <= head.file_bytes
    except InvalidRequest as refusal:
        assert refusal.what
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MEMORY_BYTES_MAX


@given(edits, st.integers(0, 2**31))
def test_a_mutated_small_model_never_crashes_the_reader(
    folder: Path, edits: list[tuple[int, bytes]], cut: int
) -> None:
    data = bytearray(small_model(folder))
    for at, new in edits:
        at %= len(data)
        data[at : at + len(new)] = new
    if cut % 4 == 0:
        del data[cut % len(data) :]
    path = folder / "mutated.gguf"
    path.write_bytes(data)
    judge(path)


@given(edits)
def test_a_mutated_real_model_never_crashes_the_reader(
    folder: Path, edits: list[tuple[int, bytes]]
) -> None:
    data = bytearray(TINY.read_bytes())
    for at, new in edits:
        at %= 62_000  # its head
        data[at : at + len(new)] = new
    path = folder / "real.gguf"
    path.write_bytes(data)
    judge(path)


@given(st.binary(max_size=400))
def test_anything_after_the_magic_number_is_read_or_refused(folder: Path, tail: bytes) -> None:
    path = folder / "anything.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + tail)
    judge(path)


entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(("F32", "F16", "BOGUS", 3, None)),
        "shape": st.one_of(st.lists(st.integers(-2, 1 << 40), max_size=4), st.text(max_size=3)),
        "data_offsets": st.one_of(
            st.lists(st.integers(-5, 1 << 50), max_size=3), st.just([0, 16]), st.none()
        ),
    },
)


@given(st.dictionaries(st.text(max_size=8), entries, max_size=4), st.binary(max_size=64))
def test_any_safetensors_header_is_read_or_refused(
    folder: Path, header: dict[str, object], data: bytes
) -> None:
    text = json.dumps(header).encode()
    path = folder / "any.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    try:
        found = read_header(path)
    except InvalidRequest:
        return
    for tensor in found.values():
        assert 8 + len(text) <= tensor.offset
        assert tensor.offset + tensor.size_bytes <= path.stat().st_size


@given(st.binary(max_size=200))
def test_any_bytes_are_no_safetensors_crash(folder: Path, data: bytes) -> None:
    path = folder / "bytes.safetensors"
    path.write_bytes(data)
    try:
        read_header(path)
    except InvalidRequest as refusal:
        assert refusal.hint
