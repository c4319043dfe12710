"""Models and code: content-addressed, described, imported from files, packages and hubs."""

from __future__ import annotations
