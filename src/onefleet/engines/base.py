"""The seam between the pool and a model runtime.

Every engine is a process that speaks OpenAI-style HTTP on a loopback port chosen by the system.
An adapter is pure: it says how to start the process, how to know that it is ready, and in which
dialect it speaks; the agent starts it, the gateway talks to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onefleet.domain.serving import Purpose


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """What the agent starts an engine with.

    port_file: the process writes "host port\\n" there, atomically, once it listens.
    """

    model_id: str
    served_name: str
    purpose: Purpose
    path: Path
    slots: int
    context_length: int
    threads: int
    port_file: Path
    cache_folder: Path
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Dialect:
    """How an engine's HTTP differs from the OpenAI contract; the gateway reads this table.

    cancels_plain: leaving a plain (not streamed) request stops it. Where it does not, the gateway
    streams from the engine and puts the answer together itself.
    """

    cancels_plain: bool
    reports_cached_tokens: bool
    tokenize_path: str
    tokenize_field: str  # the field of the request that holds the text
    health_path: str
    idle_close_ms: int  # the engine closes a connection that was idle for this long; 0: never
    #: Fields (name, JSON text) that the gateway adds to every chat and completion request.
    generation_fields: tuple[tuple[str, str], ...] = ()


class Engine(Protocol):
    """One model runtime. Adapters hold no state."""

    name: str
    dialect: Dialect

    def available(self) -> str:
        """Empty when it can run here, else why not and how to get it."""
        ...

    def command(self, process: EngineProcess) -> tuple[str, ...]:
        """The command line that serves the model; it must write process.port_file."""
        ...

    def environment(self, process: EngineProcess) -> tuple[tuple[str, str], ...]:
        """Environment variables that the process needs on top of the agent's."""
        ...

    def complaint(self, stderr: str) -> str:
        """Why a process that failed did so, from the end of what it wrote; empty: not said."""
        ...
