"""The adapter of the simulated engine: the same Protocol and dialect, no model."""

from __future__ import annotations

import sys

from onefleet.domain.errors import InvalidRequest
from onefleet.engines.base import Dialect, EngineProcess
from onefleet.engines.launch import last_line

#: What a deployment may set; each is a whole number. See `simulated_server --help`.
OPTIONS = (
    "cut-after",
    "decode-tokens-s",
    "delay-ms",
    "die-after",
    "embedding-length",
    "error-status",
    "fail",
    "kv-tokens",
    "prefill-tokens-s",
    "refuse",
    "stall-after",
    "start-ms",
    "tokens",
)


class Simulated:
    """Answers at once or at chosen speeds, from no weights; for tests, benchmarks and trials."""

    name = "simulated"
    dialect = Dialect(
        cancels_plain=True,
        reports_cached_tokens=True,
        tokenize_path="/tokenize",
        tokenize_field="content",
        health_path="/health",
        idle_close_ms=0,
    )

    def available(self) -> str:
        """Empty: it can run anywhere."""
        return ""

    def command(self, process: EngineProcess) -> tuple[str, ...]:
        """The command line that answers for the model. Raises InvalidRequest for options."""
        for key, value in process.options:
            if key not in OPTIONS or not (value.isascii() and value.isdigit()):
                raise InvalidRequest(
                    f'the simulated engine cannot take the option {key}="{value}"',
                    why=f"its options are {', '.join(OPTIONS)}; each is a whole number",
                    param="options",
                )
        return (
            sys.executable,
            "-m",
            "onefleet.engines.simulated_server",
            f"--alias={process.served_name}",
            f"--slots={process.slots}",
            f"--context={process.context_length}",
            f"--port-file={process.port_file}",
            *(f"--{key}={value}" for key, value in process.options),
        )

    def environment(self, process: EngineProcess) -> tuple[tuple[str, str], ...]:
        """Nothing."""
        return ()

    def complaint(self, stderr: str) -> str:
        """Its last line."""
        return last_line(stderr)
