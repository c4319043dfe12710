"""Converts a Hugging Face model folder into one GGUF file, with the standard library alone.

Weights keep their type: F32, F16 and BF16 matrices are copied as bytes, vectors become F32, as
llama.cpp computes with them. Known are the Llama and the BERT architectures.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from onefleet.domain.errors import InvalidRequest
from onefleet.registry.gguf import KIND_BY_NAME, TensorKind, ValueKind
from onefleet.registry.gguf_write import Data, Entry, write
from onefleet.registry.hf_folder import HfFolder, read_folder, read_json, wrong
from onefleet.registry.safetensors import StoredTensor
from onefleet.registry.tokenizers import bpe_entries, wordpiece_entries

#: "general.file_type" of llama.cpp by the type of the matrices.
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}

_LLAMA_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LLAMA_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_BERT_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_BERT_TOP = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
#: Tensors of a folder that the engine has no use for.
_LEFT_OUT = re.compile(r"rotary_emb\.inv_freq|position_ids$|^pooler\.|^cls\.")

#: Small tables that llama.cpp adds to activations in F32.
_ALWAYS_F32 = ("position_embd.weight", "token_types.weight")


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How one architecture is converted. layer: matches (number, name, "weight" or "bias")."""

    layer: re.Pattern[str]
    names: dict[str, str]
    top: dict[str, str]
    entries: Callable[[HfFolder], list[Entry]]
    permuted: Callable[[HfFolder, str], int]  # heads whose rows are re-ordered; 0: none


def convert(folder: Path, target: Path) -> int:
    """Write the model of a Hugging Face folder to `target`; return its size in bytes.

    Raises InvalidRequest for an unknown architecture or a folder that contradicts itself.
    """
    source = read_folder(folder)
    recipe = _recipe(source)
    tensors = [_data(source, recipe, tensor) for tensor in _wanted(source)]
    _check_whole(source, tensors)
    matrices = sorted({data.kind.name for data in tensors if len(data.shape) > 1})
    file_type = _FILE_TYPES["F32" if "F32" in matrices and len(matrices) == 1 else matrices[-1]]
    general = [Entry("general.file_type", ValueKind.U32, file_type)]
    return write(target, [*recipe.entries(source), *general], tensors)


def _recipe(folder: HfFolder) -> _Recipe:
    names = folder.config.get("architectures")
    name = names[0] if isinstance(names, list) and names else folder.config.get("model_type")
    recipe = _RECIPES.get(str(name))
    if recipe is None:
        raise InvalidRequest(
            f"{folder.path} is a model of the architecture {str(name)[:80]}",
            why=f"conversion knows {', '.join(sorted(_RECIPES))}",
            hint="give a GGUF file of this model; the engine knows many more architectures",
            param="source",
        )
    return recipe


def _wanted(folder: HfFolder) -> list[StoredTensor]:
    tied = bool(folder.config.get("tie_word_embeddings"))
    return [
        tensor
        for name, tensor in sorted(folder.tensors.items())
        if not _LEFT_OUT.search(name) and not (tied and name == "lm_head.weight")
    ]


def _data(folder: HfFolder, recipe: _Recipe, tensor: StoredTensor) -> Data:
    """The tensor as the GGUF file has it: name, order of rows and type."""
    name = _new_name(folder, recipe, tensor.name)
    plain = len(tensor.shape) > 1 and name not in _ALWAYS_F32
    if tensor.kind not in _FILE_TYPES or not 1 <= len(tensor.shape) <= 2:
        raise wrong(
            folder.path,
            f'the tensor "{tensor.name[:80]}" is {tensor.kind} with {len(tensor.shape)} '
            f"dimensions; {', '.join(_FILE_TYPES)} with 1 or 2 are converted",
        )
    kind = KIND_BY_NAME[tensor.kind if plain else "F32"]
    heads = recipe.permuted(folder, name)
    if heads and tensor.shape[0] % (2 * heads):
        raise wrong(folder.path, f'"{tensor.name[:80]}" does not divide into {heads} heads')
    return Data(name, kind, tensor.shape[::-1], lambda: _chunks(tensor, kind, heads))


def _new_name(folder: HfFolder, recipe: _Recipe, name: str) -> str:
    name = name.removeprefix("bert.")
    found = recipe.layer.fullmatch(name)
    if found is not None and found[2] in recipe.names:
        return f"blk.{int(found[1])}.{recipe.names[found[2]]}.{found[3]}"
    stem, _, suffix = name.rpartition(".")
    if stem in recipe.top and suffix in ("weight", "bias"):
        return f"{recipe.top[stem]}.{suffix}"
    raise wrong(folder.path, f'the tensor "{name[:80]}" has no place in this architecture')


def _chunks(tensor: StoredTensor, kind: TensorKind, heads: int) -> Iterable[bytes]:
    if not heads:
        return _typed(tensor.chunks(), tensor.kind, kind)
    return _typed([_permuted(tensor.read(), tensor.shape[0], heads)], tensor.kind, kind)


def _permuted(data: bytes, rows: int, heads: int) -> bytes:
    """Rows of Q and K from halves (first half, second half) to pairs (as llama.cpp rotates)."""
    row_bytes = len(data) // rows
    half = rows // heads // 2
    order = (
        head * 2 * half + part * half + step
        for head in range(heads)
        for step in range(half)
        for part in range(2)
    )
    return b"".join(data[row * row_bytes : (row + 1) * row_bytes] for row in order)


def _typed(chunks: Iterable[bytes], source: str, kind: TensorKind) -> Iterator[bytes]:
    """The same numbers in the wanted type: unchanged, or as F32."""
    for chunk in chunks:
        if source == kind.name:
            yield chunk
        elif source == "BF16":  # the upper half of a float32
            words = (chunk[at : at + 2] for at in range(0, len(chunk), 2))
            yield b"".join(b"\0\0" + word for word in words)
        else:
            count = len(chunk) // 2
            yield struct.pack(f"<{count}f", *struct.unpack(f"<{count}e", chunk))


def _check_whole(folder: HfFolder, tensors: list[Data]) -> None:
    """Every layer has the same tensors, and as many layers are there as it says."""
    layers: dict[int, list[str]] = {}
    for data in tensors:
        parts = data.name.split(".", 2)
        if parts[0] == "blk":
            layers.setdefault(int(parts[1]), []).append(parts[2])
    wanted = folder.number("num_hidden_layers")
    if sorted(layers) != list(range(wanted)):
        raise wrong(folder.path, f"it has {len(layers)} layers, config.json says {wanted}")
    for number, names in sorted(layers.items()):
        if sorted(names) != sorted(layers[0]):
            raise wrong(folder.path, f"layer {number} has other tensors than layer 0")


# --- llama --------------------------------------------------------------------------------------


def _llama_heads(folder: HfFolder) -> tuple[int, int]:
    heads = folder.number("num_attention_heads")
    return heads, folder.number("num_key_value_heads", default=heads)


def _llama_permuted(folder: HfFolder, name: str) -> int:
    heads, heads_kv = _llama_heads(folder)
    part = name.split(".")[-2]
    return heads if part == "attn_q" else heads_kv if part == "attn_k" else 0


def _llama_rope(folder: HfFolder) -> list[Entry]:
    rope = folder.config.get("rope_parameters") or folder.config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    base = rope.get("rope_theta", folder.config.get("rope_theta", 10_000.0))
    entries = [Entry("llama.rope.freq_base", ValueKind.F32, float(base))]
    if kind == "linear":
        factor = float(rope.get("factor", 1.0))
        entries.append(Entry("llama.rope.scaling.type", ValueKind.STRING, "linear"))
        entries.append(Entry("llama.rope.scaling.factor", ValueKind.F32, factor))
    elif kind != "default":
        raise wrong(folder.path, f'its rope scaling is "{kind}"; default and linear are converted')
    return entries


def _llama_entries(folder: HfFolder) -> list[Entry]:
    heads, heads_kv = _llama_heads(folder)
    width = folder.number("hidden_size")
    head = folder.number("head_dim", default=width // heads)
    if folder.config.get("sliding_window"):
        raise wrong(folder.path, "it attends to a sliding window, which is not converted")
    numbers = {
        "block_count": folder.number("num_hidden_layers"),
        "context_length": folder.number("max_position_embeddings"),
        "embedding_length": width,
        "feed_forward_length": folder.number("intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": heads_kv,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "vocab_size": folder.number("vocab_size"),
    }
    epsilon = folder.decimal("rms_norm_eps", 1e-5)
    return [
        *_general(folder, "llama"),
        *(Entry(f"llama.{key}", ValueKind.U32, value) for key, value in numbers.items()),
        Entry("llama.attention.layer_norm_rms_epsilon", ValueKind.F32, epsilon),
        *_llama_rope(folder),
        *bpe_entries(folder),
    ]


# --- bert ---------------------------------------------------------------------------------------


def _bert_entries(folder: HfFolder) -> list[Entry]:
    numbers = {
        "block_count": folder.number("num_hidden_layers"),
        "context_length": folder.number("max_position_embeddings"),
        "embedding_length": folder.number("hidden_size"),
        "feed_forward_length": folder.number("intermediate_size"),
        "attention.head_count": folder.number("num_attention_heads"),
        "pooling_type": _pooling(folder),
    }
    epsilon = folder.decimal("layer_norm_eps", 1e-12)
    return [
        *_general(folder, "bert"),
        *(Entry(f"bert.{key}", ValueKind.U32, value) for key, value in numbers.items()),
        Entry("bert.attention.layer_norm_epsilon", ValueKind.F32, epsilon),
        Entry("bert.attention.causal", ValueKind.BOOL, False),
        *wordpiece_entries(folder),
    ]


def _pooling(folder: HfFolder) -> int:
    """1: the mean of all tokens, 2: the first token; what sentence-transformers says, or mean."""
    pooling = read_json(folder.path / "1_Pooling" / "config.json") or {}
    return 2 if pooling.get("pooling_mode_cls_token") else 1


def _general(folder: HfFolder, architecture: str) -> list[Entry]:
    name = folder.config.get("_name_or_path") or folder.path.name
    entries = [
        Entry("general.architecture", ValueKind.STRING, architecture),
        Entry("general.name", ValueKind.STRING, str(name)[:200]),
    ]
    if folder.licence:
        entries.append(Entry("general.license", ValueKind.STRING, folder.licence))
    return entries


_LLAMA = _Recipe(
    re.compile(r"model\.layers\.(\d{1,5})\.(.+)\.(weight|bias)"),
    _LLAMA_NAMES,
    _LLAMA_TOP,
    _llama_entries,
    _llama_permuted,
)
_BERT = _Recipe(
    re.compile(r"encoder\.layer\.(\d{1,5})\.(.+)\.(weight|bias)"),
    _BERT_NAMES,
    _BERT_TOP,
    _bert_entries,
    lambda folder, name: 0,
)
_RECIPES = {
    "LlamaForCausalLM": _LLAMA,
    "BertModel": _BERT,
}
