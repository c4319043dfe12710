"""The process of a simulated replica: `python -m onefleet.engines.simulated_server ...`.

Speaks the same HTTP as a real engine, with no model and with speeds, memory and faults that can
be chosen. It says in every answer that it is simulated.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import signal
import sys
from pathlib import Path

from onefleet.engines.launch import write_port_file
from onefleet.engines.simulated_answers import Simulate
from onefleet.engines.simulated_http import Connection
from onefleet.engines.simulated_model import EngineShape
from onefleet.engines.simulated_service import Service, Settings

_HOST = "127.0.0.1"
_FAULTS = ("delay_ms", "die_after", "cut_after", "stall_after", "error_status")


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    options = _parser().parse_args(arguments)
    # Whatever started this may have blocked them for itself, and a child inherits that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    if options.fail:
        sys.stderr.write("error: the simulated engine was told to fail\n")
        return 1
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        return uvloop.run(_serve(options))
    return asyncio.run(_serve(options))


async def _serve(options: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    service = Service(_settings(options), loop)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), options.start_ms / 1000)
        return 0
    server = await loop.create_server(lambda: Connection(service), _HOST, 0, backlog=4096)
    host, port = server.sockets[0].getsockname()[:2]
    if options.refuse:
        server.close()  # the address is known, and nobody listens there
    write_port_file(options.port_file, host, port)
    await stop.wait()
    with contextlib.suppress(FileNotFoundError):
        options.port_file.unlink()
    server.close()
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    shape = EngineShape(
        slots=options.slots,
        context_length=options.context,
        kv_tokens=options.slots * options.context if options.kv_tokens < 0 else options.kv_tokens,
        prefill_tokens_s=options.prefill_tokens_s,
        decode_tokens_s=options.decode_tokens_s,
    )
    return Settings(
        served_name=options.alias,
        shape=shape,
        answer_tokens=options.tokens,
        embedding_length=options.embedding_length,
        simulate=Simulate(**{name: getattr(options, name) for name in _FAULTS}),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onefleet.engines.simulated_server")
    parser.add_argument("--alias", required=True)
    parser.add_argument("--slots", type=_positive, default=16)
    parser.add_argument("--context", type=_positive, default=8192, help="tokens for each slot")
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--prefill-tokens-s", type=_whole, default=0, help="0: infinitely fast")
    parser.add_argument("--decode-tokens-s", type=_whole, default=0, help="0: infinitely fast")
    parser.add_argument(
        "--kv-tokens", type=_whole, default=-1, help="0: no limit, no reuse; default: slots full"
    )
    parser.add_argument("--tokens", type=_positive, default=16, help="length of an answer")
    parser.add_argument("--embedding-length", type=_positive, default=64)
    parser.add_argument("--start-ms", type=_whole, default=0, help="time until it listens")
    parser.add_argument("--fail", type=_whole, default=0, help="1: exit with an error at start")
    parser.add_argument("--refuse", type=_whole, default=0, help="1: never take a connection")
    for name in _FAULTS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=_whole, default=None)
    return parser


def _whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
