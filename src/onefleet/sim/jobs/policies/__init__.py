"""The policies of others, to be beaten: queues, backfill, shortest first, least attained, shares.

Each is a named value of `catalog.py`, written from its description in the literature. Those that
take and give devices back again at any moment think in a flat pool.
"""

from __future__ import annotations
