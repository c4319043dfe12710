"""``onefleet whatif``: the pool's own past, or a trace, under other circumstances."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from onefleet.cli.boundary import debug_option, say
from onefleet.cli.options import FORMAT, Reading, current_screen, data_dir_option
from onefleet.cli.output import Column, Kind
from onefleet.cli.progress import Bar
from onefleet.cli.times import Length
from onefleet.domain.errors import CallerError, Infeasible, InvalidRequest, NotFound
from onefleet.domain.quantities import duration
from onefleet.domain.tiers import Tier
from onefleet.sim import whatif as core
from onefleet.sim.jobs.catalog import POLICIES
from onefleet.sim.jobs.job import Fleet, Price, Rules
from onefleet.sim.traces.philly import read_philly
from onefleet.wire.api import (
    DeviceView,
    JobView,
    NodeView,
    Page,
    ReservationView,
    SparesView,
    TenantView,
)

#: A replay takes about 3 ms a decision, and a job two decisions or more.
JOBS = 1_000


def _span(seconds: float | None) -> str:
    return "-" if seconds is None else duration(round(seconds * 1000))


def _queue(tier: Tier) -> Column[core.Line]:
    return Column(f"{tier.upper()} WAITS", lambda x: _span(x.queue_s.get(tier)), right=True)


def _ends(tier: Tier) -> Column[core.Line]:
    return Column(
        f"{tier.upper()} ENDS", lambda x: _span(x.tier_jct_s.get(tier)), wide=True, right=True
    )


LINE: Kind[core.Line] = Kind(
    "WhatIf",
    lambda x: x.case,
    (
        Column("CASE", lambda x: x.case + (" (knows run times)" if x.clairvoyant else "")),
        Column("DEVICES", lambda x: str(x.devices), right=True),
        Column("ENDS AFTER", lambda x: _span(x.jct_s), right=True),
        Column("x BOUND", lambda x: f"{x.ratio:.2f}", right=True),
        *map(_queue, Tier),
        Column("HELD", lambda x: f"{100 * x.utilisation:.0f} %", right=True),
        Column("SUSPENDS", lambda x: str(x.suspends), right=True),
        Column("WASTED", lambda x: _span(x.wasted_device_s), right=True),
        Column("KEPT", lambda x: f"{100 * x.kept:.1f} %", right=True),
        *map(_ends, Tier),
        Column("KILLS", lambda x: str(x.kills), wide=True, right=True),
    ),
)


class Devices(click.ParamType[tuple[bool, int]]):
    """`+N` more than there are, or `N`; as (whether more, N)."""

    name = "N|+N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[bool, int]:
        if isinstance(value, tuple):
            return value
        digits = value.removeprefix("+")
        if not (digits.isascii() and digits.isdigit() and 1 <= len(digits) <= 6 and int(digits)):
            self.fail(f"{value!r} is neither 512 nor +8", param, ctx)
        return value.startswith("+"), int(digits)


@click.command()
@click.option("--trace", type=click.Path(path_type=Path), help="Philly's job list, in place of it.")
@click.option("--policy", "policies", multiple=True, type=click.Choice(list(POLICIES)))
@click.option(
    "--devices",
    multiple=True,
    type=Devices(),
    help="As many, or so many more. The first with --trace: how many there are.",
)
@click.option(
    "--spares",
    multiple=True,
    type=click.IntRange(0, 10_000),
    help="So many of the pool's nodes are kept empty; no node fails in a replay.",
)
@click.option("--walls", is_flag=True, help="Each team has devices by its work, and no others.")
@click.option("--since", type=Length(), help="Only jobs submitted in the last TIME.")
@click.option("--jobs", type=click.IntRange(1), default=JOBS, show_default=True, help="At most.")
@click.option("--restore", type=Length(), help="What a resume costs: 1s, and 60s in a trace.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option("--output", "-o", type=FORMAT, default="table")
@data_dir_option
@debug_option
def whatif(
    trace: Path | None,
    policies: tuple[str, ...],
    devices: tuple[tuple[bool, int], ...],
    spares: tuple[int, ...],
    walls: bool,
    since: int | None,
    jobs: int,
    restore: int | None,
    seed: int,
    output: str,
    data_dir: str | None,
) -> int:
    """Replay the pool's past jobs with another policy, more devices, spares, or team walls.

    A row a case: as it was, replayed with the pool's own planner (how well the replay fits), and
    each change by itself. All but the first are simulated. Of a change that is impossible stderr
    says why, in place of its row; exits 6 where none that was asked for is possible.

    ENDS AFTER is the mean time from a job's submission to its end, x BOUND that over what no
    schedule can go below, WAITS the mean time in the queue. HELD is the part of the device
    time that jobs held, WASTED the device time that made no progress, KEPT the part of the jobs
    that got the device fraction of their tier.
    """
    view = Reading(data_dir, current_screen(), output)
    left: dict[int, int] = {}
    if trace is None:
        pool = _Pool.of(view)
        past = _history(view, pool, since, jobs, restore)
        left = {count: pool.devices - core.kept(pool.sizes, count) for count in spares}
    elif spares:
        raise click.UsageError("--spares is about the pool's nodes; a trace has none")
    elif since is not None:
        raise click.UsageError("--since is about the pool's past, and not about a trace")
    else:
        past = _trace(trace, devices, jobs, restore, seed)
        devices = devices[1:]
    base = past.rules.fleet.devices
    counts = [base + count if more else count for more, count in devices]
    named = [POLICIES[name] for name in policies]
    wanted = core.cases(past, named, counts, walls=walls, spares=left)
    lines = [] if past.was is None else [core.as_it_was(past, past.was, seed)]
    impossible: dict[str, CallerError] = {}
    with Bar(view.screen, "replaying") as bar:
        for number, case in enumerate(wanted):

            def progress(part: float, done: int = number, name: str = case.name) -> None:
                bar.to((done + part) / len(wanted), name)

            try:
                lines.append(core.replay(case, past, seed, progress))
            except CallerError as error:
                impossible[case.name] = error
    if len(impossible) == len(wanted):
        raise impossible[wanted[0].name]
    view.many(LINE, lambda: lines)
    for name, refusal in impossible.items():
        say(f"impossible: {name}: {refusal.what}" + (f"; {refusal.why}" if refusal.why else ""))
    if output in ("table", "wide"):
        say(_about(past, seed))
    answered = any(case.name not in impossible for case in wanted[1:] or wanted)
    return 0 if answered else Infeasible.exit_code


@dataclass(frozen=True, slots=True)
class _Pool:
    """What there is. sizes: of the nodes, in devices. spares: nodes that are kept empty now."""

    devices: int
    sizes: tuple[int, ...]
    spares: int

    @classmethod
    def of(cls, view: Reading) -> _Pool:
        nodes = view.pool.get("/api/v1/nodes", Page[NodeView]).data
        kept = view.pool.get("/api/v1/spares", Page[SparesView]).data
        devices = len(view.pool.get("/api/v1/devices", Page[DeviceView]).data)
        return cls(devices, tuple(n.devices for n in nodes), sum(s.wanted for s in kept))


def _history(
    view: Reading, pool: _Pool, since: int | None, most: int, restore: int | None
) -> core.Past:
    found = view.pool.get("/api/v1/jobs", Page[JobView]).data
    if since is not None:
        begin = int(time.time() * 1000) - since
        found = tuple(job for job in found if job.submitted_at >= begin)
    devices = pool.devices - core.kept(pool.sizes, pool.spares)
    teams, owner = core.teams_of(
        view.pool.get("/api/v1/tenants", Page[TenantView]).data,
        view.pool.get("/api/v1/reservations", Page[ReservationView]).data,
    )
    if not devices:
        raise NotFound("nothing to replay on", why="the pool has no devices", hint="onefleet node")
    price = core.HISTORY_PRICE if restore is None else Price(restore_ms=restore)
    past = core.of_history(found, Rules(Fleet.flat(devices), price, teams), owner, most)
    if not past.jobs:
        raise NotFound(
            "no past to replay",
            why=f"of {len(found)} jobs none has run, ended and fits {devices} devices",
            hint="wait for a job to end, or give --trace FILE",
        )
    return past


def _trace(
    path: Path,
    devices: tuple[tuple[bool, int], ...],
    most: int,
    restore: int | None,
    seed: int,
) -> core.Past:
    trace = read_philly(path)
    if not devices or devices[0][0]:
        raise InvalidRequest(
            "how many devices are there?",
            why="a trace of jobs does not say",
            hint="--devices 512, and then others to compare with",
        )
    price = core.TRACE_PRICE if restore is None else replace(core.TRACE_PRICE, restore_ms=restore)
    return core.of_trace(trace, devices[0][1], price, most, seed)


def _about(past: core.Past, seed: int) -> str:
    """What the reader has to know to believe it or not."""
    rows = [
        f"simulated, but for what says as it was: {len(past.jobs)} jobs, seed {seed}, a resume "
        f"costs {duration(past.rules.price.restore_ms)}"
    ]
    if past.left_out:
        rows.append(
            f"left out: {past.left_out} jobs that have not ended, made no progress, or are wider "
            "than the pool"
        )
    if past.dropped:
        which = "earlier" if past.was is not None else "later"
        rows.append(f"left out: {past.dropped} {which} jobs; --jobs takes more, and more time")
    if past.was is None:
        rows.append("tiers and reservations are made from the trace, which has none")
    else:
        rows.append(
            "not known to it: devices that served models (here all are for jobs), shares and kinds "
            "of devices, dependencies, what owners suspended, jobs that ran narrower than they may"
        )
    return "\n".join(rows)
