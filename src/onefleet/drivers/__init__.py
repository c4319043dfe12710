"""How processes start, and how their state is saved: adapters behind one Protocol."""

from __future__ import annotations
