"""What the planner says of one tenant is not read by another."""

from __future__ import annotations

from dataclasses import replace

from tests.fleets import a_job
from tests.unit.control.states import a_state, by_id

from onefleet.control.discretion import discreet
from onefleet.domain.ids import Instant, TenantId
from onefleet.domain.tenancy import Tenant

MINE, THEIRS = TenantId("a"), TenantId("b.c")
STATE = replace(
    a_state(replace(a_job("job-1"), tenant_id=MINE), replace(a_job("job-2"), tenant_id=THEIRS)),
    tenants=by_id(*(Tenant(t, None, None, None, Instant(0)) for t in (MINE, THEIRS))),
)


def test_names_of_others_are_left_out_and_own_ones_stay() -> None:
    text = "0 free; held by job-1 (basic job, tenant a), job-2 (premium job, tenant b.c, starting)"
    assert discreet(text, STATE, MINE.__eq__) == (
        "0 free; held by job-1 (basic job, tenant a), "
        "another tenant's work (premium job, another tenant, starting)"
    )
    assert discreet(text, STATE, THEIRS.__eq__) == (
        "0 free; held by another tenant's work (basic job, another tenant), "
        "job-2 (premium job, tenant b.c, starting)"
    )


def test_a_work_that_was_forgotten_is_nobodys_to_name() -> None:
    assert "job-1m819wc6qwk3r" not in discreet(
        "room for job-1m819wc6qwk3r (basic)", STATE, MINE.__eq__
    )


def test_other_words_stay() -> None:
    text = "the tenant quota of tenant x is used up; see job-script.sh. It is for tenant b.c."
    assert discreet(text, STATE, MINE.__eq__) == text.replace("tenant b.c.", "another tenant.")
