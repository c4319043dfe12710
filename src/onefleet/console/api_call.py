"""How a page asks the public API: in this process, with the key of whoever looks at the page.

The call goes through the same application and the same permission checks as one from outside, so
the console can do nothing that a script with the same key could not.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.types import Message, Scope

from onefleet.domain.errors import UpstreamFailed
from onefleet.wire.client import error_of

T = TypeVar("T")


async def get(request: Request, key: str, target: str, type_: type[T]) -> T:
    """GET ``/path?query`` with a key. Raises the OnefleetError that the API answers."""
    path, _, query = target.partition("?")
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": request.scope.get("scheme", "http"),
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"authorization", f"Bearer {key}".encode()), (b"host", b"console")],
        "client": request.scope.get("client"),
        "server": request.scope.get("server"),
    }
    status, body = 0, bytearray()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            body.extend(message.get("body", b""))

    await request.app(scope, receive, send)
    if status >= 400:
        raise error_of(status, bytes(body))
    try:
        return msgspec.json.decode(bytes(body), type=type_)
    except msgspec.DecodeError as error:
        raise UpstreamFailed("the API's answer breaks its schema", why=str(error)) from error
