"""Measurements with budgets. They say what they measured on, and compare within one run."""

from __future__ import annotations
