"""The real engine with our own small model: what the pool relies on of it."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from onefleet.domain.layout import Layout
from onefleet.domain.serving import Purpose
from onefleet.engines.llamacpp import LlamaCpp
from onefleet.registry import gguf
from onefleet.registry.models import add_model

TINY = Path(gguf.__file__).parent / "data" / "tiny.gguf"
VECTORS = Path(__file__).with_name("tiny_vectors.json")
HELLO: list[Any] = [{"role": "user", "content": "Good morrow, my lord. " * 8}]

pytestmark = pytest.mark.skipif(
    bool(LlamaCpp().available()), reason=f"llama.cpp: {LlamaCpp().available()}"
)

Running = Any
StartEngine = Callable[..., Running]


def busy(engine: Running) -> int:
    return sum(slot["is_processing"] for slot in engine.get("/slots"))


def wait_until(true: Callable[[], bool]) -> None:
    from time import monotonic, sleep

    end = monotonic() + 20
    while not true():
        assert monotonic() < end, "it did not come true in time"
        sleep(0.005)


def test_a_chat_streams_and_tells_its_cached_tokens(start_engine: StartEngine) -> None:
    engine = start_engine("llamacpp", TINY)
    for turn in range(2):
        stream = engine.client.chat.completions.create(
            model="model", messages=HELLO, stream=True, max_tokens=16, temperature=0,
            stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
        )  # fmt: skip
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        usage = chunks[-1].usage
        assert usage is not None and usage.completion_tokens == 16
        cached = usage.prompt_tokens_details.cached_tokens
        assert cached == (usage.prompt_tokens - 1 if turn else 0)
    assert [model.id for model in engine.client.models.list()] == ["model"]
    assert engine.get("/health") == {"status": "ok"}
    assert engine.post("/tokenize", {"content": "my lord"})["tokens"]


def test_leaving_a_stream_stops_the_engine(start_engine: StartEngine) -> None:
    engine = start_engine("llamacpp", TINY)
    stream = engine.client.chat.completions.create(
        model="model", messages=HELLO, stream=True, max_tokens=1900, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert busy(engine) == 1
    stream.close()
    wait_until(lambda: busy(engine) == 0)


def test_requests_are_answered_side_by_side(start_engine: StartEngine) -> None:
    engine = start_engine("llamacpp", TINY)
    streams = [
        engine.client.chat.completions.create(
            model="model", messages=HELLO, stream=True, max_tokens=1500,
            extra_body={"ignore_eos": True},
        )
        for _ in range(3)
    ]  # fmt: skip
    for stream in streams:
        next(iter(stream))
    assert busy(engine) == 3
    for stream in streams:
        stream.close()


def test_a_slot_takes_no_more_than_its_context(start_engine: StartEngine) -> None:
    engine = start_engine("llamacpp", TINY, slots=2, context_length=256)
    with pytest.raises(openai.BadRequestError, match="context size"):
        engine.client.completions.create(model="model", prompt="lord " * 400, max_tokens=1)


def test_the_same_tokens_as_the_reference_implementation(start_engine: StartEngine) -> None:
    """Ids and greedy tokens recorded from transformers 5 on the folder the file was made from.

    This holds the conversion to account: tokenizer, order of rows, types.
    """
    engine = start_engine("llamacpp", TINY, slots=1)
    cases = json.loads(VECTORS.read_text())
    assert len(cases) >= 4
    compared = 0
    for case in cases:
        body = {"content": case["text"], "parse_special": True}
        assert engine.post("/tokenize", body)["tokens"] == case["prompt"]
        greedy = {"prompt": case["prompt"], "n_predict": 40, "temperature": 0}
        found = engine.post("/completion", {**greedy, "return_tokens": True})["tokens"]
        assert found == case["greedy"][: len(found)]
        compared += len(found)
    assert compared >= 50


def test_a_prompt_saved_by_one_process_is_restored_by_another(start_engine: StartEngine) -> None:
    first = start_engine("llamacpp", TINY, slots=2)
    prompt = {"prompt": "To be, or not to be. " * 20, "n_predict": 1, "id_slot": 0}
    first.post("/completion", prompt)
    saved = first.post("/slots/0?action=save", {"filename": "kept.bin"})
    assert saved["n_saved"] > 100
    second = start_engine("llamacpp", TINY, slots=4)
    kept = first.port_file.parent / "cache" / "kept.bin"
    kept.rename(second.port_file.parent / "cache" / "kept.bin")
    second.post("/slots/0?action=restore", {"filename": "kept.bin"})
    assert second.post("/completion", prompt)["timings"]["cache_n"] > 100


def test_it_ends_when_told_and_takes_its_port_file_along(start_engine: StartEngine) -> None:
    engine = start_engine("llamacpp", TINY)
    engine.process.terminate()
    assert engine.process.wait(timeout=10) == 0
    assert not engine.port_file.exists()


def test_it_ends_in_the_middle_of_an_answer(start_engine: StartEngine) -> None:
    engine = start_engine("llamacpp", TINY)
    stream = engine.client.chat.completions.create(
        model="model", messages=HELLO, stream=True, max_tokens=1900, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    engine.process.terminate()
    assert engine.process.wait(timeout=10) == 0
    stream.close()


def test_a_file_that_cannot_be_loaded_ends_it_with_a_reason(
    start_engine: StartEngine, tmp_path: Path
) -> None:
    lie = tmp_path / "lie.gguf"
    data = bytearray(TINY.read_bytes())
    at = data.index(b"llama.block_count") + len(b"llama.block_count") + 4
    data[at : at + 4] = struct.pack("<I", 9)
    lie.write_bytes(data)
    engine = start_engine("llamacpp", lie, ready=False)
    assert engine.process.wait(timeout=30) == 1
    assert not engine.port_file.exists()
    lines = engine.stderr.read_text().splitlines()  # llama.cpp's own may come after it
    assert any(line.startswith(f"error: llama.cpp cannot load {lie}") for line in lines)


def test_a_small_bert_embeds(start_engine: StartEngine, bert_folder: Path, tmp_path: Path) -> None:
    async def added() -> Any:
        layout = Layout(tmp_path / "pool")
        return await add_model(str(bert_folder), None, layout, 0, lambda done, total: None)

    model = asyncio.run(added())
    assert model.purpose is Purpose.EMBEDDING
    engine = start_engine(
        "llamacpp", Path(model.path), purpose=Purpose.EMBEDDING, context_length=64
    )
    answer = engine.client.embeddings.create(model="model", input=["a b", "a b", "c", "b " * 50])
    first, same, other, _ = (item.embedding for item in answer.data)
    assert len(first) == 32
    assert abs(sum(value * value for value in first) - 1) < 1e-3
    assert max(abs(a - b) for a, b in zip(first, same, strict=True)) < 1e-3
    assert max(abs(a - b) for a, b in zip(first, other, strict=True)) > 1e-2
