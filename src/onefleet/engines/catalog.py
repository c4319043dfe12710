"""The engines that this package has, by name."""

from __future__ import annotations

from onefleet.domain.errors import InvalidRequest
from onefleet.engines.base import Engine
from onefleet.engines.llamacpp import LlamaCpp
from onefleet.engines.simulated import Simulated

ENGINES: dict[str, Engine] = {"llamacpp": LlamaCpp(), "simulated": Simulated()}

#: The engine that serves a model's format when nobody chose one.
BY_FORMAT: dict[str, str] = {"gguf": "llamacpp", "simulated": "simulated"}


def engine(name: str) -> Engine:
    """Return the adapter of that name. Raises InvalidRequest when there is none."""
    try:
        return ENGINES[name]
    except KeyError:
        raise InvalidRequest(
            f'there is no engine "{name}"',
            hint=f"engines are {', '.join(sorted(ENGINES))}",
            param="engine",
        ) from None
