"""The call of the pool's own gateway."""

from __future__ import annotations

from onefleet.control.call import Call
from onefleet.control.pool import Pool
from onefleet.domain.events import Usage
from onefleet.domain.ids import Instant
from onefleet.store.base import Commit, State
from onefleet.wire.gateway import GatewayReport, RouteTable, UsageReport

#: The largest report: a gateway of thousands of keys.
REPORT_BYTES_MAX = 16 << 20
#: The longest that its call is held.
WAIT_MS_MAX = 10_000
#: Gateways whose usage batches are told from repeated ones.
GATEWAYS_MAX = 64

_MARK = "usage/"


async def gateway_sync(call: Call) -> RouteTable:
    """Take a gateway's demand and usage; answer the route table, at once when it is news.

    The usage batch is on disk when this answers; a batch that was taken before is ignored.
    """
    report = await call.body(GatewayReport, REPORT_BYTES_MAX)
    pool = call.pool
    if pool.demands.take(report.gateway_id, report.demand, pool.clock.now()):
        pool.hint()
    if report.usage:
        await _take_usage(pool, report)
    if report.wait_ms <= 0:  # the lane that hands over usage: the other one is held
        return pool.route_table(await pool.store.read())
    turn = pool.take_turn(f"gateway/{report.gateway_id}")
    until = pool.clock.now() + min(report.wait_ms, WAIT_MS_MAX)
    async with pool.changed.held():
        while True:
            version = pool.changed.version
            table = pool.route_table(await pool.store.read())
            now = pool.clock.now()
            if table.generation != report.seen or now >= until or not pool.has_turn(turn):
                return table
            await pool.changed.wait(version, until - now)


async def _take_usage(pool: Pool, report: GatewayReport) -> None:
    name = _MARK + report.gateway_id

    def decide(state: State, _now: Instant) -> tuple[Commit, None]:
        taken = state.marks.get(name, 0)
        if report.sequence <= taken:
            return Commit(), None
        marks = {name: report.sequence}
        known = [mark for mark in state.marks if mark.startswith(_MARK) and mark != name]
        marks.update((mark, 0) for mark in known[: max(0, len(known) + 1 - GATEWAYS_MAX)])
        return Commit(usage=tuple(_usage(u) for u in report.usage), marks=marks), None

    await pool.change(decide)


def _usage(report: UsageReport) -> Usage:
    return Usage(
        minute=report.minute,
        tenant_id=report.tenant_id,
        key_id=report.key_id,
        deployment_id=report.deployment_id,
        requests=report.requests,
        prompt_tokens=report.prompt_tokens,
        cached_tokens=report.cached_tokens,
        completion_tokens=report.completion_tokens,
    )
