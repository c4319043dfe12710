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

    @property
    def promise_permille(self) -> int:
        """The least device fraction that it promises; 0: none."""
        return _PROMISES[self]


_RANKS = {Tier.PREMIUM: 0, Tier.STANDARD: 1, Tier.BASIC: 2}
_PROMISES = {Tier.PREMIUM: 950, Tier.STANDARD: 700, Tier.BASIC: 0}
