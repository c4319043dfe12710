from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onefleet.domain.errors import InvalidRequest
from onefleet.registry.convert import convert
from onefleet.registry.gguf import Array, Head, read_head
from onefleet.registry.gguf_facts import facts

FolderMaker = Callable[..., Path]


def converted(folder: Path, tmp_path: Path) -> tuple[Head, bytes]:
    target = tmp_path / "out.gguf"
    assert convert(folder, target) == target.stat().st_size
    return read_head(target), target.read_bytes()


def test_a_folder_becomes_a_model(llama_folder: FolderMaker, tmp_path: Path) -> None:
    head, _ = converted(llama_folder(), tmp_path)
    found = facts(head, tmp_path)
    assert (found.shape.architecture, found.shape.layers, found.shape.heads_kv) == ("llama", 2, 1)
    assert (found.licence, found.vocabulary, found.quantisation) == ("mit", 260, "F32")
    assert head.metadata["tokenizer.ggml.eos_token_id"] == 0
    assert head.metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert head.metadata["tokenizer.ggml.merges"] == Array(_STRING, 2, ("a b", "c d"))
    kinds = head.metadata["tokenizer.ggml.token_type"]
    assert isinstance(kinds, Array) and kinds.items is not None
    assert (kinds.items[0], kinds.items[1], kinds.items[-1]) == (3, 1, 5)
    assert {tensor.name for tensor in head.tensors} >= {
        "token_embd.weight",
        "output_norm.weight",
        "blk.0.attn_q.weight",
        "blk.1.ffn_down.weight",
    }


_STRING = 8


def tensor_bytes(head: Head, data: bytes, name: str) -> tuple[str, bytes]:
    [tensor] = [tensor for tensor in head.tensors if tensor.name == name]
    return tensor.kind.name, data[tensor.offset : tensor.offset + tensor.size_bytes]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_matrices_keep_their_type_and_vectors_become_f32(
    llama_folder: FolderMaker, tmp_path: Path, kind: str
) -> None:
    head, data = converted(llama_folder(kind), tmp_path)
    name, matrix = tensor_bytes(head, data, "blk.0.ffn_up.weight")
    assert name == kind
    assert len(matrix) == 16 * 8 * (4 if kind == "F32" else 2)
    name, vector = tensor_bytes(head, data, "output_norm.weight")
    assert name == "F32"
    assert struct.unpack("<8f", vector) == tuple(float(i) for i in range(8))
    assert head.metadata["general.file_type"] == {"F32": 0, "F16": 1, "BF16": 32}[kind]


def test_rows_of_queries_go_from_halves_to_pairs(llama_folder: FolderMaker, tmp_path: Path) -> None:
    head, data = converted(llama_folder(), tmp_path)
    _, query = tensor_bytes(head, data, "blk.0.attn_q.weight")
    first = [struct.unpack("<8f", query[at : at + 32])[0] // 8 for at in range(0, 256, 32)]
    # Two heads of four rows: 0 1 | 2 3 becomes 0 2 1 3.
    assert first == [0, 2, 1, 3, 4, 6, 5, 7]
    _, value = tensor_bytes(head, data, "blk.0.attn_v.weight")
    assert struct.unpack("<32f", value) == tuple(float(i) for i in range(32))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"config": {"architectures": ["MambaForCausalLM"]}}, "MambaForCausalLM"),
        ({"config": {"num_hidden_layers": 3}}, "2 layers, config.json says 3"),
        ({"config": {"hidden_size": "wide"}}, "hidden_size = wide"),
        ({"config": {"vocab_size": None}}, "does not say vocab_size"),
        ({"config": {"rope_scaling": {"rope_type": "yarn"}}}, '"yarn"'),
        ({"config": {"sliding_window": 4096}}, "sliding window"),
        ({"tokenizer": {"model": {"type": "Unigram"}}}, "Unigram"),
        ({"tokenizer": {"model": {"type": "BPE", "byte_fallback": True}}}, "SentencePiece"),
        ({"without": "model.layers.1.mlp.up_proj.weight"}, "layer 1 has other tensors"),
        ({"tensors": {"model.extra.weight": ("F32", (1,), b"1234")}}, "model.extra.weight"),
        ({"tensors": {"model.norm.weight": ("I64", (1,), b"12345678")}}, "I64"),
    ],
)
def test_what_cannot_be_converted_says_why(
    llama_folder: FolderMaker, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert(llama_folder(**changes), tmp_path / "out.gguf")
    assert says in caught.value.lines()


def test_an_unknown_architecture_is_told_which_are_known(
    llama_folder: FolderMaker, tmp_path: Path
) -> None:
    folder = llama_folder(config={"architectures": ["GPT9"]})
    with pytest.raises(InvalidRequest) as caught:
        convert(folder, tmp_path / "out.gguf")
    assert "BertModel, LlamaForCausalLM" in caught.value.why


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no Hugging Face model folder"):
        convert(tmp_path, tmp_path / "out.gguf")


def test_weights_in_pickles_are_not_read(llama_folder: FolderMaker, tmp_path: Path) -> None:
    folder = llama_folder()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InvalidRequest, match="can run code"):
        convert(folder, tmp_path / "out.gguf")


def test_weights_may_lie_in_several_files(llama_folder: FolderMaker, tmp_path: Path) -> None:
    folder = llama_folder()
    whole, _ = converted(folder, tmp_path)
    (folder / "model.safetensors").rename(folder / "part-1.safetensors")
    index = {"weight_map": {"any": "part-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert converted(folder, tmp_path)[0].tensors == whole.tensors


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_broken_json_is_named(llama_folder: FolderMaker, tmp_path: Path, name: str) -> None:
    folder = llama_folder()
    (folder / name).write_text("{")
    with pytest.raises(InvalidRequest, match=name):
        convert(folder, tmp_path / "out.gguf")
