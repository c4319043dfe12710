"""What the engine launchers share: the port file that says "I listen, and I am ready".

A launcher is the process that an adapter's `command()` starts. The agent watches its port file.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_port_file(path: Path, host: str, port: int) -> None:
    """Write "host port\\n" so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(f"{host} {port}\n")
    os.replace(name, path)


def last_line(text: str) -> str:
    """The last line that says something; empty when none does."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "")


def read_port_file(path: Path) -> tuple[str, int] | None:
    """Return (host, port), or None while the engine is not ready."""
    try:
        words = path.read_text("ascii").split()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    if len(words) != 2 or not words[1].isdigit():
        return None
    return words[0], int(words[1])
