"""What was promised to jobs and how it is kept, and the receipts of those that had to give way."""

from __future__ import annotations

from onefleet.control.api.existing import find_job
from onefleet.control.call import Call
from onefleet.control.discretion import ANOTHERS
from onefleet.core.ledger import HOUR_MS, HOURS_KEPT, account, fraction_permille, wanted_and_got
from onefleet.domain.ids import Instant
from onefleet.domain.jobs import Job
from onefleet.domain.work import Phase, Work
from onefleet.store.base import State
from onefleet.wire.api import HourView, LedgerView, Page, ReceiptView

#: For how long a job has to have wanted to run before its promise can be called broken: to start it
#: takes up to a few seconds, which are most of a shorter time.
JUDGED_MS = 60_000


async def list_ledger(call: Call) -> Page[LedgerView]:
    """Jobs that have not ended, or ended within the last day."""
    state = await call.pool.store.read()
    now = call.pool.clock.now()
    since = now - HOURS_KEPT * HOUR_MS
    seen = (j for j in state.jobs.values() if call.caller.sees(j.tenant_id))
    recent = (j for j in seen if (state.works[j.id].ended_at or now) >= since)
    ordered = sorted(recent, key=lambda job: (job.submitted_at, job.id))
    return Page(tuple(_ledger(job, state.works[job.id], now) for job in ordered))


async def job_ledger(call: Call) -> LedgerView:
    state = await call.pool.store.read()
    job = find_job(state, call.caller, call.path("id"))
    return _ledger(job, state.works[job.id], call.pool.clock.now())


async def job_receipts(call: Call) -> Page[ReceiptView]:
    state = await call.pool.store.read()
    job = find_job(state, call.caller, call.path("id"))
    return Page(tuple(_receipts(call, state, state.works[job.id])))


def _ledger(job: Job, work: Work, now: Instant) -> LedgerView:
    promised = work.tier.promise_permille
    kept = fraction_permille(work, now, HOURS_KEPT * HOUR_MS)
    current = account(work, now)
    return LedgerView(
        id=job.id,
        name=job.name,
        tenant=job.tenant_id,
        tier=work.tier,
        promised_permille=promised,
        kept_permille=kept,
        state=promise_state(work, now),
        device_ms=current.served_ms,
        hours=tuple(
            HourView(begins_at=h.begins_at, wanted_ms=h.wanted_ms, got_ms=h.got_ms)
            for h in current.hours
        ),
    )


def promise_state(work: Work, now: Instant) -> str:
    """How the promise of a work is kept, as `LedgerView` says it."""
    promised = work.tier.promise_permille
    if not promised or (not work.promised and work.phase is Phase.ENDED):
        return "none"
    if not work.promised:
        return "waiting"
    wanted_ms, got_ms = wanted_and_got(work, now, HOURS_KEPT * HOUR_MS)
    if 1_000 * got_ms >= promised * wanted_ms:
        return "kept"
    return "broken" if wanted_ms >= JUDGED_MS else "early"


def _receipts(call: Call, state: State, work: Work) -> list[ReceiptView]:
    scene = call.pool.scene(state, call.caller)
    found = []
    for receipt in work.receipts:
        taker = state.works.get(receipt.by) if receipt.by else None
        named = taker is None or call.caller.sees(taker.tenant_id)
        found.append(
            ReceiptView(
                job=work.id,
                at=receipt.at,
                by=(receipt.by or "") if named else ANOTHERS,
                reason=scene.told(receipt.reason),
                devices=receipt.devices,
                lost_ms=receipt.lost_ms,
                back_at=receipt.back_at,
            )
        )
    return found
