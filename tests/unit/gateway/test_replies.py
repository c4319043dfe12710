"""Answers as bytes, errors as OpenAI's clients read them, paths that are passed on."""

from __future__ import annotations

import msgspec
import pytest

from onefleet.domain import errors
from onefleet.gateway import replies
from onefleet.gateway.exchange import engine_error
from onefleet.gateway.proxy import is_passed_on
from onefleet.gateway.usage import UsageSum, legacy
from onefleet.wire.openai import CachedDetails, EngineFault, Usage


def test_a_whole_answer() -> None:
    data = replies.whole(200, replies.JSON, b"{}", b"id-1", b"x: y\r\n")
    assert data == (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n"
        b"x-request-id: id-1\r\nx: y\r\n\r\n{}"
    )
    bare = replies.whole(200, replies.JSON, b"{}", b"id-1", bare=True)
    assert bare.endswith(b"content-length: 2\r\nx-request-id: id-1\r\n\r\n")


@pytest.mark.parametrize(
    ("error", "kind", "headers"),
    [
        (errors.InvalidRequest("a"), "invalid_request_error", b"x-should-retry: false\r\n"),
        (errors.Unauthenticated("a"), "authentication_error", b"x-should-retry: false\r\n"),
        (errors.Forbidden("a"), "permission_error", b"x-should-retry: false\r\n"),
        (errors.NotFound("a"), "invalid_request_error", b"x-should-retry: false\r\n"),
        (errors.TooLarge("a"), "invalid_request_error", b"x-should-retry: false\r\n"),
        (errors.QuotaExceeded("a"), "rate_limit_error", b"x-should-retry: false\r\n"),
        (
            errors.QuotaExceeded("a", retry_after_ms=1_500),
            "rate_limit_error",
            b"retry-after: 2\r\nretry-after-ms: 1500\r\n",
        ),
        (errors.Unsupported("a"), "server_error", b"x-should-retry: false\r\n"),
        (errors.UpstreamFailed("a"), "server_error", b""),
        (errors.Overloaded("a"), "server_error", b""),
        (errors.InternalError("a"), "server_error", b""),
    ],
)
def test_errors(error: errors.OnefleetError, kind: str, headers: bytes) -> None:
    body = msgspec.json.decode(replies.error_body(error))["error"]
    assert body["type"] == kind
    assert (body["message"], body["param"], body["code"]) == ("a", None, error.code)
    assert replies.error_headers(error) == headers


def test_the_message_says_what_why_and_what_to_try() -> None:
    error = errors.NotFound("no model", why="there is none", hint="ask", param="model")
    body = msgspec.json.decode(replies.error_body(error))["error"]
    assert body["message"] == "no model; there is none; try: ask"
    assert body["param"] == "model"


@pytest.mark.parametrize(
    ("status", "said", "kind", "code"),
    [
        (400, "the context length is over", errors.InvalidRequest, "context_length_exceeded"),
        (400, "bad field", errors.InvalidRequest, "invalid_request"),
        (429, "slow", errors.QuotaExceeded, "rate_limit_exceeded"),
        (403, "no", errors.UpstreamFailed, "upstream_failed"),
        (500, "oops", errors.UpstreamFailed, "upstream_failed"),
        (503, "loading", errors.Overloaded, "overloaded"),
    ],
)
def test_an_engines_error(
    status: int, said: str, kind: type[errors.OnefleetError], code: str
) -> None:
    error = engine_error(status, EngineFault(message=said), "tiny", [(b"Retry-After", b"7")])
    assert isinstance(error, kind)
    assert error.error_code == code
    if status in (429, 503):
        assert error.retry_after_ms == 7_000


@pytest.mark.parametrize(
    "path", [b"/", b"/api/v1/jobs", b"/static/a.css", b"/jobs/x%20y", b"/v1x", b"/internals"]
)
def test_passed_on(path: bytes) -> None:
    assert is_passed_on(path)


@pytest.mark.parametrize(
    "path",
    [
        b"/internal",
        b"/internal/x",
        b"/Internal/x",
        b"/%49nternal/x",
        b"/a/../internal",
        b"/a/%2e%2e/internal",
        b"//internal",
        b"/%2finternal",
        b"/%252e%252e/x",
        b"/a\\b",
        b"/a%00b",
        b"/v1/nope",
        b"*",
        b"",
        b"internal",
    ],
)
def test_not_passed_on(path: bytes) -> None:
    assert not is_passed_on(path)


def usage(prompt: int, completion: int, cached: int = 0) -> Usage:
    return Usage(prompt, completion, prompt + completion, CachedDetails(cached))


def test_usage_of_several_reports() -> None:
    one = UsageSum(prompts=1, choices=3)
    one.add(usage(10, 5, 2))
    assert one.counts() == (10, 2, 5)  # one report for all choices
    for _ in range(2):
        one.add(usage(10, 5, 2))
    assert one.counts() == (10, 2, 15)  # one a choice: the prompt is counted once
    two = UsageSum(prompts=2, choices=1)
    two.add(usage(3, 1))
    two.add(usage(4, 2))
    assert two.counts() == (7, 0, 3)
    two.replace(usage(9, 9))
    assert two.counts() == (9, 0, 9)
    assert two.total().total_tokens == 18


def test_an_answer_that_broke_off_is_billed_by_what_came_of_it() -> None:
    silent = UsageSum(prompts=1, choices=1)
    assert silent.billed(prompt_estimate=7, events=0) == (0, 0, 0)
    assert silent.billed(prompt_estimate=7, events=3) == (7, 0, 3)
    silent.add(usage(10, 5, 2))
    assert silent.billed(prompt_estimate=7, events=3) == (10, 2, 5)


def test_legacy_logprobs_count_characters() -> None:
    entries = [
        msgspec.Raw(b'{"token":"Hi","logprob":-1.0,"top_logprobs":[]}'),
        msgspec.Raw(b'{"token":" you","logprob":-2.0}'),
    ]
    assert legacy(entries, 10)["text_offset"] == [10, 12]


def test_an_image_for_a_model_of_text_is_the_callers_fault() -> None:
    said = "image input is not supported - hint: you may need to provide the mmproj"
    error = engine_error(500, EngineFault(message=said), "tiny", [])
    assert (error.status, error.error_code) == (400, "unsupported_input")
