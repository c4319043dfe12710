"""The garbage collector of processes that keep much for long, and find nothing to collect."""

from __future__ import annotations

import gc

#: Allocations before the youngest generation is looked at, and how often the older ones are.
_THRESHOLDS = (50_000, 20, 100)


def settle() -> None:
    """Collect rarely: neither requests nor passes leave cycles behind, and what is kept stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
