"""The ledger of the device fraction, by the hour."""

from __future__ import annotations

from dataclasses import replace

from tests.fleets import a_job, placed

from onefleet.core.ledger import HOUR_MS, HOURS_KEPT, account, fraction_permille, held_milli
from onefleet.core.lifecycle import Resized, SaveOrdered, WantChanged, apply
from onefleet.domain.ids import DeviceId, Instant
from onefleet.domain.work import Phase, Slot, Want, Work


def at(ms: int) -> Instant:
    return Instant(ms)


def running(devices_max: int = 1, **changes: object) -> Work:
    work = placed(a_job("j", devices_max=devices_max), ("n1", "0"))
    return replace(work, **{"phase_since": at(0), "accounted_until": at(0), "hours": (), **changes})


def test_waiting_and_being_saved_count_against_the_promise() -> None:
    work = replace(a_job("j"), submitted_at=at(0))
    waited = account(work, at(600_000))
    assert fraction_permille(waited, at(600_000), HOUR_MS) == 0
    ran = account(running(hours=waited.hours, accounted_until=at(600_000)), at(1_800_000))
    assert fraction_permille(ran, at(1_800_000), HOUR_MS) == 666
    saving = apply(ran, SaveOrdered("room"), at(1_800_000))
    assert fraction_permille(saving, at(2_400_000), HOUR_MS) == 500


def test_what_its_owner_suspended_or_what_has_yet_to_wait_for_others_is_not_wanted() -> None:
    work = apply(running(), WantChanged(Want.SUSPEND), at(1_000))
    assert fraction_permille(work, at(500_000), HOUR_MS) == 1_000
    after = replace(a_job("j"), submitted_at=at(0), ready=False)
    assert account(after, at(1_000)).hours == ()


def test_a_narrow_stretch_counts_by_its_share_of_what_was_asked_for() -> None:
    work = account(running(devices_max=4), at(1_000_000))
    assert fraction_permille(work, at(1_000_000), HOUR_MS) == 250
    wide = (Slot(work.placement[0].node_id, tuple(DeviceId(f"n1/cpu{i}") for i in range(4))),)
    assert (
        fraction_permille(apply(work, Resized(wide), at(1_000_000)), at(2_000_000), HOUR_MS) == 625
    )
    assert fraction_permille(account(running(4, width=1), at(1_000)), at(1_000), HOUR_MS) == 1_000


def test_hours_are_split_kept_for_a_day_and_slide_out_of_the_window() -> None:
    work = account(running(), at(HOUR_MS + HOUR_MS // 2))
    assert [(h.begins_at, h.wanted_ms) for h in work.hours] == [
        (0, HOUR_MS),
        (HOUR_MS, HOUR_MS // 2),
    ]
    long = account(running(), at(40 * HOUR_MS))
    assert len(long.hours) == HOURS_KEPT and long.served_ms == 40 * HOUR_MS
    waiting = replace(long, phase=Phase.PENDING, placement=())
    assert fraction_permille(waiting, at(42 * HOUR_MS), 3 * HOUR_MS) == 333
    assert fraction_permille(waiting, at(44 * HOUR_MS), 2 * HOUR_MS) == 0


def test_a_device_that_ranks_take_turns_on_is_held_once_and_a_share_counts_as_that() -> None:
    device = DeviceId("n1/cpu0")
    work = running()
    both = replace(work, placement=(Slot(work.placement[0].node_id, (device,)),) * 2)
    assert held_milli(both) == 1_000
    part = replace(work, placement=(Slot(work.placement[0].node_id, (device,), 300),))
    assert held_milli(part) == 300
    assert account(part, at(1_000)).served_ms == 300
