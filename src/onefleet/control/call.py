"""One call of the API as its handler sees it: who, what, and the checked parts of the request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import msgspec
from starlette.requests import Request

from onefleet.control.auth import Caller
from onefleet.control.pool import Pool
from onefleet.domain.errors import InvalidRequest, TooLarge

#: The largest JSON body of any call.
JSON_BYTES_MAX = 1 << 20
#: Integers of requests and queries are within this: exact in JSON readers, and in 64 bits.
INTEGER_MAX = 2**53

T = TypeVar("T")
EnumT = TypeVar("EnumT", bound=StrEnum)

_PATH = re.compile(r" - at `\$\.?(.*)`$")


@dataclass(frozen=True, slots=True)
class Call:
    """A call whose permission was checked. `caller` is of no meaning on internal routes."""

    pool: Pool
    request: Request
    caller: Caller

    def path(self, name: str) -> str:
        """A parameter of the route's path."""
        return str(self.request.path_params[name])

    def integer(self, name: str, default: int, low: int = 0, high: int = INTEGER_MAX) -> int:
        """An integer of the query string, within its limits."""
        text = self.request.query_params.get(name)
        if text is None:
            return default
        digits = text.removeprefix("-")
        value = int(text) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
        if value is None or not low <= value <= high:
            raise InvalidRequest(
                f'"{name}" is "{text[:40]}", not a whole number from {low} to {high}', param=name
            )
        return value

    def choice(self, name: str, choices: Mapping[str, T], default: str) -> T:
        """One of named values of the query string."""
        text = self.request.query_params.get(name, default)
        if text not in choices:
            raise InvalidRequest(
                f'"{name}" is "{text[:40]}", not one of {", ".join(choices)}', param=name
            )
        return choices[text]

    async def body(self, type_: type[T], limit: int = JSON_BYTES_MAX) -> T:
        """The JSON body, checked against its schema. Raises InvalidRequest, TooLarge."""
        return decoded(await self.raw(limit), type_)

    async def raw(self, limit: int) -> bytes:
        """The body as it came. Raises TooLarge naming the limit."""
        raw = bytearray()
        async for chunk in self.request.stream():
            raw += chunk
            if len(raw) > limit:
                raise TooLarge(
                    f"the body is over the limit of {limit} bytes", hint="send less in one call"
                )
        return bytes(raw)


def decoded(raw: bytes, type_: type[T]) -> T:
    """A wire value. Raises InvalidRequest with the path of the field at fault."""
    try:
        return msgspec.json.decode(raw, type=type_)
    except msgspec.ValidationError as error:
        found = _PATH.search(str(error))
        field = found.group(1) if found else None
        what = _PATH.sub("", str(error))
        raise InvalidRequest(
            f'"{field}": {what}' if field else what,
            why="the body does not have the form of this call",
            param=field,
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest("the body is not JSON", why=str(error)) from error


def one_of(kind: type[EnumT], text: str, param: str) -> EnumT:
    """A value of an enumeration that came as text."""
    try:
        return kind(text)
    except ValueError:
        raise InvalidRequest(
            f'"{param}" is "{text[:40]}", not one of {", ".join(kind)}', param=param
        ) from None


def within(value: int, low: int, high: int, param: str) -> int:
    """An integer of a body within its limits."""
    if not low <= value <= high:
        raise InvalidRequest(f'"{param}" is {value}, not within {low} to {high}', param=param)
    return value


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def good_name(text: str, param: str) -> str:
    """A name that a person chose: letters, digits, dots, dashes and underscores, 63 at most."""
    if not _NAME.fullmatch(text):
        raise InvalidRequest(
            f'"{param}" is "{text[:80]}", which is not a name',
            why="names are 1 to 63 letters, digits, dots, dashes and underscores, and start with "
            "a letter or digit",
            param=param,
        )
    return text


def good_text(text: str, limit: int, param: str) -> str:
    """Text that can be stored and passed on: bounded, and without NUL."""
    if len(text) > limit or "\0" in text:
        raise InvalidRequest(
            f'"{param}" has {len(text)} characters or a NUL; {limit} are allowed', param=param
        )
    return text
