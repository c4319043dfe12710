"""When a device is taken out, and how it comes back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from onefleet.core.health import (
    BringBack,
    BurnIn,
    BurntIn,
    Counted,
    Event,
    Health,
    HealthPolicy,
    ProbeFailed,
    Standing,
    TakeOut,
    Tick,
    WorkDied,
)
from onefleet.domain.ids import DeviceId, Instant, WorkId

A, B = DeviceId("n1/gpu0"), DeviceId("n1/gpu1")
POLICY = HealthPolicy(
    soft_max=10, deaths_max=2, window_ms=1_000, out_ms=100, out_ms_max=350, test_ms=50,
    calm_ms=10_000,
)  # fmt: skip


def at(ms: int) -> Instant:
    return Instant(ms)


def health() -> Health:
    return Health(POLICY, [B, A])


def died(work: str, *devices: DeviceId) -> WorkDied:
    return WorkDied(WorkId(work), devices, "killed by SIGBUS")


def test_errors_from_before_anybody_looked_speak_against_nobody() -> None:
    machine = health()
    assert machine.handle(Counted(A, "uncorrected ECC", 7, fatal=True), at(0)) == []
    assert machine.standing(A) is Standing.GOOD
    assert machine.handle(Counted(A, "uncorrected ECC", 7, fatal=True), at(1)) == []
    (effect,) = machine.handle(Counted(A, "uncorrected ECC", 8, fatal=True), at(2))
    assert effect == TakeOut(A, "1 x uncorrected ECC", at(102))
    assert machine.standing(B) is Standing.GOOD


def test_corrected_errors_add_up_within_the_window_alone() -> None:
    machine = health()
    machine.handle(Counted(A, "corrected ECC", 0), at(0))
    assert machine.handle(Counted(A, "corrected ECC", 10), at(500)) == []
    assert machine.handle(Counted(A, "corrected ECC", 20), at(1_600)) == []
    (effect,) = machine.handle(Counted(A, "corrected ECC", 21), at(1_700))
    assert isinstance(effect, TakeOut) and effect.reason.startswith("11 x corrected ECC")


def test_a_counter_that_starts_anew_counts_from_there() -> None:
    machine = health()
    machine.handle(Counted(A, "corrected ECC", 1_000), at(0))
    assert machine.handle(Counted(A, "corrected ECC", 3), at(10)) == []


def test_one_program_is_its_own_fault_and_different_ones_are_the_device_s() -> None:
    machine = health()
    assert machine.handle(died("j1", A), at(0)) == []
    assert machine.handle(died("j1", A), at(10)) == []
    assert machine.handle(died("j2", B), at(20)) == []
    (effect,) = machine.handle(died("j3", A), at(30))
    assert isinstance(effect, TakeOut) and "j1, j3" in effect.reason


def test_it_comes_back_after_a_burn_in_that_passed() -> None:
    machine = health()
    machine.handle(ProbeFailed(A, "fell off the bus"), at(0))
    assert machine.next_deadline() == 100
    assert machine.handle(Tick(), at(99)) == []
    assert machine.handle(Tick(), at(100)) == [BurnIn(A)]
    assert machine.out() == [(A, "fell off the bus", at(150))]
    assert machine.handle(BurntIn(A), at(120)) == [BringBack(A)]
    assert machine.out() == [] and machine.next_deadline() is None


def test_each_time_out_is_longer_until_it_has_been_good_for_long() -> None:
    machine = health()
    now = 0
    for expected in (100, 200, 350, 350):
        (effect,) = machine.handle(ProbeFailed(A, "gone"), at(now))
        assert isinstance(effect, TakeOut) and effect.until == now + expected
        now += expected
        machine.handle(Tick(), at(now))
        machine.handle(BurntIn(A), at(now))
    (effect,) = machine.handle(ProbeFailed(A, "gone"), at(now + 10_000))
    assert isinstance(effect, TakeOut) and effect.until == now + 10_100


def test_a_burn_in_that_fails_or_never_ends_takes_it_out_again() -> None:
    machine = health()
    machine.handle(ProbeFailed(A, "gone"), at(0))
    machine.handle(Tick(), at(100))
    (effect,) = machine.handle(BurntIn(A, "wrong sum"), at(110))
    assert effect == TakeOut(A, "its burn-in failed: wrong sum", at(310))
    machine.handle(Tick(), at(310))
    (effect,) = machine.handle(Tick(), at(360))
    assert isinstance(effect, TakeOut) and "did not come to an end" in effect.reason
    assert machine.handle(BurntIn(A), at(361)) == [], "it passed too late"


def test_what_is_not_of_this_node_is_ignored() -> None:
    other = DeviceId("n2/gpu0")
    machine = health()
    for event in (
        Counted(other, "x", 1),
        ProbeFailed(other, "x"),
        died("j", other),
        BurntIn(other),
    ):
        assert machine.handle(event, at(0)) == []


devices = st.sampled_from([A, B])
events = st.one_of(
    st.builds(Counted, devices, st.just("soft"), st.integers(0, 50)),
    st.builds(Counted, devices, st.just("fatal"), st.integers(0, 3), st.just(True)),
    st.builds(ProbeFailed, devices, st.just("gone")),
    st.builds(lambda w, d: died(w, d), st.sampled_from(["j1", "j2", "j3"]), devices),
    st.builds(BurntIn, devices, st.sampled_from(["", "wrong"])),
    st.just(Tick()),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(events, st.integers(0, 200)), max_size=60))
def test_whatever_happens_effects_and_standing_agree(history: list[tuple[Event, int]]) -> None:
    machine, now, out = health(), 0, dict.fromkeys((A, B), False)
    testing = dict.fromkeys((A, B), False)
    for event, passed in history:
        now += passed
        for effect in machine.handle(event, at(now)):
            match effect:
                case TakeOut(device, reason, until):
                    assert reason and until > now
                    out[device], testing[device] = True, False
                case BurnIn(device):
                    assert out[device] and not testing[device]
                    testing[device] = True
                case BringBack(device):
                    assert testing[device], "nothing comes back untested"
                    out[device] = testing[device] = False
        machine.check()
        assert {d for d, _, _ in machine.out()} == {d for d in out if out[d]}
        deadline = machine.next_deadline()
        assert (deadline is None) == (not any(out.values()))
        assert deadline is None or deadline > now
