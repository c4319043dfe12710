"""A request that an engine answers: quota, a replica, retries, errors, and the bill at the end.

What differs between chat streams, answers put together, and plain answers stands in subclasses;
this is what they share. An exchange ends exactly once, by `succeed`, `fail` or `leave`.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from onefleet.domain.errors import (
    InvalidRequest,
    NotFound,
    OnefleetError,
    Overloaded,
    QuotaExceeded,
    TimedOut,
    Unsupported,
    UpstreamFailed,
)
from onefleet.domain.ids import Instant
from onefleet.domain.quantities import duration
from onefleet.gateway import replies
from onefleet.gateway.request import Request
from onefleet.gateway.target import EngineEndpoint, Target
from onefleet.gateway.upstream import UpstreamConnection
from onefleet.wire.openai import EngineErrorBody, EngineFault

if TYPE_CHECKING:
    from onefleet.gateway.app import Gateway
    from onefleet.gateway.connection import ClientConnection

#: An engine's error body is read up to this; the rest is dropped.
_ERROR_BYTES = 64 * 1024
#: What llama.cpp says, with status 500, to an image or sound that its model cannot take.
_NO_SUCH_INPUT = "input is not supported"

_decode_error = msgspec.json.Decoder(EngineErrorBody).decode


class EngineAnswer:
    """What differs between kinds of answers, and what no answer of an engine needs."""

    def answer(self, data: bytes, ended: bool) -> None:
        """Take a piece of a 200 answer. Ends the exchange when it is whole."""
        raise NotImplementedError

    def used(self) -> tuple[int, int, int]:
        """Prompt, cached and completion tokens so far, by the engine or estimated."""
        raise NotImplementedError

    def restart(self) -> None:
        """Forget what an engine answered so far: another one is asked."""
        raise NotImplementedError

    def cut(self, error: OnefleetError) -> None:
        """Write the honest end of an answer that is under way."""
        raise AssertionError("a plain answer is sent whole or not at all")

    def probe(self) -> bytes | None:
        return None

    def feed(self, data: bytes) -> None:
        raise AssertionError("the body of a /v1 request is taken whole")

    def fed(self) -> None:
        raise AssertionError("the body of a /v1 request is taken whole")

    def choked(self) -> None:
        """The engine reads slowly; the request is written whole, it waits in memory."""

    def drained(self) -> None:
        """The engine has read the request."""


class EngineExchange(EngineAnswer):
    """One request to a deployment. estimate: tokens that were taken from the quota for it."""

    # Defaults stand in the class: an exchange sets the few that differ, which is cheaper.
    link: UpstreamConnection | None = None
    prefixes: tuple[int, ...] = ()
    prompt_estimate = 0
    estimate = 0
    first_at = 0.0
    _engine: EngineEndpoint | None = None
    _heard_at = 0
    _status = 0
    _error = b""
    _error_headers: Sequence[tuple[bytes, bytes]] = ()
    _retries = 0
    _sent = False  # bytes of the answer went to the client
    _paused = False

    def __init__(
        self,
        gateway: Gateway,
        request: Request,
        client: ClientConnection,
        target: Target,
        operation: str,
        path: bytes,
        body: bytes,
    ) -> None:
        self.gateway = gateway
        self.request = request
        self.client = client
        self.target = target
        self.series = target.series(operation)
        self.path = path
        self.body = body
        self._began = self._granted_at = perf_counter()
        self._deadline = Instant(gateway.now + gateway.limits.hold_ms)

    # --- start

    def start(self) -> bool:
        """Pass the quota and ask for a replica. False: it was refused, and that is answered."""
        gateway = self.gateway
        key = self.request.key
        assert key is not None
        quota = gateway.quotas.get(key.tenant_id)
        refusal = quota.admit(self.estimate, Instant(gateway.now)) if quota else None
        if refusal is not None:
            gateway.metrics.refused[refusal.kind] = gateway.metrics.refused.get(refusal.kind, 0) + 1
            self.estimate = 0
            self._answer_error(_quota_error(key.tenant_id, refusal.kind, refusal), keep=True)
            return False
        self.target.last_request_at = Instant(gateway.wall)
        try:
            self.target.acquire(self, Instant(gateway.now))
        except Overloaded as error:
            self.fail(error)
            return False
        return True

    # --- the target's side

    def granted(self, engine: EngineEndpoint) -> None:
        self._engine = engine
        self._granted_at = perf_counter()
        self._heard_at = self.gateway.now
        engine.upstream.ask(self, engine.post(self.path, self.body))

    def expired(self) -> None:
        target = self.target
        if target.removed:
            self.fail(
                NotFound(
                    f'the model "{target.route.name}" was removed while the request waited',
                    param="model",
                    code="model_not_found",
                )
            )
            return
        limit = self.gateway.limits.hold_ms
        self.fail(
            TimedOut(
                f'no replica of deployment "{target.route.name}" was free in time',
                why=target.route.wait_reason or f"the limit hold_ms is {limit}",
                hint=f"onefleet why {target.route.name}",
                retry_after_ms=5_000,
            )
        )

    # --- the engine's side

    def head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status
        self._heard_at = self.gateway.now
        if self._paused and self.link is not None:
            self.link.pause()  # the client has not read the answer before this one
        if status != 200:
            self._error_headers = headers

    def read(self, data: bytes, ended: bool) -> None:
        self._heard_at = self.gateway.now
        if self._status == 200:
            self.answer(data, ended)
            return
        if len(self._error) < _ERROR_BYTES:
            self._error += data
        if ended:
            self._refused()

    def lost(self, connected: bool, started: bool, reason: str) -> None:
        engine = self._engine
        assert engine is not None
        if not connected and self._deadline > self.gateway.now:
            # Nothing was sent: it waits for another endpoint, or for the control plane's word.
            engine.shunned_until = Instant(self.gateway.now + self.gateway.limits.shun_ms)
            self.gateway.log.warning("engine_unreachable", replica=engine.replica_id, why=reason)
            self._release()
            self.target.put_back(self, self._deadline)
            self.target.dispatch(Instant(self.gateway.now))
            return
        self.broken(reason)

    # --- the client's side

    def pause(self) -> None:
        self._paused = True
        if self.link is not None:
            self.link.pause()

    def resume(self) -> None:
        self._paused = False
        self._heard_at = self.gateway.now
        if self.link is not None:
            self.link.resume()

    def leave(self) -> None:
        self.gateway.metrics.left += 1
        self._stop()
        self.bill()

    def tick(self, now: int) -> None:
        if self._engine is None or self._paused:
            return
        limits = self.gateway.limits
        name = "quiet_ms" if self._status else "first_byte_ms"
        limit = getattr(limits, name)
        if now - self._heard_at > limit:
            self.fail(
                TimedOut(
                    f'the engine of deployment "{self.target.route.name}" said nothing for'
                    f" {limit} ms",
                    why=f"the limit {name} is {limit}",
                )
            )

    # --- the end

    def succeed(self, keep: bool = True) -> None:
        """The answer is written whole. The bill has been written before its last bytes."""
        series = self.series
        now = perf_counter()
        series.duration.observe(now - self._began)
        if self.first_at:
            series.first_token.observe(self.first_at - self._began)
        self._release()
        self.client.finish(keep)

    def fail(self, error: OnefleetError) -> None:
        """End it by an error: as an answer, or as the last event of a stream under way."""
        self._stop()
        self.bill()
        if not self._sent:
            self._answer_error(error, keep=True)
            return
        self.gateway.metrics.cut += 1
        self.gateway.metrics.errors[error.error_code] = (
            self.gateway.metrics.errors.get(error.error_code, 0) + 1
        )
        self.cut(error)
        self.client.finish(False)

    # --- what subclasses use

    def broken(self, why: str) -> None:
        """The engine's answer cannot be finished: ask another one, or end by an error."""
        engine = self._engine
        assert engine is not None
        if self._try_another():
            return
        self.gateway.log.warning("answer_broken", replica=engine.replica_id, why=why)
        self.fail(
            UpstreamFailed(
                f'the engine of deployment "{self.target.route.name}" did not finish its answer',
                why=f"replica {engine.replica_id}: {why}",
                hint="ask again",
            )
        )

    def faulted(self, fault: EngineFault | str) -> None:
        """The engine's stream says that it failed."""
        if isinstance(fault, str):
            fault = EngineFault(message=fault)
        status = fault.code if isinstance(fault.code, int) and 400 <= fault.code < 600 else 500
        self.fail(engine_error(status, fault, self.target.route.name, []))

    def bill(self) -> None:
        """Meter what it cost and settle the quota, once; called before the last bytes go out."""
        key = self.request.key
        assert key is not None
        prompt, cached, completion = self.used()
        estimate, self.estimate = self.estimate, -1
        if estimate < 0:
            return
        quota = self.gateway.quotas.get(key.tenant_id)
        if quota is not None:
            quota.settle(estimate, prompt + completion, Instant(self.gateway.now))
        if not prompt and not completion:
            return
        gateway = self.gateway
        route = self.target.route
        gateway.meter.add(
            (gateway.minute, key.tenant_id, key.key_id, route.deployment_id),
            prompt,
            cached,
            completion,
        )
        series = self.series
        series.prompt_tokens += prompt
        series.cached_tokens += cached
        series.completion_tokens += completion
        if completion > 1 and self.first_at:
            series.per_token.observe((perf_counter() - self.first_at) / (completion - 1))

    def answer_headers(self) -> bytes:
        """Header lines of every good answer: times, the replica, what is left of the quota."""
        engine = self._engine
        assert engine is not None
        now = perf_counter()
        lines = b"openai-processing-ms: %d\r\nx-pool-replica: %b\r\nx-pool-queue-ms: %d\r\n%b" % (
            (now - self._began) * 1000,
            engine.replica_id.encode(),
            (self._granted_at - self._began) * 1000,
            self.request.connection_line(not self.request.keep_alive),
        )
        return lines + self._rates() if self.gateway.quotas else lines

    def send_whole(self, body: bytes) -> None:
        """Answer 200 with a JSON body and end."""
        self.bill()
        self.gateway.metrics.answered(200)
        self.client.write(replies.good(body, self.request.request_id, self.answer_headers()))
        self.succeed()

    # --- inside

    def _rates(self) -> bytes:
        key = self.request.key
        quota = self.gateway.quotas.get(key.tenant_id) if key is not None else None
        if quota is None:
            return b""
        now = Instant(self.gateway.now)
        lines = b""
        for kind, bucket in ((b"requests", quota.requests), (b"tokens", quota.tokens)):
            if bucket is not None:
                left, reset = bucket.state(now)
                lines += replies.rate_headers(kind, bucket.limit, left, reset)
        return lines

    def _stop(self) -> None:
        """Leave the engine and the queue."""
        if self._engine is not None:
            self._engine.upstream.leave(self)
            self._release()
        else:
            self.target.give_up(self)

    def _release(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            self.target.release(engine, Instant(self.gateway.now))

    def _answer_error(self, error: OnefleetError, keep: bool) -> None:
        closing = not keep or not self.request.keep_alive
        if error.status == 429:
            self.request.refusal_headers = self._rates()
        self.client.write(self.gateway.refuse(self.request, error, closing))
        self.client.finish(keep)

    def _try_another(self) -> bool:
        """Ask another replica, if nothing went to the client and there is one to ask."""
        engine = self._engine
        assert engine is not None
        if self._sent or self._retries >= self.gateway.limits.retries:
            return False
        if not self.target.others(engine):
            return False
        self._retries += 1
        self.gateway.metrics.retries += 1
        engine.shunned_until = Instant(self.gateway.now + self.gateway.limits.shun_ms)
        self._status = 0
        self._error = b""
        self.restart()
        engine.upstream.leave(self)
        self._release()
        self.target.put_back(self, self._deadline)
        self.target.dispatch(Instant(self.gateway.now))
        return True

    def _refused(self) -> None:
        """The engine answered with an error status, and this is all of it."""
        status = self._status
        fault = _fault(self._error)
        if status >= 500 and status != 501 and self._try_another():
            return
        self.fail(engine_error(status, fault, self.target.route.name, self._error_headers))


def _quota_error(tenant: str, kind: str, refusal: object) -> QuotaExceeded:
    limit, cost, wait = (getattr(refusal, name) for name in ("limit", "cost", "wait_ms"))
    if not wait:
        return QuotaExceeded(
            f'this request asks for {cost} {kind}, tenant "{tenant}" has {limit} a minute',
            why="the estimate is its prompt and max_tokens",
            hint="ask for less, or have the limit raised",
        )
    return QuotaExceeded(
        f'tenant "{tenant}" has used up its {limit} {kind} a minute',
        why=f"this request needs {cost}",
        hint=f"ask again in {duration(wait)}",
        retry_after_ms=wait,
    )


def _fault(body: bytes) -> EngineFault:
    try:
        decoded = _decode_error(body)
    except msgspec.MsgspecError:
        return EngineFault(message=body[:500].decode("utf-8", "replace"))
    if isinstance(decoded.error, EngineFault):
        return decoded.error
    said = decoded.error or decoded.message or bytes(decoded.detail).decode()
    return EngineFault(message=said)


def engine_error(
    status: int, fault: EngineFault, name: str, headers: Sequence[tuple[bytes, bytes]]
) -> OnefleetError:
    """What a caller is told when an engine answers `status` with `fault`."""
    said = fault.message or f"status {status}"
    if status == 429:
        error: OnefleetError = replies.EngineBusy(said, retry_after_ms=_wait_of(headers))
        return error
    if status == 501:
        return Unsupported(f'deployment "{name}" cannot do this', why=said)
    if status == 503:
        return Overloaded(
            f'the engine of deployment "{name}" is not ready',
            why=said,
            retry_after_ms=_wait_of(headers) or 1_000,
        )
    if 400 <= status < 500 and status not in (401, 403, 407, 408):
        too_long = (
            fault.type == "exceed_context_size_error"
            or fault.code == "context_length_exceeded"
            or ("context" in said and ("length" in said or "size" in said))
        )
        return InvalidRequest(
            said,
            param=fault.param,
            code="context_length_exceeded" if too_long else "invalid_request",
        )
    if _NO_SUCH_INPUT in said:
        return InvalidRequest(said, code="unsupported_input")
    return UpstreamFailed(
        f'the engine of deployment "{name}" failed with status {status}', why=said
    )


def _wait_of(headers: Sequence[tuple[bytes, bytes]]) -> int | None:
    """retry-after-ms or retry-after (seconds) of an engine's answer, in milliseconds."""
    seconds: int | None = None
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"retry-after-ms" and value.isdigit():
            return int(value)
        if lowered == b"retry-after" and value.isdigit():
            seconds = int(value) * 1000
    return seconds
