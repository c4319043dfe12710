"""The same core against a simulated world: scenarios, faults, checkers."""

from __future__ import annotations
