"""Turns a folder's tokenizer.json into the metadata that llama.cpp builds its tokenizer from.

Two kinds are known: byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) and BERT's WordPiece.
"""

from __future__ import annotations

from typing import Any

from onefleet.registry.gguf import ValueKind
from onefleet.registry.gguf_write import Entry
from onefleet.registry.hf_folder import HfFolder, wrong

VOCABULARY_MAX = 2_000_000

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5

#: llama.cpp's names of the ways to split text before BPE, by the regular expressions.
_SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}

_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def bpe_entries(folder: HfFolder) -> list[Entry]:
    """Metadata of a byte-level BPE tokenizer. Raises InvalidRequest when it is another kind."""
    model = _part(folder, "model")
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece BPE" if model.get("byte_fallback") else model.get("type")
        raise wrong(folder.path, f"its tokenizer is {kind}; byte-level BPE is supported here")
    tokens, kinds = _vocabulary(folder, folder.number("vocab_size"))
    entries = [
        Entry("tokenizer.ggml.model", ValueKind.STRING, "gpt2"),
        Entry("tokenizer.ggml.pre", ValueKind.STRING, _pre_tokenizer(folder)),
        Entry("tokenizer.ggml.tokens", ValueKind.STRING, tokens),
        Entry("tokenizer.ggml.token_type", ValueKind.I32, kinds),
        Entry("tokenizer.ggml.merges", ValueKind.STRING, _merges(folder, model)),
    ]
    ids = {token: number for number, token in enumerate(tokens)}
    for name, key in _SPECIAL.items():
        number = _special_id(folder, name, ids)
        if number is not None:
            entries.append(Entry(f"tokenizer.ggml.{key}", ValueKind.U32, number))
    entries.append(Entry("tokenizer.ggml.add_bos_token", ValueKind.BOOL, _adds_bos(folder)))
    template = chat_template(folder)
    if template:
        entries.append(Entry("tokenizer.chat_template", ValueKind.STRING, template))
    return entries


def wordpiece_entries(folder: HfFolder) -> list[Entry]:
    """Metadata of BERT's tokenizer. Raises InvalidRequest when it is another kind."""
    model = _part(folder, "model")
    if model.get("type") != "WordPiece":
        raise wrong(folder.path, f"its tokenizer is {model.get('type')}, a BERT has WordPiece")
    normalizer = folder.tokenizer.get("normalizer")
    if isinstance(normalizer, dict) and normalizer.get("lowercase") is False:
        raise wrong(folder.path, "its tokenizer keeps upper case; llama.cpp's WordPiece does not")
    tokens, kinds = _vocabulary(folder, folder.number("vocab_size"))
    ids = {token: number for number, token in enumerate(tokens)}
    special = (
        ("[UNK]", "unknown_token_id"),
        ("[PAD]", "padding_token_id"),
        ("[CLS]", "cls_token_id"),
        ("[CLS]", "bos_token_id"),  # llama.cpp begins with it, and stops dead without one
        ("[SEP]", "seperator_token_id"),  # the format's own spelling
        ("[SEP]", "eos_token_id"),
        ("[MASK]", "mask_token_id"),
    )
    if "[CLS]" not in ids or "[SEP]" not in ids or "[UNK]" not in ids:
        raise wrong(folder.path, "its tokenizer lacks one of [CLS], [SEP], [UNK]")
    marked = [_phantom_space(token, kind) for token, kind in zip(tokens, kinds, strict=True)]
    return [
        Entry("tokenizer.ggml.model", ValueKind.STRING, "bert"),
        Entry("tokenizer.ggml.pre", ValueKind.STRING, "default"),
        Entry("tokenizer.ggml.tokens", ValueKind.STRING, marked),
        Entry("tokenizer.ggml.token_type", ValueKind.I32, kinds),
        Entry("tokenizer.ggml.token_type_count", ValueKind.U32, folder.number("type_vocab_size")),
        *(
            Entry(f"tokenizer.ggml.{key}", ValueKind.U32, ids[token])
            for token, key in special
            if token in ids
        ),
    ]


def chat_template(folder: HfFolder) -> str:
    """The folder's chat template; empty when it has none."""
    file = folder.path / "chat_template.jinja"
    if file.is_file() and file.stat().st_size <= 1 << 20:
        return file.read_text("utf-8")
    template = folder.tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def _phantom_space(token: str, kind: int) -> str:
    """llama.cpp marks the beginning of a word where WordPiece marks its continuation."""
    if kind == _CONTROL:
        return token
    return token[2:] if token.startswith("##") else f"\u2581{token}"


def _vocabulary(folder: HfFolder, size: int) -> tuple[list[str], list[int]]:
    """Text and type of each token id below `size`; ids that no token has are unused."""
    vocabulary = _part(folder, "model").get("vocab")
    if not isinstance(vocabulary, dict) or size > VOCABULARY_MAX:
        raise wrong(folder.path, "tokenizer.json has no vocabulary")
    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [_UNUSED] * size
    for token, number in vocabulary.items():
        if not isinstance(number, int) or not 0 <= number < size:
            raise wrong(folder.path, f'the token "{token[:40]}" has no id below {size}')
        tokens[number], kinds[number] = token, _NORMAL
    added = folder.tokenizer.get("added_tokens") or []
    for entry in added:
        number, token = entry.get("id"), entry.get("content")
        if not isinstance(number, int) or not isinstance(token, str) or not 0 <= number < size:
            raise wrong(folder.path, f"an added token has no id below {size}")
        tokens[number] = token
        kinds[number] = _CONTROL if entry.get("special") else _USER_DEFINED
    return tokens, kinds


def _merges(folder: HfFolder, model: dict[str, Any]) -> list[str]:
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise wrong(folder.path, "tokenizer.json has no merges")
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _pre_tokenizer(folder: HfFolder) -> str:
    """llama.cpp's name for how text is split before BPE."""
    part = folder.tokenizer.get("pre_tokenizer") or {}
    steps = part.get("pretokenizers", [part]) if isinstance(part, dict) else []
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        name = _SPLITS.get((steps[0].get("pattern") or {}).get("Regex", ""))
        if name is not None:
            return name
    raise wrong(
        folder.path,
        f"its tokenizer splits text by {kinds}, in a way that is not known here; known are "
        "those of GPT-2, SmolLM, Llama 3 and Qwen 2",
    )


def _special_id(folder: HfFolder, name: str, ids: dict[str, int]) -> int | None:
    number = folder.config.get(f"{name}_id")
    if isinstance(number, list) and number:
        number = number[0]
    if isinstance(number, int) and 0 <= number < len(ids):
        return number
    token = folder.tokenizer_config.get(name)
    text = token.get("content") if isinstance(token, dict) else token
    return ids.get(text) if isinstance(text, str) else None


def _adds_bos(folder: HfFolder) -> bool:
    stated = folder.tokenizer_config.get("add_bos_token")
    if isinstance(stated, bool):
        return stated
    processor = folder.tokenizer.get("post_processor") or {}
    parts = processor.get("processors", [processor])
    singles = [part.get("single") or [] for part in parts if isinstance(part, dict)]
    return any(single and "SpecialToken" in single[0] for single in singles)


def _part(folder: HfFolder, name: str) -> dict[str, Any]:
    part = folder.tokenizer.get(name)
    if not isinstance(part, dict):
        raise wrong(folder.path, f"tokenizer.json is missing or has no {name}")
    return part
