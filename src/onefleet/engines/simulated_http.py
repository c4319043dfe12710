"""HTTP/1.1 for the simulated engine: a raw asyncio protocol over the llhttp parser.

It is the upstream of benchmarks, so an answer is made in callbacks, without a task or framework.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import cast

import httptools
import msgspec

from onefleet.engines import simulated_answers as answers
from onefleet.engines.simulated_answers import Call, Simulate
from onefleet.engines.simulated_service import Reply, Service
from onefleet.engines.simulated_text import detokenize, tokenize

#: The largest body that is read, in bytes.
BODY_BYTES_MAX = 32 << 20

#: The largest sum of a request's header bytes.
HEADER_BYTES_MAX = 64 << 10

#: Requests that may be sent ahead on one connection.
PIPELINED_MAX = 64

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(asyncio.Protocol):
    """One client. Requests are answered in the order in which they came."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[tuple[bytes, bytes, bytes, bytes, bool]] = deque()
        self._reply: Reply | None = None
        self._busy = False
        self._keep = True
        self._reset()

    def _reset(self) -> None:
        self._url = b""
        self._body = b""
        self._simulate = b""
        self._header_bytes = 0

    # --- asyncio.Protocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._queue.clear()
        reply, self._reply = self._reply, None
        if reply is not None:
            self._service.leave(reply)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as failure:
            if self._transport is not None:
                self.write(answers.error(400, f"not HTTP/1.1: {failure}", "invalid_request"))
                self._transport.close()

    # --- the parser's callbacks ----------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEADER_BYTES_MAX:
            self._refuse_size(f"the headers are over the limit of {HEADER_BYTES_MAX} bytes")
        elif len(name) == 10 and name.lower() == b"x-simulate":
            self._simulate = value
        elif len(name) == 6 and name.lower() == b"expect":
            self.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body
        if len(self._body) > BODY_BYTES_MAX:
            self._refuse_size(f"the body is over the limit of {BODY_BYTES_MAX} bytes")

    def on_message_complete(self) -> None:
        request = (
            self._parser.get_method(),
            self._url,
            self._body,
            self._simulate,
            self._parser.should_keep_alive(),
        )
        self._reset()
        if not self._busy:
            self._start(request)
        elif len(self._queue) < PIPELINED_MAX:
            self._queue.append(request)
        else:
            self.cut()

    def _refuse_size(self, message: str) -> None:
        if self._transport is not None:
            self.write(answers.error(413, message, "request_too_large"))
            self._transport.close()

    # --- what a reply calls --------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def cut(self) -> None:
        if self._transport is not None:
            self._reply = None
            self._transport.close()  # what was written still arrives

    def done(self) -> None:
        self._reply = None
        self._busy = False
        if not self._keep:
            if self._transport is not None:
                self._transport.close()
        elif self._queue:
            self._start(self._queue.popleft())

    # --- routes --------------------------------------------------------------------------------

    def _start(self, request: tuple[bytes, bytes, bytes, bytes, bool]) -> None:
        method, url, body, simulate, self._keep = request
        self._busy = True
        path = url.partition(b"?")[0]
        if method == b"POST":
            route = _POSTS.get(path)
            if route is not None:
                self._post(route, body, simulate)
                return
        elif method == b"GET":
            page = _PAGES.get(path)
            if page is not None:
                kind, make = page
                self._finish(answers.response(200, make(self._service), kind=kind))
                return
        known = path in _POSTS or path in _PAGES
        text, name = f"no {method.decode()} {path.decode('latin-1')} here", "not_found"
        self._finish(answers.error(405 if known else 404, text, name))

    def _finish(self, data: bytes) -> None:
        self.write(data)
        self.done()

    def _post(self, route: _Route, body: bytes, header: bytes) -> None:
        service = self._service
        base = service.settings.simulate
        try:
            call = answers.decode_call(body)
            own = call.simulate or (answers.header_simulate(header) if header else base)
            route(self, call, own.over(base))
        except (msgspec.DecodeError, UnicodeDecodeError) as failure:
            self._finish(answers.error(400, f"the body is wrong: {failure}", "invalid_request"))
        except OverflowError:
            self._finish(answers.error(400, "a token id is not one of ours", "invalid_request"))

    def _generate(self, call: Call, prompt: bytes, simulate: Simulate) -> None:
        if simulate.refuse:
            self.cut()
            return
        if simulate.error_status is not None:
            text = "simulated failure"
            self._finish(answers.error(simulate.error_status, text, "simulated_error"))
            return
        reply = self._service.answer(self, call, prompt, simulate)
        # A complete one has called done() already, and the next request may be under way.
        if not reply.complete:
            self._reply = reply

    def chat(self, call: Call, simulate: Simulate) -> None:
        if not call.messages:
            text = "messages is missing or empty"
            self._finish(answers.error(400, text, "invalid_request", param="messages"))
            return
        self._generate(call, answers.chat_prompt(call.messages), simulate)

    def completion(self, call: Call, simulate: Simulate) -> None:
        prompts = [] if call.prompt is None else answers.texts(call.prompt)
        if len(prompts) != 1:
            text = f"{len(prompts)} prompts: this engine takes exactly one"
            self._finish(answers.error(400, text, "invalid_request", param="prompt"))
            return
        call.messages = None
        self._generate(call, prompts[0], simulate)

    def embed(self, call: Call, simulate: Simulate) -> None:
        inputs = [] if call.input is None else answers.texts(call.input)
        settings = self._service.settings
        if not inputs:
            text = "input is missing or empty"
            self._finish(answers.error(400, text, "invalid_request", param="input"))
            return
        packed = call.encoding_format == "base64"
        body = answers.embeddings(settings.served_name, inputs, settings.embedding_length, packed)
        self._finish(answers.response(200, body))

    def tokenize(self, call: Call, simulate: Simulate) -> None:
        ids = tokenize((call.content or "").encode())
        self._finish(answers.response(200, msgspec.json.encode({"tokens": ids})))

    def detokenize(self, call: Call, simulate: Simulate) -> None:
        text = detokenize(call.tokens or []).decode("utf-8", errors="replace")
        self._finish(answers.response(200, msgspec.json.encode({"content": text})))


_Route = Callable[[Connection, Call, Simulate], None]

_POSTS: dict[bytes, _Route] = {
    b"/v1/chat/completions": Connection.chat,
    b"/v1/completions": Connection.completion,
    b"/v1/embeddings": Connection.embed,
    b"/tokenize": Connection.tokenize,
    b"/detokenize": Connection.detokenize,
}


def _health(_: Service) -> bytes:
    return b'{"status":"ok","simulated":true}'


def _models(service: Service) -> bytes:
    settings = service.settings
    meta = {"simulated": True, "n_ctx": settings.shape.context_length}
    entry = {"id": settings.served_name, "object": "model", "owned_by": "simulated", "created": 0}
    return msgspec.json.encode({"object": "list", "data": [{**entry, "meta": meta}]})


def _facts(service: Service) -> dict[str, int]:
    model = service.model
    return {
        **asdict(service.stats),
        "running": model.running,
        "waiting": model.waiting,
        "kv_blocks_used": model.kv_blocks_used,
        "kv_blocks_kept": model.kv_blocks_kept,
    }


def _stats(service: Service) -> bytes:
    return msgspec.json.encode({"simulated": True, **_facts(service)})


def _metrics(service: Service) -> bytes:
    gauges = ("running", "waiting", "kv_blocks_used", "kv_blocks_kept")
    lines = []
    for name, value in _facts(service).items():
        kind = "gauge" if name in gauges else "counter"
        metric = f"simulated:{name}" + ("" if name in gauges else "_total")
        lines.append(f"# TYPE {metric} {kind}\n{metric} {value}\n")
    return "".join(lines).encode()


_PAGES: dict[bytes, tuple[bytes, Callable[[Service], bytes]]] = {
    b"/health": (b"application/json", _health),
    b"/v1/models": (b"application/json", _models),
    b"/simulated/stats": (b"application/json", _stats),
    b"/metrics": (b"text/plain; version=0.0.4", _metrics),
}
