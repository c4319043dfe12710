"""The past under other circumstances: small pasts whose outcome is counted by hand."""

from __future__ import annotations

import pytest

from onefleet.domain.errors import Infeasible
from onefleet.domain.ids import Instant, Millis
from onefleet.sim import whatif
from onefleet.sim.jobs.catalog import FIFO, SJF
from onefleet.sim.jobs.job import Fleet, Price, Rules
from onefleet.sim.traces.philly import TraceJob
from onefleet.wire.api import JobView, ReservationView, TenantView

HOUR = 3_600_000


def job(name: str, tenant: str, at: int, started: int | None, ended: int | None, **more):
    """Times in hours; it ran all the time from its start to its end."""
    ran = 0 if started is None or ended is None else (ended - started) * HOUR
    fields = {
        "id": name, "name": name, "tenant": tenant, "tier": "standard", "command": ("x",),
        "want": "run", "phase": "ended", "reason": "", "node": "", "devices": (),
        "devices_min": 1, "devices_max": 1, "attempts": 1, "suspends": 0, "lost_ms": 0,
        "ran_ms": ran, "fraction": 0.0, "image_bytes": 0, "memory_bytes": 0,
        "checkpoint": "criu", "checkpoint_reason": "", "outcome": "succeeded", "exit_code": 0,
        "why_ended": "", "submitted_at": at * HOUR,
        "started_at": None if started is None else started * HOUR,
        "ended_at": None if ended is None else ended * HOUR,
    }  # fmt: skip
    return JobView(**{**fields, **more})


def tenant(name: str, parent: str | None = None, weight: int = 1_000) -> TenantView:
    return TenantView(
        id=name, parent=parent, tokens_per_minute=None, requests_per_minute=None,
        reservations={}, created_at=0, weight=weight,
    )  # fmt: skip


def past_of(views, devices: int = 2, tenants=(), reserved=(), most: int = 100) -> whatif.Past:
    teams, owner = whatif.teams_of(tenants, reserved)
    rules = Rules(Fleet.flat(devices), Price(restore_ms=0), teams)
    return whatif.of_history(views, rules, owner, most)


def replayed(past: whatif.Past, *policies, devices=(), walls=False) -> list[whatif.Line]:
    told: list[float] = []
    found = [
        whatif.replay(case, past, 1, told.append)
        for case in whatif.cases(past, policies, devices, walls=walls)
    ]
    assert told[-1] == 1.0
    return found


#: On one device: a for four hours, b and c for an hour each behind it; the pool kept the order.
QUEUE = (
    job("a", "red", 0, 0, 4),
    job("b", "red", 1, 4, 5),
    job("c", "blue", 1, 5, 6),
)


def test_the_past_is_counted_as_it_was():
    past = past_of(QUEUE, devices=1)
    assert past.was is not None
    line = whatif.as_it_was(past, past.was, 1)
    assert not line.simulated and (line.jobs, line.devices) == (3, 1)
    assert line.jct_s == (4 + 4 + 5) * 3600 / 3
    assert line.queue_s == {"standard": (0 + 3 + 4) * 3600 / 3}
    assert line.utilisation == 1.0  # six hours of six
    assert line.kept == pytest.approx(1 / 3)  # 4/4, 1/4, 1/5 of their time against 70 %
    # No schedule is below SRPT: b and c go before the rest of a: (6 + 1 + 2) / 3 hours.
    assert line.ratio == pytest.approx(13 / 9)


def test_another_policy_and_more_devices_change_what_they_would():
    now, fifo, sjf, wide = replayed(past_of(QUEUE, devices=1), FIFO, SJF, devices=(2,))
    assert (now.case, now.policy, now.simulated) == ("replayed", "onefleet", True)
    assert fifo.jct_s == sjf.jct_s == 13 * 3600 / 3  # b and c are alike, and neither preempts
    assert not fifo.clairvoyant and sjf.clairvoyant
    assert (wide.case, wide.devices) == ("2 devices", 2)
    assert wide.jct_s < fifo.jct_s and wide.suspends > 0  # b beside a, which makes room for c
    assert 6 / 10 <= wide.utilisation <= 6 / 8


def test_walls_keep_a_team_from_what_the_other_leaves_idle():
    views = (job("a", "red", 0, 0, 2), job("b", "red", 0, 0, 2), job("c", "blue", 6, 6, 10))
    pool, walls = replayed(past_of(views), walls=True)
    assert pool.queue_s == {"standard": 0.0}
    assert (walls.case, walls.policy) == ("team walls", "silos")
    assert walls.queue_s == {"standard": 2 * 3600 / 3}  # b behind a, beside blue's idle device
    assert walls.jct_s == (2 + 4 + 4) * 3600 / 3


def test_spares_are_of_the_most_common_size_and_never_all_nodes():
    assert [whatif.kept((8, 4, 8, 8), n) for n in range(6)] == [0, 8, 16, 24, 24, 24]
    assert whatif.kept((2,), 1) == 0 and whatif.kept((), 3) == 0
    assert whatif.kept((4, 8), 1) == 4


def test_walls_that_cannot_stand_are_refused():
    views = (job("a", "red", 0, 0, 1, devices_max=2), job("b", "blue", 0, 1, 2))
    with pytest.raises(Infeasible, match="2 devices are too few for 2 teams"):
        replayed(past_of(views), walls=True)


def test_what_cannot_be_replayed_is_counted():
    views = (
        *QUEUE,
        job("d", "red", 6, None, 7),  # cancelled before it ran
        job("e", "red", 6, 6, None),  # runs
        job("f", "red", 6, 6, 7, lost_ms=HOUR),  # all that it did was lost
        job("g", "red", 6, 6, 7, devices_max=3),
    )
    past = past_of(views, most=2)
    assert (past.left_out, past.dropped) == (4, 1)
    assert [(j.arrived, j.duration_ms) for j in past.jobs] == [(HOUR, HOUR), (HOUR, HOUR)]


def test_lost_work_was_wasted_and_is_not_the_jobs_run_time():
    past = past_of((job("a", "red", 0, 0, 3, lost_ms=HOUR, devices_max=2),))
    assert past.jobs[0].duration_ms == 2 * HOUR and past.was is not None
    assert whatif.as_it_was(past, past.was, 1).wasted_device_s == 2 * 3600


def test_a_reservation_answers_for_the_tenants_below_it():
    reserved = [
        ReservationView(
            id=state, tenant="lab", device_kind="cpu", product="", devices=2, starts_at=None,
            ends_at=None, within_ms=300_000, state=state, created_at=0,
        )
        for state in ("open", "over")
    ]  # fmt: skip
    tenants = (tenant("lab", None, 1_500), tenant("team", "lab", 500), tenant("other"))
    teams, owner = whatif.teams_of(tenants, reserved)
    assert [(t.tenant, t.reserved, t.weight) for t in teams] == [
        ("lab", 2, 3), ("other", 0, 2), ("team", 0, 1),
    ]  # fmt: skip
    assert [owner(name) for name in ("lab", "team", "other", "gone")] == [
        "lab", "lab", "other", "gone",
    ]  # fmt: skip


def test_a_trace_has_no_past_and_says_how_many_jobs_it_left():
    trace = [TraceJob(Instant(n), Millis(HOUR), 1, f"vc{n % 2}") for n in range(5)]
    past = whatif.of_trace(trace, 4, Price(), 3, seed=1)
    assert (len(past.jobs), past.was, past.dropped) == (3, None, 2)
    assert sum(team.reserved for team in past.rules.teams) == 4
    assert replayed(past)[0].jct_s == 3600  # each has a device at once
