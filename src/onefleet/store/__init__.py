"""Durable state behind one Protocol: memory and SQL pass the same contract tests."""

from __future__ import annotations
