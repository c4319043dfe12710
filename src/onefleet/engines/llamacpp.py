"""The llama.cpp adapter: one `llamacpp_server` process a replica.

Measured facts behind the choices (x86, two cores): OpenMP workers that spin while they wait cost
5-24x as soon as processes share cores, so they wait passively; a cancelled prompt stops only
between batches, so batches are small.
"""

from __future__ import annotations

import importlib.util
import re
import sys

from onefleet.domain.errors import InvalidRequest
from onefleet.engines.base import Dialect, EngineProcess
from onefleet.engines.launch import last_line

#: Tokens a batch: the grain at which a prompt in work can be cancelled.
BATCH_TOKENS = 128

#: Memory that the engine may keep old prompts in, for prefix reuse (its own default is 8 GiB).
PROMPT_CACHE_MIB = 256

#: What a deployment may tune, and the least and greatest value of each.
OPTIONS: dict[str, tuple[int, int]] = {
    "batch-tokens": (1, 8192),
    "cache-ram-mib": (0, 1 << 20),
}

_LOADING = re.compile(r"error loading model: (.+)")


class LlamaCpp:
    """llama.cpp's own HTTP server from the wheel `xllamacpp`; serves GGUF files on CPUs."""

    name = "llamacpp"
    dialect = Dialect(
        cancels_plain=False,
        reports_cached_tokens=True,
        tokenize_path="/tokenize",
        tokenize_field="content",
        health_path="/health",
        idle_close_ms=5_000,
        # It notices that nobody waits only while it writes: progress makes it write in the prompt.
        generation_fields=(("return_progress", "true"),),
    )

    def available(self) -> str:
        """Empty when it can run here, else why not and how to get it."""
        if importlib.util.find_spec("xllamacpp") is None:
            return "the package xllamacpp is not installed: pip install 'onefleet[llamacpp]'"
        return ""

    def command(self, process: EngineProcess) -> tuple[str, ...]:
        """The command line that serves the model. Raises InvalidRequest for unknown options."""
        return (
            sys.executable,
            "-m",
            "onefleet.engines.llamacpp_server",
            f"--model={process.path}",
            f"--alias={process.served_name}",
            f"--purpose={process.purpose.value}",
            f"--slots={process.slots}",
            f"--context={process.context_length}",
            f"--threads={process.threads}",
            f"--port-file={process.port_file}",
            f"--cache-folder={process.cache_folder}",
            *(f"--{key}={value}" for key, value in _checked(process.options)),
        )

    def environment(self, process: EngineProcess) -> tuple[tuple[str, str], ...]:
        """OpenMP waits passively and uses the replica's threads; it reads this when it loads.

        A failed assertion ends the engine at once: the debugger that ggml would start to print a
        backtrace keeps a dead replica's connections open for seconds.
        """
        return (
            ("OMP_WAIT_POLICY", "passive"),
            ("OMP_NUM_THREADS", str(process.threads)),
            ("GGML_NO_BACKTRACE", "1"),
        )

    def complaint(self, stderr: str) -> str:
        """What is wrong with the model, where that is said: what follows only repeats it."""
        found = _LOADING.findall(stderr)
        return found[-1].strip() if found else last_line(stderr)


def _checked(options: tuple[tuple[str, str], ...]) -> list[tuple[str, int]]:
    checked = []
    for key, value in options:
        if key not in OPTIONS:
            raise InvalidRequest(
                f'the engine llamacpp has no option "{key}"',
                hint=f"its options are {', '.join(sorted(OPTIONS))}",
                param="options",
            )
        least, most = OPTIONS[key]
        number = int(value) if value.isascii() and value.isdigit() else -1
        if not least <= number <= most:
            raise InvalidRequest(
                f'option {key} of the engine llamacpp is "{value}"',
                why=f"it is a whole number from {least} to {most}",
                param="options",
            )
        checked.append((key, number))
    return checked
