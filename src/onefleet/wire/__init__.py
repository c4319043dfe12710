"""What crosses a process border: schemas, and the one HTTP client."""

from __future__ import annotations
