"""Fixtures: a control process of one's own, or one that a module's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.control.rig import Control


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    """A control process with an empty folder."""
    made = Control(tmp_path / "pool")
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    """A control process for tests that leave nothing behind that others mind."""
    made = Control(tmp_path_factory.mktemp("shared") / "pool")
    try:
        yield made.start()
    finally:
        made.close()
