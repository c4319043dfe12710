"""One file a command, over the public API."""

from __future__ import annotations
