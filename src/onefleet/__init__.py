"""Onefleet: one shared AI pool for serving and training."""

from __future__ import annotations

__version__ = "0.1.0"
