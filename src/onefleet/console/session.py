"""Who looks at the console: an API key in a cookie that no script can read.

There is no session on the server, so a restart signs nobody out, and a revoked key ends at once.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from onefleet.domain.errors import InvalidRequest, TooLarge

COOKIE = "onefleet_key"
PATH = "/console"
AGE_S = 30 * 24 * 3600
FORM_BYTES_MAX = 4096

_KEY = re.compile(r"[A-Za-z0-9._~+/=-]{1,512}\Z")


def key_of(request: Request) -> str | None:
    """The key in the cookie; None without one, or with one that is no key."""
    text = request.cookies.get(COOKIE, "")
    return text if _KEY.match(text) else None


async def posted_key(request: Request) -> str:
    """The field ``key`` of the login form. Raises InvalidRequest, TooLarge."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > FORM_BYTES_MAX:
            raise TooLarge(f"the form is over {FORM_BYTES_MAX} bytes")
    text = parse_qs(raw.decode("utf-8", "replace")).get("key", [""])[0].strip()
    if not _KEY.match(text):
        raise InvalidRequest("that is not an API key", hint="onefleet key create")
    return text


def is_foreign(request: Request) -> bool:
    """Whether a form was sent by a page of another site."""
    origin = request.headers.get("origin")
    if origin is None or origin == "null":
        return origin == "null"
    return origin.split("://", 1)[-1] != request.headers.get("host", "")


def sign_in(response: Response, request: Request, key: str) -> None:
    """Set the cookie: for this site and path alone, out of reach of scripts."""
    response.set_cookie(
        COOKIE,
        key,
        max_age=AGE_S,
        path=PATH,
        httponly=True,
        samesite="strict",
        secure=_is_secure(request),
    )


def sign_out(response: Response) -> None:
    """Take the cookie away."""
    response.delete_cookie(COOKIE, path=PATH, httponly=True, samesite="strict")


def _is_secure(request: Request) -> bool:
    return request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
