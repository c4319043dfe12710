"""How long criu may take at a dump."""

from __future__ import annotations

import pytest

from onefleet.drivers import supervised
from onefleet.drivers.criu_commands import LIMIT_S, allowed_s


@pytest.mark.parametrize(
    ("limit_ms", "limit_s"), [(0, LIMIT_S), (7_500, 7.5), (86_400_000, LIMIT_S)]
)
def test_a_dump_has_what_was_said_and_never_longer_than_its_answer_is_waited_for(
    limit_ms: int, limit_s: float
) -> None:
    assert allowed_s(limit_ms) == limit_s < supervised._ANSWER_LIMIT_S
