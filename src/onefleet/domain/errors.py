"""The error tree. What a person sees is three lines: what failed, why, what to try.

    OnefleetError
      CallerError             the caller can mend it
        InvalidRequest        400  exit 2
        Unauthenticated       401  exit 4
        Forbidden             403  exit 4
        NotFound              404  exit 3
        Conflict              409  exit 5
          StaleGeneration     409  exit 5   somebody wrote first: read again and decide again
        TooLarge              413  exit 2
        Infeasible            422  exit 6   can never run on this fleet
        QuotaExceeded         429  exit 5
      WorldError              the outside let us down
        Unreachable           503  exit 7
        Overloaded            503  exit 1
        UpstreamFailed        502  exit 1
        TimedOut              504  exit 124
        Unsupported           501  exit 1   this machine cannot do it
        StorageFull           507  exit 1
      InternalError           500  exit 1   our own defect

Each class carries its code (stable, for programs), HTTP status and exit code as data.
"""

from __future__ import annotations

from typing import ClassVar


class OnefleetError(Exception):
    """An error with a stable code and three lines for a person.

    what: what failed, with numbers. why: the cause. hint: what to try (a command where there is
    one). param: the field of the request at fault. retry_after_ms: when trying again makes sense.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    fault: ClassVar[str] = "ours"

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        hint: str = "",
        param: str | None = None,
        code: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint
        self.param = param
        self.error_code = code or self.code
        self.retry_after_ms = retry_after_ms

    def lines(self) -> str:
        """The three lines that a person reads; a line that has nothing to say is left out."""
        parts = (f"error: {self.what}", self.why and f"why: {self.why}")
        return "\n".join(p for p in (*parts, self.hint and f"try: {self.hint}") if p)


class CallerError(OnefleetError):
    """The caller can mend it."""

    code = "invalid_request"
    status = 400
    exit_code = 2
    fault = "caller"


class InvalidRequest(CallerError):
    """The request is malformed or breaks a rule of its schema."""


class Unauthenticated(CallerError):
    """No key, or not a key of this pool."""

    code = "invalid_api_key"
    status = 401
    exit_code = 4


class Forbidden(CallerError):
    """The key is good, but does not permit this."""

    code = "permission_denied"
    status = 403
    exit_code = 4


class NotFound(CallerError):
    """The named thing does not exist, or is not visible to this key."""

    code = "not_found"
    status = 404
    exit_code = 3


class Conflict(CallerError):
    """The thing is in a state that does not allow this."""

    code = "conflict"
    status = 409
    exit_code = 5


class StaleGeneration(Conflict):
    """Somebody else wrote first. Read again and decide again."""

    code = "stale_generation"


class TooLarge(CallerError):
    """The request is over a named limit."""

    code = "request_too_large"
    status = 413


class Infeasible(CallerError):
    """It can never run on this fleet, however long it waits."""

    code = "infeasible"
    status = 422
    exit_code = 6


class QuotaExceeded(CallerError):
    """A tenant's rate or quota is used up for now."""

    code = "rate_limit_exceeded"
    status = 429
    exit_code = 5


class WorldError(OnefleetError):
    """The outside let us down."""

    code = "unavailable"
    status = 503
    fault = "world"


class Unreachable(WorldError):
    """A process or machine does not answer."""

    code = "unreachable"
    exit_code = 7


class Overloaded(WorldError):
    """A bounded queue is full."""

    code = "overloaded"


class UpstreamFailed(WorldError):
    """An engine answered wrongly, or died while it answered."""

    code = "upstream_failed"
    status = 502


class TimedOut(WorldError):
    """A named time limit passed."""

    code = "timeout"
    status = 504
    exit_code = 124


class Unsupported(WorldError):
    """This machine cannot do it."""

    code = "unsupported"
    status = 501


class StorageFull(WorldError):
    """No space left where it is needed."""

    code = "storage_full"
    status = 507


class InternalError(OnefleetError):
    """A defect of ours."""
