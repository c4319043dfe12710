"""Model folders for the registry's tests, small enough to be written in a moment."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FolderMaker = Callable[..., Path]

WIDTH, HEADS, HEADS_KV, INNER, VOCABULARY, LAYERS = 8, 2, 1, 16, 260, 2


def save_tensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header, at = {}, 0
    for name, (kind, shape, data) in tensors.items():
        offsets = [at, at + len(data)]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": offsets}
        at += len(data)
    text = json.dumps(header).encode()
    data = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def numbered(kind: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], bytes]:
    """Elements 0, 1, 2, ... of that type."""
    values = [float(i % 1000) for i in range(math.prod(shape))]
    if kind == "BF16":
        data = b"".join(struct.pack("<f", value)[2:] for value in values)
    else:
        data = struct.pack(f"<{len(values)}{'f' if kind == 'F32' else 'e'}", *values)
    return kind, shape, data


def llama_tensors(kind: str) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    head = WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (HEADS * head, WIDTH),
        "self_attn.k_proj": (HEADS_KV * head, WIDTH),
        "self_attn.v_proj": (HEADS_KV * head, WIDTH),
        "self_attn.o_proj": (WIDTH, HEADS * head),
        "mlp.gate_proj": (INNER, WIDTH),
        "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
        "input_layernorm": (WIDTH,),
        "post_attention_layernorm": (WIDTH,),
    }
    named = {
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(LAYERS)
        for name, shape in shapes.items()
    }
    named |= {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    return {name: numbered(kind, shape) for name, shape in named.items()}


def byte_level_tokenizer() -> dict[str, Any]:
    letters = [chr(256 + number) for number in range(VOCABULARY - 2)]
    return {
        "added_tokens": [{"id": 0, "content": "<|end|>", "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {"<|end|>": 0} | {letter: i + 1 for i, letter in enumerate(letters)},
            "merges": [["a", "b"], "c d"],
        },
    }


@pytest.fixture
def llama_folder(tmp_path: Path) -> FolderMaker:
    """Makes a folder of a small Llama; its config, tokenizer and tensors may be changed."""

    def make(
        kind: str = "F32",
        *,
        config: dict[str, Any] | None = None,
        tokenizer: dict[str, Any] | None = None,
        tensors: dict[str, Any] | None = None,
        without: str = "",
    ) -> Path:
        folder = tmp_path / "llama"
        folder.mkdir(exist_ok=True)
        told = {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": WIDTH,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS_KV,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
            "eos_token_id": [0, 5],
        }
        (folder / "config.json").write_text(json.dumps(told | (config or {})))
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer or byte_level_tokenizer()))
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
        kept = llama_tensors(kind) | (tensors or {})
        kept.pop(without, None)
        save_tensors(folder / "model.safetensors", kept)
        return folder

    return make
