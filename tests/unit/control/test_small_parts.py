"""Ids, keys, names, log pieces and request parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fleets import a_job, placed
from tests.unit.control.states import NOW, a_state

from onefleet.control.api.deployments import default_name
from onefleet.control.api.logs import _text
from onefleet.control.auth import Caller, caller_of, digest_of, must_be_internal, must_have
from onefleet.control.auth import Permission as P
from onefleet.control.call import decoded, good_name
from onefleet.control.clock import TimeIds, WallClock
from onefleet.control.demand import Demands
from onefleet.control.errors import detail_of, response_of
from onefleet.control.leases import Sightings
from onefleet.control.views import Scene, job_view
from onefleet.core import lifecycle
from onefleet.core.plan import Blocker, Gate
from onefleet.domain.errors import (
    Forbidden,
    InvalidRequest,
    OnefleetError,
    Overloaded,
    Unauthenticated,
)
from onefleet.domain.ids import Instant, KeyId, TenantId
from onefleet.domain.tenancy import Role
from onefleet.domain.work import Want, Work
from onefleet.wire.api import NewJob


def test_ids_are_fresh_and_sort_by_creation() -> None:
    ids = TimeIds()
    made = [ids.new("job") for _ in range(500)]
    assert sorted(set(made)) == made
    assert all(name.startswith("job-") and len(name) == 17 for name in made)
    clock = WallClock()
    assert clock.now() <= clock.now()


@given(st.text(max_size=30), st.integers(0, 8))
def test_a_log_cut_anywhere_comes_back_whole(text: str, size: int) -> None:
    raw, found, at = text.encode("utf-8", "replace"), "", 0
    while at < len(raw):
        piece = raw[at : at + size + 4]
        more, used = _text(piece, last=at + len(piece) == len(raw))
        assert 0 < used <= len(piece)
        found += more
        at += used
    assert found == raw.decode()


@given(st.binary(min_size=4, max_size=20))
def test_bytes_that_are_no_text_are_read_on(raw: bytes) -> None:
    at = 0
    while at < len(raw):
        text, used = _text(raw[at : at + 4], last=at + 4 >= len(raw))
        assert used > 0 and text
        at += used


def test_what_an_older_plan_said_is_no_reason_of_a_job_that_went_on() -> None:
    waiting = a_job("job-1")
    running = placed(waiting, ("n1", "0"))
    over = lifecycle.apply(running, lifecycle.ProcessEnded(0, ""), NOW)
    for work, reason in ((waiting, "no room"), (running, ""), (over, "")):
        state = a_state(work)
        blockers = {work.id: (Blocker(Gate.CONTENTION, "no room"),)}
        scene = Scene(state, Sightings(NOW), Demands(NOW), blockers, NOW)
        assert job_view(state.jobs[work.id], scene).reason == reason


def test_a_field_at_fault_is_named_by_its_path() -> None:
    with pytest.raises(InvalidRequest) as caught:
        decoded(b'{"command": ["a", 3]}', NewJob)
    assert caught.value.param == "command[1]"
    with pytest.raises(InvalidRequest, match="not JSON"):
        decoded(b"{", NewJob)
    with pytest.raises(InvalidRequest, match="unknown field `colour`"):
        decoded(b'{"command": [], "colour": 1}', NewJob)


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "x" * 63])
def test_good_names(name: str) -> None:
    assert good_name(name, "name") == name


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "x" * 64, "é", "a\n", ".."])
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidRequest):
        good_name(name, "name")


@pytest.mark.parametrize(
    ("model", "name"),
    [("demo:smollm2", "smollm2"), ("hf:org/model", "model"), ("org/model", "model"), ("m", "m")],
)
def test_a_deployment_is_called_after_its_model(model: str, name: str) -> None:
    assert default_name(model) == name


def test_roles_and_permissions() -> None:
    def allowed(role: Role, permission: P) -> bool:
        try:
            must_have(permission, Caller(KeyId("k"), TenantId("t"), role))
        except Forbidden:
            return False
        return True

    table = {role: [p for p in P if allowed(role, p)] for role in Role}
    assert table == {
        Role.ADMIN: [P.MEMBER, P.ADMIN],
        Role.MEMBER: [P.MEMBER],
        Role.CALLER: [],
        Role.NODE: [P.NODE],
    }


def test_the_internal_token_counts_from_this_machine_only() -> None:
    must_be_internal("secret", "127.0.0.1", "secret")
    for header, peer in ((None, "127.0.0.1"), ("secre", "127.0.0.1"), ("secret", "10.0.0.1")):
        with pytest.raises(Unauthenticated):
            must_be_internal(header, peer, "secret")
    with pytest.raises(Unauthenticated):
        must_be_internal("secret", None, "secret")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer of-x"])
def test_a_key_that_is_not_one_is_refused_without_being_said(header: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        caller_of(header, a_state())
    assert "of-x" not in caught.value.what + caught.value.why + caught.value.hint
    assert digest_of("of-x").startswith("sha256:")


def test_an_error_keeps_its_code_status_and_when_to_try_again() -> None:
    error = Overloaded("too much", why="w", hint="h", retry_after_ms=1_001)
    response = response_of(error)
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    detail = detail_of(error)
    assert (detail.type, detail.code, detail.why, detail.hint) == (
        "server_error",
        "overloaded",
        "w",
        "h",
    )
    assert detail_of(OnefleetError("x")).code == "internal_error"


def test_the_fraction_of_a_job_is_that_of_its_ledger() -> None:
    """Time in which its owner wants it suspended counts against nobody."""
    half, later = Instant(NOW + 60_000), Instant(NOW + 240_000)
    waited = a_job("job-1", submitted_at=NOW, phase_since=NOW, accounted_until=NOW)
    running = placed(waited, ("n1", "0"), at=half)
    pausing = lifecycle.apply(running, lifecycle.WantChanged(Want.SUSPEND), Instant(NOW + 120_000))

    def fraction(work: Work, now: Instant) -> float:
        state = a_state(work)
        scene = Scene(state, Sightings(NOW), Demands(NOW), {}, now)
        return job_view(state.jobs[work.id], scene).fraction

    assert [fraction(waited, NOW), fraction(waited, half)] == [0, 0]
    assert fraction(running, later) == 0.75
    unpromised = placed(replace(waited, promised=False), ("n1", "0"), at=half)
    assert fraction(unpromised, later) == 0.75, "it has no ledger yet"
    assert fraction(pausing, later) == 0.5
