"""Tiers: a promise on the device fraction (ideal run time / real run time) of a job or replica."""

from __future__ import annotations

from enum import StrEnum


class Tier(StrEnum):
    """premium >= 0.95, standard >= 0.70, basic: best effort."""

    PREMIUM = "premium"
    STANDARD = "standard"
    BASIC = "basic"

    @property
    def rank(self) -> int:
        """0 is served first; work may take devices only from a higher rank."""
        return _RANKS[self]


_RANKS = {Tier.PREMIUM: 0, Tier.STANDARD: 1, Tier.BASIC: 2}
