"""Validation messages become fields at fault; prompts of every shape are read."""

from __future__ import annotations

import msgspec
import pytest

from onefleet.wire.openai import ChatCall, decode_prompt, parameter_at_fault, readable


@pytest.mark.parametrize(
    ("body", "param", "why"),
    [
        (b'{"model":"a"}', "messages", "Object missing required field `messages`"),
        (b'{"model":"a","messages":[{}]}', "messages[0].role", "Object missing required"),
        (b'{"model":1,"messages":[]}', "model", "Expected `str`, got `int`"),
        (b'{"model":"a","messages":[]}', "messages", "Expected `array` of length >= 1"),
        (b"[]", None, "Expected `object`, got `array`"),
        (
            b'{"model":"a","messages":[{"role":"u"}],"stream_options":{"include_usage":3}}',
            "stream_options.include_usage",
            "Expected `bool | null`, got `int`",
        ),
    ],
)
def test_the_field_at_fault(body: bytes, param: str | None, why: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(body, type=ChatCall)
    assert parameter_at_fault(str(caught.value)) == param
    assert readable(str(caught.value)).startswith(why)


def test_prompts() -> None:
    for text, value in (
        (b'"a"', "a"),
        (b'""', ""),
        (b'["a","b"]', ["a", "b"]),
        (b"[1,2]", [1, 2]),
        (b"[[1],[2,3]]", [[1], [2, 3]]),
    ):
        assert decode_prompt(msgspec.Raw(text), "prompt") == value
    for text in (b"5", b"[]", b"null", b'[1,"a"]', b"[[1],2]", b'[["a"]]', b"{}", b"[true]"):
        with pytest.raises(msgspec.ValidationError, match=r"\$\.prompt"):
            decode_prompt(msgspec.Raw(text), "prompt")
