from __future__ import annotations

import struct
from pathlib import Path

import pytest

from onefleet.domain.errors import InvalidRequest
from onefleet.domain.serving import ModelShape, Purpose
from onefleet.registry import gguf, gguf_facts
from onefleet.registry.gguf import KIND_BY_NAME, Array, ValueKind, read_head
from onefleet.registry.gguf_write import Data, Entry, write

TINY = Path(gguf.__file__).parent / "data" / "tiny.gguf"

F32 = KIND_BY_NAME["F32"]


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def head(*, version: int = 3, tensors: int = 0, entries: int = 0, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, entries)


def tensor(name: str, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    numbers = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + numbers + struct.pack("<IQ", kind, offset)


def error_of(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "lie.gguf"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest) as caught:
        read_head(path)
    assert str(path) in caught.value.what
    assert caught.value.why and caught.value.hint
    return caught.value.what


def test_our_own_model_is_described() -> None:
    found = gguf_facts.facts(read_head(TINY), TINY)
    assert found.shape == ModelShape("llama", 1_000_576, 4, 2048, 128, 2, 32)
    assert found.purpose is Purpose.CHAT and found.chat_template
    assert (found.quantisation, found.licence, found.vocabulary) == ("F16", "apache-2.0", 2048)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    entries = [
        Entry("general.architecture", ValueKind.STRING, "löwe"),
        Entry("a.flag", ValueKind.BOOL, True),
        Entry("a.big", ValueKind.U64, 1 << 63),
        Entry("a.low", ValueKind.I8, -7),
        Entry("a.real", ValueKind.F64, 0.1),
        Entry("a.list", ValueKind.I32, [1, -2, 3]),
        Entry("a.words", ValueKind.STRING, ["", "two words"]),
        Entry("a.long", ValueKind.U8, [7] * (gguf.ARRAY_KEPT_MAX + 1)),
        Entry("a.longer", ValueKind.STRING, ["x"] * (gguf.ARRAY_KEPT_MAX + 1)),
    ]
    data = bytes(range(256))
    tensors = [
        Data("first", F32, (8, 8), lambda: [data]),
        Data("second", KIND_BY_NAME["Q8_0"], (32, 3), lambda: [b"q" * 34, b"q" * 68]),
    ]
    path = tmp_path / "whole.gguf"
    size = write(path, entries, tensors)
    found = read_head(path)
    assert found.file_bytes == size == path.stat().st_size
    assert found.metadata["general.architecture"] == "löwe"
    assert found.metadata["a.big"] == 1 << 63
    assert found.metadata["a.flag"] is True
    assert (found.metadata["a.low"], found.metadata["a.real"]) == (-7, 0.1)
    assert found.metadata["a.list"] == Array(ValueKind.I32, 3, (1, -2, 3))
    assert found.metadata["a.words"] == Array(ValueKind.STRING, 2, ("", "two words"))
    assert found.metadata["a.long"] == Array(ValueKind.U8, gguf.ARRAY_KEPT_MAX + 1, None)
    assert found.metadata["a.longer"] == Array(ValueKind.STRING, gguf.ARRAY_KEPT_MAX + 1, None)
    first, second = found.tensors
    assert path.read_bytes()[first.offset : first.offset + first.size_bytes] == data
    assert (second.shape, second.size_bytes, second.elements) == ((32, 3), 102, 96)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", 'does not begin with "GGUF"'),
        (head(magic=b"GGML"), 'does not begin with "GGUF"'),
        (head(version=1), "format version is 1"),
        (head(version=int.from_bytes(b"\0\0\0\3", "little")), "format version is 50331648"),
        (head(tensors=1 << 60), f"claims {1 << 60} tensors"),
        (head(entries=1 << 60), f"claims {1 << 60} metadata entries"),
        (head(entries=1), "ends at byte 24, within the length of a metadata key"),
        (head(entries=1) + struct.pack("<Q", 1 << 62), f"claims {1 << 62} bytes"),
        (head()[:16], "ends after 16 bytes"),
        (head(entries=1) + text("k") + struct.pack("<I", 99), "value type 99"),
        (head(entries=1) + text("k") + struct.pack("<I", 4), 'within "k"'),
        (head(entries=1) + text("k") + struct.pack("<IQ", 8, 1 << 40), f"claims {1 << 40} bytes"),
        (
            head(entries=1) + text("k") + struct.pack("<IIQ", 9, 0, 1 << 50),
            f'claims {1 << 50} items in "k"',
        ),
        (head(entries=1) + text("k") + struct.pack("<IIQ", 9, 9, 1), "array of arrays"),
        (head(entries=1) + text("k") + struct.pack("<IIQ", 9, 10, 1 << 20), 'within "k"'),
        (head(entries=1) + text("k") + struct.pack("<IQ", 8, 2) + b"\xff\xfe", "not UTF-8"),
        (head(entries=2) + (text("k") + struct.pack("<II", 4, 1)) * 2, "there twice"),
        (
            head(entries=1) + text("general.alignment") + struct.pack("<II", 4, 24),
            "alignment is 24",
        ),
        (
            head(entries=1) + text("general.alignment") + struct.pack("<IQ", 8, 1) + b"8",
            "alignment is 8",
        ),
        (head(tensors=1) + tensor("t", ()), "0 dimensions"),
        (head(tensors=1) + text("t") + struct.pack("<I", 1000), "1000 dimensions"),
        (head(tensors=1) + tensor("t", kind=4), "the type 4"),
        (head(tensors=1) + tensor("t", (0,)), "0 elements"),
        (head(tensors=1) + tensor("t", (1 << 40, 1 << 40)), f"{1 << 80} elements"),
        (head(tensors=1) + tensor("t", (33,), kind=8), "33 elements"),
        (head(tensors=1) + tensor("t", offset=3), "at offset 3"),
        (head(tensors=1) + tensor("t", (1 << 30,)), "ends at byte"),
        (head(tensors=1) + tensor("t", offset=1 << 62), "ends at byte"),
        (head(tensors=2) + tensor("t") + tensor("u") + b"\0" * 400, "overlap"),
        (head(tensors=2) + tensor("t") + tensor("t", offset=128) + b"\0" * 600, "there twice"),
    ],
)
def test_each_lie_of_a_header_has_an_error_of_its_own(
    tmp_path: Path, data: bytes, says: str
) -> None:
    assert says in error_of(tmp_path, data)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = TINY.read_bytes()
    for size in (0, 3, 4, 23, 24, 100, 5_000, 60_000, len(whole) // 2, len(whole) - 33):
        error_of(tmp_path, whole[:size])


@pytest.mark.parametrize("path", ["/nowhere/x.gguf", "/"])
def test_a_file_that_cannot_be_read_is_the_callers_error(path: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot read"):
        read_head(Path(path))


def model(tmp_path: Path, *changes: Entry, without: str = "") -> Path:
    entries = [
        Entry("general.architecture", ValueKind.STRING, "llama"),
        Entry("llama.block_count", ValueKind.U32, 2),
        Entry("llama.context_length", ValueKind.U32, 64),
        Entry("llama.embedding_length", ValueKind.U32, 32),
        Entry("llama.attention.head_count", ValueKind.U32, 4),
    ]
    changed = {entry.key for entry in changes}
    kept = [e for e in entries if e.key not in changed and e.key != without]
    path = tmp_path / "model.gguf"
    write(path, [*kept, *changes], [Data("t", F32, (32,), lambda: [b"\0" * 128])])
    return path


def test_head_counts_may_differ_by_layer(tmp_path: Path) -> None:
    path = model(tmp_path, Entry("llama.attention.head_count_kv", ValueKind.U32, [1, 2]))
    assert gguf_facts.facts(read_head(path), path).shape.heads_kv == 2


def test_without_a_chat_template_it_completes(tmp_path: Path) -> None:
    path = model(tmp_path)
    assert gguf_facts.facts(read_head(path), path).purpose is Purpose.COMPLETION


@pytest.mark.parametrize(
    "key", ["general.architecture", "llama.block_count", "llama.context_length"]
)
def test_a_model_that_hides_its_shape_is_refused(tmp_path: Path, key: str) -> None:
    path = model(tmp_path, without=key)
    with pytest.raises(InvalidRequest, match=key):
        gguf_facts.facts(read_head(path), path)


@pytest.mark.parametrize("value", [0, (1 << 32) - 1, "many", True])
def test_an_absurd_shape_is_refused(tmp_path: Path, value: int | str) -> None:
    kind = ValueKind.STRING if isinstance(value, str) else ValueKind.U32
    path = model(
        tmp_path, Entry("llama.block_count", ValueKind.BOOL if value is True else kind, value)
    )
    with pytest.raises(InvalidRequest, match="block_count"):
        gguf_facts.facts(read_head(path), path)


def test_a_vocabulary_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    write(path, [Entry("general.architecture", ValueKind.STRING, "llama")], [])
    with pytest.raises(InvalidRequest, match="only a vocabulary"):
        gguf_facts.facts(read_head(path), path)
