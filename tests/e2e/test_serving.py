"""The gateway before a real engine, asked by the real client."""

from __future__ import annotations

import concurrent.futures

import openai
import pytest

from tests.e2e.harness import Pool

pytestmark = pytest.mark.e2e

QUESTION = [{"role": "user", "content": "Say something about the sea."}]


def test_a_plain_answer_has_text_and_usage(serving: Pool) -> None:
    answer = serving.client().chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=12, temperature=0
    )
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 12
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.prompt_tokens_details is not None


def test_a_stream_says_the_same_as_a_plain_answer(serving: Pool) -> None:
    client = serving.client()
    asked = {"model": "tiny", "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    plain = client.chat.completions.create(**asked).choices[0].message.content
    chunks = list(client.chat.completions.create(**asked, stream=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("length", "stop")
    assert all(c.usage is None for c in chunks)


def test_usage_in_a_stream_comes_last_and_only_when_asked(serving: Pool) -> None:
    chunks = list(
        serving.client().chat.completions.create(
            model="tiny",
            messages=QUESTION,
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 5


def test_a_repeated_prompt_is_cached(serving: Pool) -> None:
    client = serving.client()
    long = [{"role": "user", "content": "The sea, the sea. " * 20}]
    for _ in range(2):
        answer = client.chat.completions.create(model="tiny", messages=long, max_tokens=1)
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.cached_tokens or 0) > 20


def test_completions_and_models(serving: Pool) -> None:
    client = serving.client()
    assert [m.id for m in client.models.list()] == ["tiny"]
    done = client.completions.create(model="tiny", prompt="Once upon", max_tokens=4)
    assert done.usage is not None and done.usage.completion_tokens <= 4


def test_many_at_once_are_all_answered(serving: Pool) -> None:
    client = serving.client()

    def ask(number: int) -> str:
        said = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": f"Number {number}?"}],
            max_tokens=8,
        )
        return said.choices[0].message.content or ""

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(32)))
    assert len(answers) == 32


def test_errors_reach_the_client_as_their_own_classes(serving: Pool) -> None:
    client = serving.client(max_retries=0)
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError) as stranger:
        client.with_options(api_key="of-wrong").chat.completions.create(
            model="tiny", messages=QUESTION
        )
    assert stranger.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="tiny", messages="hello")  # type: ignore[arg-type]
    assert wrong.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt="sea " * 20_000, max_tokens=1)
    assert long.value.code == "context_length_exceeded"


def test_a_key_works_until_it_is_revoked(serving: Pool) -> None:
    made = serving.json("key", "create", "--name", "short-lived", "--role", "caller")
    client = serving.client(max_retries=0).with_options(api_key=made["key"])
    assert client.models.list().data
    serving.run("key", "revoke", made["id"])
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_usage_is_metered_by_key(serving: Pool) -> None:
    from tests.e2e.harness import until

    made = serving.json("key", "create", "--name", "metered")
    client = serving.client().with_options(api_key=made["key"])
    said = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=3)
    assert said.usage is not None

    def metered() -> object:
        import json
        import urllib.request

        key = (serving.folder / "credentials").read_text().strip()
        request = urllib.request.Request(
            f"{serving.url}/api/v1/usage?since=0", headers={"Authorization": f"Bearer {key}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            rows = json.load(answer)["data"]
        return [r for r in rows if r["key"] == made["id"]]

    rows = until("usage arrives", metered)
    assert sum(r["completion_tokens"] for r in rows) == said.usage.completion_tokens
    assert sum(r["prompt_tokens"] for r in rows) == said.usage.prompt_tokens
