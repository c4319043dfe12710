"""The handlers of the control API: one file a noun. What they may do is in `../routes.py`."""

from __future__ import annotations
