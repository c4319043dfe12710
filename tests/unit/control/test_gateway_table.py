"""What a gateway is told, and when it needs to be told again."""

from __future__ import annotations

from dataclasses import replace

from tests.fleets import a_deployment, a_replica, placed, replica_of
from tests.unit.control.states import DEPLOYMENT, NOW, a_state, by_id

from onefleet.control.auth import digest_of
from onefleet.control.gateway_table import same_content, table_for, with_generation
from onefleet.core import lifecycle
from onefleet.core.plan import Blocker, Gate
from onefleet.domain.ids import Generation, Instant, KeyId, TenantId
from onefleet.domain.tenancy import DEFAULT_TENANT, ApiKey, Role, Tenant
from onefleet.domain.work import Want

WORK = placed(a_replica("rep-1"), ("n1", "0"))
REPLICA = replace(replica_of(WORK, DEPLOYMENT), host="127.0.0.1", port=4_000)


def a_key(name: str, revoked_at: int | None = None) -> ApiKey:
    digest = digest_of(f"of-{name}")
    revoked = None if revoked_at is None else Instant(revoked_at)
    return ApiKey(
        KeyId(name), TenantId("a"), name, Role.CALLER, digest, "text", Instant(0), revoked
    )


def test_a_replica_is_an_endpoint_while_it_answers_and_is_wanted() -> None:
    def endpoints(work: object) -> list[int]:
        state = a_state(work, replicas=by_id(REPLICA))  # type: ignore[arg-type]
        return [e.port for e in table_for(state, {}).deployments[0].endpoints]

    assert endpoints(WORK) == [4_000]
    assert endpoints(replace(WORK, want=Want.STOP)) == []
    assert endpoints(placed(a_replica("rep-1"), ("n1", "0"), running=False)) == []
    failed = lifecycle.apply(WORK, lifecycle.ProcessEnded(1, "it crashed"), NOW)
    assert endpoints(failed) == []


def test_revoked_keys_and_removed_deployments_are_absent() -> None:
    state = a_state(
        keys=by_id(a_key("k1"), a_key("k2", revoked_at=5)),
        deployments=by_id(DEPLOYMENT, a_deployment("dep-2", removed_at=NOW)),
    )
    table = table_for(state, {})
    assert [(k.key_id, len(k.digest)) for k in table.keys] == [("k1", 64)]
    assert [d.deployment_id for d in table.deployments] == ["dep-1"]


def test_only_the_default_tenants_deployments_are_public() -> None:
    state = a_state(
        tenants=by_id(Tenant(TenantId("a"), None, 5, 6, NOW)),
        deployments=by_id(DEPLOYMENT, a_deployment("dep-2", tenant_id=DEFAULT_TENANT)),
    )
    table = table_for(state, {})
    assert [(d.deployment_id, d.public) for d in table.deployments] == [
        ("dep-1", False),
        ("dep-2", True),
    ]
    assert [(t.tokens_per_minute, t.requests_per_minute) for t in table.tenants] == [(5, 6)]


def test_why_nothing_answers_yet_is_said() -> None:
    def reason(work: object, blockers: object = None) -> str:
        state = a_state(*([work] if work else []))  # type: ignore[list-item]
        return table_for(state, blockers or {}).deployments[0].wait_reason  # type: ignore[arg-type]

    pending = a_replica("rep-1", reason="a replica of dep-1")
    blocked = {pending.id: (Blocker(Gate.CONTENTION, "needs 1 cpu device, 0 free"),)}
    assert reason(None) == "no replica is there yet"
    assert reason(pending) == "a replica of dep-1"
    assert reason(pending, blocked) == "needs 1 cpu device, 0 free"
    starting = placed(a_replica("rep-1"), ("n1", "0"), running=False)
    assert reason(starting) == "a replica is starting"


def test_a_table_is_news_when_its_content_is_and_the_state_moved() -> None:
    known = table_for(a_state(), {})
    later = a_state(generation=Generation(10))
    assert same_content(known, table_for(later, {}), Generation(10))
    keyed = table_for(replace(later, keys=by_id(a_key("k1"))), {})
    assert not same_content(known, keyed, Generation(10))
    assert same_content(known, keyed, known.generation)
    assert with_generation(keyed, Generation(3)).generation == 3
