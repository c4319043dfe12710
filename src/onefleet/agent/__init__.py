"""One process a node: devices, health, workers."""

from __future__ import annotations
