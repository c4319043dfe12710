"""The calls of nodes' agents: of the pool's own machine, and of others that joined by a key."""

from __future__ import annotations

import re

from starlette.responses import FileResponse

from onefleet.control.call import Call
from onefleet.control.observe import observe
from onefleet.control.pool import Pool
from onefleet.domain.errors import Conflict, Forbidden, InvalidRequest, NotFound
from onefleet.domain.ids import Digest, Instant
from onefleet.registry.blobs import blob_path
from onefleet.store.base import Commit, State
from onefleet.wire.agent import NodeOrders, NodeReport, node_id

#: The largest report: a node of hundreds of workers.
REPORT_BYTES_MAX = 16 << 20
#: The longest that an agent's call is held: well within its lease.
WAIT_MS_MAX = 10_000

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


async def agent_sync(call: Call) -> NodeOrders:
    """Take a node's report; answer its orders, at once when it has not seen them."""
    report = await call.body(NodeReport, REPORT_BYTES_MAX)
    if not 0 < len(report.node_id) <= 200:
        raise InvalidRequest("the report names no node", param="node_id")
    return await _sync(call.pool, report)


async def node_sync(call: Call) -> NodeOrders:
    """The same for a machine that has joined. Its key speaks for one node and no other."""
    report = await call.body(NodeReport, REPORT_BYTES_MAX)
    key = (await call.pool.store.read()).keys[call.caller.key_id]
    if (report.name, report.node_id) != (key.name, node_id(key.name)):
        raise Forbidden(
            f'this key is of node "{key.name}", not of "{report.name[:80]}"',
            hint="onefleet key create --role node --name NAME",
        )
    return await _sync(call.pool, report)


async def node_code(call: Call) -> FileResponse:
    """The package of a job's code, for a node that shall run it."""
    digest = call.path("digest")
    path = blob_path(call.pool.layout, Digest(digest))
    if not _DIGEST.fullmatch(digest) or not path.is_file():
        raise NotFound(f"the code package {digest[:19]}... is not here")
    return FileResponse(path, media_type="application/x-tar")


def _must_be_the_one(pool: Pool, report: NodeReport) -> None:
    """Two agents of one name would both do what that node is ordered: nothing may run twice."""
    known = pool.sightings.report_of(report.node_id)
    living = pool.sightings.lease_of(report.node_id) > pool.clock.now()
    if known is not None and living and known.identity != report.identity:
        raise Conflict(
            f'there is a node "{report.name}" already',
            why="another agent, with another data folder, has this name",
            hint="end that one and wait 30 s, or give this one a name and a key of its own",
        )


async def _sync(pool: Pool, report: NodeReport) -> NodeOrders:
    _must_be_the_one(pool, report)
    lease = pool.sightings.renew(report.node_id, pool.clock.now())

    def decide(state: State, now: Instant) -> tuple[Commit, None]:
        seen = pool.sightings.see(report, state, now)
        return observe(state, report, seen, lease, now), None

    await pool.change(decide)
    turn = pool.take_turn(f"agent/{report.node_id}")
    until = pool.clock.now() + min(report.wait_ms, WAIT_MS_MAX)
    async with pool.changed.held():
        while True:
            version = pool.changed.version
            orders = pool.orders.of(await pool.store.read(), report.node_id)
            now = pool.clock.now()
            if orders.generation != report.seen or now >= until or not pool.has_turn(turn):
                pool.sightings.renew(report.node_id, now)
                pool.sightings.told(orders, now)
                return orders
            await pool.changed.wait(version, until - now)
