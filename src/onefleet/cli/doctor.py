"""``onefleet doctor``: prove what this machine can do, and say how to mend the rest."""

from __future__ import annotations

import logging
from dataclasses import replace

import click

from onefleet.cli.boundary import say
from onefleet.cli.doctor_checks import FAIL, Check, run_checks
from onefleet.cli.options import Reading, reading
from onefleet.cli.output import Column, Kind, Terminal
from onefleet.cli.progress import Bar
from onefleet.config import DEFAULT_PORT, Settings, settings
from onefleet.domain.errors import OnefleetError

CHECK: Kind[Check] = Kind(
    "Check",
    lambda c: c.id,
    (
        Column("CHECK", lambda c: c.id),
        Column("RESULT", lambda c: c.result),
        Column("TOOK", lambda c: f"{c.took_ms} ms", wide=True, right=True),
        Column("EVIDENCE", lambda c: c.evidence + (f"; fix: {c.fix}" if c.fix else "")),
    ),
)


@click.command()
@click.option("--fix", is_flag=True, help="First make the managed copy of criu, if it is missing.")
@click.option(
    "--port", type=int, default=DEFAULT_PORT, show_default=True, help="Where the pool shall serve."
)
@reading
def doctor(view: Reading, fix: bool, port: int) -> int:
    """Check this machine: each check with its result, its evidence and the fix.

    criu is proved by saving and restoring a real program, the engine by a real answer. Exits 1
    if a check fails. It needs no running pool.
    """
    from onefleet.cli.processes import configure_logs

    configure_logs(logging.WARNING)  # of the checks, that is; what they find is in their evidence
    chosen = replace(settings(view.data_dir), port=port)
    if fix:
        _fix(chosen, view.screen)
    view.screen = replace(view.screen, width=None)  # evidence is never cut
    failed = False

    def look() -> list[Check]:
        nonlocal failed
        with Bar(view.screen, "checking") as bar:
            checks = list(run_checks(chosen, lambda name: bar.say(f"checking {name}")))
        failed = any(c.result == FAIL for c in checks)
        return checks

    view.many(CHECK, look)
    return 1 if failed else 0


def _fix(chosen: Settings, screen: Terminal) -> None:
    """Get criu. Where that cannot be, say why: the checks then tell what is done without it."""
    from onefleet.drivers.criu_setup import setup_criu

    try:
        with Bar(screen, "getting criu") as bar:
            setup_criu(chosen.layout.criu, chosen.criu, lambda what, part: bar.to(part, what))
    except OnefleetError as error:
        say(f"not fixed: {error.what}: {error.why}; to fix it, {error.hint}")
