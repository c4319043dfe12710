"""Starts engine processes as the agent would: by their adapter's command and environment."""

from __future__ import annotations

import json
import math
import os
import random
import struct
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from onefleet.domain.serving import Purpose
from onefleet.engines.base import EngineProcess
from onefleet.engines.catalog import engine
from onefleet.engines.launch import read_port_file

READY_S = 60.0


@dataclass
class Running:
    """An engine process that is ready."""

    process: subprocess.Popen[bytes]
    host: str
    port: int
    port_file: Path
    stderr: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until it is true; fail after a while."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.005)


StartEngine = Callable[..., Running]


@pytest.fixture
def start_engine(tmp_path: Path) -> Iterator[StartEngine]:
    """Start an engine and wait until it is ready, or (ready=False) only start it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(
        name: str,
        path: Path = Path("/nowhere"),
        *,
        purpose: Purpose = Purpose.CHAT,
        slots: int = 4,
        context_length: int = 2048,
        ready: bool = True,
        **options: int,
    ) -> Running:
        adapter = engine(name)
        folder = tmp_path / f"engine-{len(started)}"
        folder.mkdir()
        named = tuple((key.replace("_", "-"), str(value)) for key, value in options.items())
        spec = EngineProcess(
            "model", "model", purpose, path, slots, context_length, 1,
            folder / "port", folder / "cache", named,
        )  # fmt: skip
        environment = {**os.environ, **dict(adapter.environment(spec))}
        with (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                adapter.command(spec), env=environment, stdout=stderr, stderr=stderr
            )
        started.append(process)
        if ready:
            until(lambda: process.poll() is not None or spec.port_file.exists(), READY_S)
            assert process.poll() is None, (folder / "stderr").read_text()
        host, port = read_port_file(spec.port_file) or ("", 0)
        return Running(process, host, port, spec.port_file, folder / "stderr")

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    """A Hugging Face folder of a BERT with random weights, two layers of width 32."""
    width, inner, layers = 32, 64, 2
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##d"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(vocabulary), width),
        "embeddings.position_embeddings.weight": (64, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
        "pooler.dense.weight": (width, width),
    }
    for layer in range(layers):
        for name, out, into in (
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", inner, width),
            ("output.dense", width, inner),
        ):
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (out, into)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (out,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (width,)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (width,)
    folder = tmp_path / "bert"
    folder.mkdir()
    rng, header, data = random.Random(1), {}, b""
    for name, shape in shapes.items():
        values = [rng.gauss(0, 0.5) for _ in range(math.prod(shape))]
        offsets = [len(data), len(data) + 4 * len(values)]
        data += struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    config = {
        "architectures": ["BertModel"], "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": 4, "max_position_embeddings": 64,
        "type_vocab_size": 2, "vocab_size": len(vocabulary), "layer_norm_eps": 1e-12,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    special = [
        {"id": i, "content": token, "special": True} for i, token in enumerate(vocabulary[:5])
    ]
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = {"added_tokens": special, "model": {"type": "WordPiece", "vocab": ids}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder
