"""Web pages over the public API, rendered on the server."""

from __future__ import annotations
