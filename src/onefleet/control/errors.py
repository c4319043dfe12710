"""How an error leaves the control plane: one body for all, with the status of its class."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from onefleet.domain.errors import OnefleetError
from onefleet.wire.api import ErrorBody, ErrorDetail

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


def detail_of(error: OnefleetError) -> ErrorDetail:
    """The error object of a body."""
    server = "server_error" if error.status >= 500 else "invalid_request_error"
    return ErrorDetail(
        message=error.what,
        type=_TYPES.get(error.status, server),
        param=error.param,
        code=error.error_code,
        why=error.why,
        hint=error.hint,
    )


def response_of(error: OnefleetError) -> Response:
    """The whole answer, with retry-after (seconds, rounded up) where it is known."""
    headers = {}
    if error.retry_after_ms is not None:
        headers["retry-after"] = str(-(-error.retry_after_ms // 1000))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return json_response(ErrorBody(detail_of(error)), error.status, headers)


def json_response(
    body: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """An answer of a wire type."""
    return Response(msgspec.json.encode(body), status, headers, "application/json")
