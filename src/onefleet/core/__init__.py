"""Decisions: pure functions and state machines. `now` and `rng` are arguments.

Imports `domain` only. Never reads a clock, the environment or a file, never draws by itself.
"""

from __future__ import annotations
