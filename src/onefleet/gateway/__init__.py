"""The data plane: a process that answers /v1 without waiting for the database."""

from __future__ import annotations
