"""The one place that reads the environment. A value is looked up as flag > environment > default.

Everything else gets its configuration as arguments.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from onefleet.domain.layout import Layout

#: Where the gateway listens unless told otherwise. Loopback: nothing is open to a network.
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 7070


@dataclass(frozen=True, slots=True)
class Settings:
    """What a command or process of this package was told from outside."""

    data_dir: Path
    key: str | None  # an API key that overrides the stored one
    criu: Path | None  # a criu to use instead of the system's or the managed copy
    image_share: Path | None  # a folder that outlives this machine, for saved images
    no_color: bool
    width: int | None
    force_color: bool = False
    dumb: bool = False  # the terminal cannot be redrawn
    port: int = DEFAULT_PORT

    @property
    def layout(self) -> Layout:
        return Layout(self.data_dir)


def settings(data_dir: str | None = None) -> Settings:
    """Read flags and environment: ONEFLEET_DATA_DIR, ONEFLEET_KEY, ONEFLEET_CRIU,
    ONEFLEET_IMAGE_SHARE, NO_COLOR, TERM, COLUMNS, and FORCE_COLOR, CLICOLOR as no-color.org and
    bixense.com/clicolors have them.
    """
    environment = os.environ
    chosen = data_dir or environment.get("ONEFLEET_DATA_DIR")
    root = Path(chosen).expanduser() if chosen else _default_data_dir()
    criu = environment.get("ONEFLEET_CRIU")
    share = environment.get("ONEFLEET_IMAGE_SHARE")
    columns = environment.get("COLUMNS", "")
    return Settings(
        data_dir=root.absolute(),
        key=environment.get("ONEFLEET_KEY"),
        criu=Path(criu).expanduser().absolute() if criu else None,
        image_share=Path(share).expanduser().absolute() if share else None,
        no_color=bool(environment.get("NO_COLOR"))
        or environment.get("TERM") == "dumb"
        or environment.get("CLICOLOR") == "0",
        width=int(columns) if columns.isdigit() else None,
        force_color=environment.get("FORCE_COLOR", "0") not in ("", "0"),
        dumb=environment.get("TERM") == "dumb",
    )


def hub_access() -> tuple[str, str]:
    """The model hub's address and an access token, HF_ENDPOINT and HF_TOKEN; empty: not told."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/"), os.environ.get("HF_TOKEN", "")


def child_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment plus `extra`, for a process that it starts."""
    return {**os.environ, **(extra or {})}


class StandardError:
    """Where a process of the pool logs to. A full disk costs lines of the log, never the process:
    an error of a write would be raised wherever something happened to be worth a line."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="replace"))

    def flush(self) -> None:
        """Nothing is held back."""


def _default_data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "onefleet"
