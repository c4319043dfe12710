"""Reads a Hugging Face model folder: configuration, tokenizer and tensors, checked as they come."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onefleet.domain.errors import InvalidRequest
from onefleet.registry.safetensors import StoredTensor, read_header

#: The largest JSON file of a folder that is read (tokenizers of large vocabularies: 35 MB).
JSON_BYTES_MAX = 128 << 20

#: The beginning of a model card, where its front matter is.
CARD_BYTES_READ = 64 << 10

#: Files that a model's weights may be split over.
SHARDS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class HfFolder:
    """One model folder. Missing optional files are empty tables."""

    path: Path
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    tokenizer_config: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def licence(self) -> str:
        """What the model card's front matter says; empty when it does not."""
        card = self.path / "README.md"
        if not card.is_file():
            return ""
        with card.open("rb") as file:
            text = file.read(CARD_BYTES_READ).decode("utf-8", errors="replace")
        if not text.startswith("---"):
            return ""
        front = text.split("\n---", 1)[0]
        found = re.search(r"^licen[cs]e:\s*['\"]?([\w.+-]{1,60})['\"]?\s*$", front, re.MULTILINE)
        return found[1] if found else ""

    def number(self, *keys: str, default: int | None = None) -> int:
        """The first of these whole numbers that the configuration has."""
        for key in keys:
            value = self.config.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
                return value
            if value is not None:
                raise wrong(self.path, f"config.json says {key} = {str(value)[:40]}")
        if default is None:
            raise wrong(self.path, f"config.json does not say {keys[0]}")
        return default

    def decimal(self, key: str, default: float) -> float:
        """A number of the configuration."""
        value = self.config.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise wrong(self.path, f"config.json says {key} = {str(value)[:40]}")
        return float(value)


def read_folder(path: Path) -> HfFolder:
    """Read a model folder. Raises InvalidRequest, naming what is missing or wrong."""
    config = read_json(path / "config.json")
    if config is None:
        raise InvalidRequest(
            f"{path} is no Hugging Face model folder",
            why="it has no config.json",
            hint="give a folder with config.json, tokenizer.json and *.safetensors, or a GGUF file",
            param="source",
        )
    return HfFolder(
        path=path,
        config=config,
        tokenizer=read_json(path / "tokenizer.json") or {},
        tokenizer_config=read_json(path / "tokenizer_config.json") or {},
        tensors=_tensors(path),
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None when the file is not there. Raises InvalidRequest otherwise."""
    try:
        size = path.stat().st_size
        if size > JSON_BYTES_MAX:
            raise wrong(path, f"it has {size} bytes, the limit is {JSON_BYTES_MAX}")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise wrong(path, f"it cannot be read as JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise wrong(path, "it is not a JSON object")
    return value


def wrong(path: Path, what: str) -> InvalidRequest:
    """The error for a folder or file that does not hold what it should."""
    return InvalidRequest(
        f"{path}: {what}",
        why="the model cannot be converted without it",
        hint="get the folder again, or give a GGUF file of the same model",
        param="source",
    )


def _tensors(path: Path) -> dict[str, StoredTensor]:
    index = read_json(path / "model.safetensors.index.json")
    if index is None:
        names = ["model.safetensors"]
    else:
        places = index.get("weight_map")
        files = places.values() if isinstance(places, dict) else []
        names = sorted({str(name) for name in files})
        if not 1 <= len(names) <= SHARDS_MAX or any("/" in name for name in names):
            raise wrong(path, "model.safetensors.index.json names no good weight files")
    found: dict[str, StoredTensor] = {}
    for name in names:
        if not (path / name).is_file():
            other = "; it has pytorch_model.bin, which is not read (it can run code)"
            has_pickle = (path / "pytorch_model.bin").exists()
            raise wrong(path, f"{name} is missing{other if has_pickle else ''}")
        for key, tensor in read_header(path / name).items():
            if key in found:
                raise wrong(path, f'the tensor "{key[:80]}" is in two files')
            found[key] = tensor
    return found
