"""The process of a llama.cpp replica: `python -m onefleet.engines.llamacpp_server --model ...`.

Loads the GGUF file, serves OpenAI-style HTTP on a loopback port that the system chooses, writes
the port file when it is ready, and lives until it is told to end. When the file cannot be loaded
it exits with status 1, and its last line on stderr says why.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from onefleet.domain.serving import Purpose
from onefleet.engines.launch import write_port_file
from onefleet.engines.llamacpp import BATCH_TOKENS, PROMPT_CACHE_MIB

#: Threads that talk HTTP, beyond one for every request in work: health, metrics, tokenize.
HTTP_THREADS_SPARE = 6

#: No web page may talk to the engine: an origin that no page has.
NO_ORIGIN = "http://127.0.0.1"

_LOG_WARNINGS = 2  # llama.cpp's verbosity: errors and warnings


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    options = _parser().parse_args(arguments)
    if not options.model.is_file():
        return _fail(f"the model file {options.model} does not exist")
    stop = {signal.SIGTERM, signal.SIGINT}
    # Blocked before the engine starts its threads, which inherit it: only sigwait takes them.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    try:
        server = _load(options)
    except ImportError as error:
        return _fail(f"xllamacpp cannot be imported: {error}; pip install 'onefleet[llamacpp]'")
    except RuntimeError as error:
        size = options.model.stat().st_size
        return _fail(f"llama.cpp cannot load {options.model} ({size} bytes): {error} See above.")
    address = urlsplit(server.listening_address)
    write_port_file(options.port_file, str(address.hostname), int(address.port or 0))
    signal.sigwait(stop)
    with contextlib.suppress(FileNotFoundError):
        options.port_file.unlink()
    sys.stdout.flush()
    sys.stderr.flush()
    # The engine's own shutdown waits for requests in work; the pool has drained or given them up.
    os._exit(0)


def _load(options: argparse.Namespace) -> Any:
    """Load the model and listen. Raises RuntimeError when llama.cpp refuses."""
    xllamacpp: Any = importlib.import_module("xllamacpp")

    embeds = options.purpose is Purpose.EMBEDDING
    context = options.context * options.slots
    # A BERT-like model attends to the whole input at once, so it must fit one batch.
    batch = options.context if embeds else options.batch_tokens
    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.model_alias = {options.alias}
    params.port = 0
    params.n_parallel = options.slots
    params.n_ctx = context
    # One KV store for all slots: prefixes are shared, and saved slots fit any later process.
    params.kv_unified = True
    params.kv_unified_per_slot = options.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.n_batch = params.n_ubatch = batch
    params.n_threads_http = options.slots + HTTP_THREADS_SPARE
    params.cont_batching = True
    params.cache_prompt = True
    params.cache_ram_mib = options.cache_ram_mib
    params.embedding = embeds
    params.endpoint_metrics = params.endpoint_slots = params.endpoint_props = True
    params.ui = False
    params.fit_params = False  # the pool's memory plan chose the sizes
    params.cors_origins = NO_ORIGIN
    params.verbosity = _LOG_WARNINGS
    options.cache_folder.mkdir(parents=True, exist_ok=True)
    params.slot_save_path = f"{options.cache_folder}/"
    return xllamacpp.Server(params)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onefleet.engines.llamacpp_server")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--purpose", type=Purpose, default=Purpose.CHAT)
    parser.add_argument("--slots", type=_positive, default=1)
    parser.add_argument("--context", type=_positive, required=True, help="tokens for each slot")
    parser.add_argument("--threads", type=_positive, default=1)
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--cache-folder", type=Path, required=True)
    parser.add_argument("--batch-tokens", type=_positive, default=BATCH_TOKENS)
    parser.add_argument("--cache-ram-mib", type=int, default=PROMPT_CACHE_MIB)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _fail(line: str) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"error: {line}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
