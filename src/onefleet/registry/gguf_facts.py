"""What the pool needs to know of a GGUF model: shape, purpose, quantisation, licence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from onefleet.domain.errors import InvalidRequest
from onefleet.domain.serving import ModelShape, Purpose
from onefleet.registry.gguf import Array, Head

#: Architectures whose models embed and do not generate.
_EMBEDDING = (
    "bert",
    "nomic-bert",
    "nomic-bert-moe",
    "jina-bert-v2",
    "gemma-embedding",
    "t5encoder",
)

_LAYERS_MAX = 10_000
_LENGTH_MAX = 1 << 31


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """quantisation: the tensor type that holds most bytes. weights_bytes: all tensors."""

    shape: ModelShape
    purpose: Purpose
    chat_template: bool
    quantisation: str
    name: str
    licence: str
    vocabulary: int
    weights_bytes: int


def facts(head: Head, path: Path) -> GgufFacts:
    """Read the facts off a checked head. path: for the error.

    Raises InvalidRequest when the metadata lacks what a model needs, or contradicts itself.
    """
    architecture = _text(head, "general.architecture")
    if not architecture:
        raise _lacking(path, "general.architecture")
    if not head.tensors:
        raise InvalidRequest(
            f"{path} has no weights, only a vocabulary", why="it has no tensors", param="source"
        )
    layers = _number(head, path, f"{architecture}.block_count", _LAYERS_MAX)
    embedding = _number(head, path, f"{architecture}.embedding_length", _LENGTH_MAX)
    heads = _number(head, path, f"{architecture}.attention.head_count", _LENGTH_MAX)
    heads_kv = _number(head, path, f"{architecture}.attention.head_count_kv", _LENGTH_MAX, heads)
    head_length = embedding // heads
    key = f"{architecture}.attention.key_length"
    template = bool(_text(head, "tokenizer.chat_template"))
    shape = ModelShape(
        architecture=architecture,
        parameters=sum(tensor.elements for tensor in head.tensors),
        layers=layers,
        context_length=_number(head, path, f"{architecture}.context_length", _LENGTH_MAX),
        embedding_length=embedding,
        heads_kv=heads_kv,
        head_length=_number(head, path, key, _LENGTH_MAX, head_length),
    )
    tokens = head.metadata.get("tokenizer.ggml.tokens")
    return GgufFacts(
        shape=shape,
        purpose=_purpose(head, architecture, template),
        chat_template=template,
        quantisation=_quantisation(head),
        name=_text(head, "general.name"),
        licence=_text(head, "general.license") or "unknown",
        vocabulary=tokens.count if isinstance(tokens, Array) else 0,
        weights_bytes=sum(tensor.size_bytes for tensor in head.tensors),
    )


def _purpose(head: Head, architecture: str, template: bool) -> Purpose:
    if architecture in _EMBEDDING or f"{architecture}.pooling_type" in head.metadata:
        return Purpose.EMBEDDING
    return Purpose.CHAT if template else Purpose.COMPLETION


def _quantisation(head: Head) -> str:
    sizes: Counter[str] = Counter()
    for tensor in head.tensors:
        sizes[tensor.kind.name] += tensor.size_bytes
    return max(sorted(sizes), key=lambda name: sizes[name])


def _text(head: Head, key: str) -> str:
    value = head.metadata.get(key)
    return value if isinstance(value, str) else ""


def _number(head: Head, path: Path, key: str, most: int, default: int | None = None) -> int:
    """A whole number of at least 1; of an array (one a layer) the greatest."""
    value = head.metadata.get(key, default)
    if value is None:
        raise _lacking(path, key)
    if isinstance(value, Array):
        numbers = [item for item in value.items or () if isinstance(item, int)]
        value = max(numbers, default=0)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidRequest(
            f"{path} says {key} = {str(value)[:80]}",
            why=f"it is a whole number from 1 to {most}",
            hint="get the file again, or from another source",
            param="source",
        )
    return value


def _lacking(path: Path, key: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path} does not say {key}",
        why="without it the model's memory need is unknown",
        hint="convert the model again with a current converter",
        param="source",
    )
