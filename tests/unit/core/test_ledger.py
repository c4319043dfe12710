"""The ledger of the device fraction, by the hour."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.fleets import a_job, a_tenant, placed

from onefleet.core.index.usage import DeviceUse, usage_of
from onefleet.core.ledger import (
    HALVING_MS,
    HOUR_MS,
    HOURS_KEPT,
    account,
    bucket_of,
    forgetting,
    fraction_permille,
    held_milli,
    use_of,
)
from onefleet.core.lifecycle import Resized, SaveOrdered, WantChanged, apply
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import DeviceId, Instant
from onefleet.domain.tenancy import Used
from onefleet.domain.tiers import Tier
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
    assert fraction_permille(after, at(1_000), HOUR_MS) is None


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


# --- what was had of late --------------------------------------------------------------------


def test_device_time_of_late_is_halved_at_the_end_of_each_day() -> None:
    noon, hour = HALVING_MS // 2, 3_600_000
    work = running(accounted_until=at(noon))
    assert use_of(work, at(noon + hour)).by(at(noon + hour)) == hour
    assert use_of(work, at(HALVING_MS + hour)).by(at(HALVING_MS + hour)) == HALVING_MS // 4 + hour
    done = replace(account(work, at(HALVING_MS + hour)), phase=Phase.PENDING, placement=())
    assert use_of(done, at(2 * HALVING_MS)).by(at(2 * HALVING_MS)) == (HALVING_MS // 4 + hour) // 2
    assert use_of(done, at(90 * HALVING_MS)).by(at(90 * HALVING_MS)) == 0


@given(st.lists(st.integers(0, 3 * HALVING_MS), min_size=1, max_size=6), st.integers(1, 4))
def test_it_does_not_matter_how_often_it_is_accounted(passing: list[int], devices: int) -> None:
    work = running(devices)
    now = 0
    for ms in passing:
        now += ms
        work = account(work, at(now))
    once = use_of(running(devices), at(now)).by(at(now))
    assert abs(use_of(work, at(now)).by(at(now)) - once) <= 2 * len(passing)


@given(st.lists(st.tuples(st.integers(0, 5 * HALVING_MS), st.booleans()), max_size=6))
def test_what_is_kept_by_day_is_the_sum_over_the_works(entries: list[tuple[int, bool]]) -> None:
    usage, works, now = DeviceUse(), list[Work](), at(6 * HALVING_MS)
    for since, runs in entries:
        work = running(accounted_until=at(since), submitted_at=at(0), recent_ms=since // 3)
        works.append(work if runs else replace(work, phase=Phase.PENDING, placement=()))
        usage.add(use_of(works[-1], now), bucket_of(work), [work.tenant_id])
    summed = sum(use_of(work, now).by(now) for work in works)
    tenant_id, bucket = a_job("j").tenant_id, bucket_of(a_job("j"))
    assert abs(usage.of(tenant_id, bucket, now) - summed) <= 12
    for work in works:
        usage.take_out(use_of(work, now), bucket, [tenant_id])
        assert usage.of(tenant_id, bucket, now) <= summed + 12
    assert usage.of(tenant_id, bucket, now) == 0


def used(standard_ms: int, basic_ms: int) -> tuple[Used, ...]:
    basic = Used(Tier.BASIC, DeviceKind.CPU, basic_ms)
    return (basic, Used(Tier.STANDARD, DeviceKind.CPU, standard_ms))


def test_a_tenant_remembers_what_works_had_whose_records_go_away() -> None:
    works = [running(recent_ms=100), a_job("k", tier=Tier.BASIC, recent_ms=50)]
    tenant = forgetting(a_tenant("a"), works, at(1_000))
    assert (tenant.used, tenant.used_until) == (used(1_100, 50), 1_000)
    later = forgetting(tenant, [], at(HALVING_MS))
    assert later.used == used(550, 25)
    usage = DeviceUse()
    usage.put_tenant(tenant, [tenant.id])
    usage.put_tenant(later, [tenant.id])
    assert usage.of(tenant.id, (Tier.BASIC, DeviceKind.CPU), at(HALVING_MS)) == 25
    usage.remove_tenant(tenant.id)
    assert usage.of(tenant.id, (Tier.STANDARD, DeviceKind.CPU), at(HALVING_MS)) == 0


def test_what_is_shown_is_what_records_say_those_that_are_gone_included() -> None:
    tenant = forgetting(a_tenant("a"), [a_job("k", tier=Tier.BASIC, recent_ms=50)], at(1_000))
    usage = usage_of({tenant.id: tenant}, [running(recent_ms=100)], at(2_000))
    found = {bucket: usage.of(tenant.id, bucket, at(2_000)) for bucket in usage.buckets(tenant.id)}
    assert found == {(Tier.BASIC, DeviceKind.CPU): 50, (Tier.STANDARD, DeviceKind.CPU): 2_100}
