"""The control plane: a process with the control API and the reconcilers around the store."""

from __future__ import annotations
