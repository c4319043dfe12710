"""What all tests share: no test is judged by how fast the machine is."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("onefleet", deadline=None)
settings.load_profile("onefleet")
