"""Copies of records with changes are what `dataclasses.replace` makes."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
from tests.fleets import a_job

from onefleet.domain.ids import Instant
from onefleet.domain.records import changed
from onefleet.domain.work import Phase


def test_a_copy_is_what_replace_makes() -> None:
    work = a_job("w", 2)
    copy = changed(work, phase=Phase.RUNNING, phase_since=Instant(7))
    assert copy == replace(work, phase=Phase.RUNNING, phase_since=Instant(7))
    assert work.phase is Phase.PENDING and changed(work) == work and changed(work) is not work
    with pytest.raises(FrozenInstanceError):
        copy.phase = Phase.ENDED  # type: ignore[misc]


def test_a_field_that_there_is_not() -> None:
    with pytest.raises(TypeError, match="has no field 'colour'"):
        changed(a_job("w"), colour="red")


@dataclass(frozen=True, slots=True)
class Checked:
    value: int

    def __post_init__(self) -> None:
        assert self.value > 0


def test_what_checks_itself_is_not_copied_so() -> None:
    with pytest.raises(AssertionError, match="Checked is more than its fields"):
        changed(Checked(1), value=-1)
