"""``onefleet sim``: the pool's own planner and machines on virtual time, without a pool."""

from __future__ import annotations

import click

from onefleet.cli.boundary import debug_option
from onefleet.cli.options import FORMAT, current_screen, data_dir_option
from onefleet.cli.output import Column, Kind, render_list, render_one
from onefleet.cli.progress import Bar
from onefleet.sim.report import Report, table
from onefleet.sim.scenario import Scenario, load, shipped
from onefleet.sim.world import DRIVERS, simulate

REPORT: Kind[Report] = Kind("SimulationReport", lambda report: report.scenario, text=table)
SCENARIO: Kind[Scenario] = Kind(
    "Scenario",
    lambda scenario: scenario.name,
    (
        Column("SCENARIO", lambda scenario: scenario.name),
        Column("ABOUT", lambda scenario: scenario.about),
    ),
)


@click.group()
def sim() -> None:
    """Simulate: run scenarios, list those that come along."""


@sim.command()
@click.argument("scenario")
@click.option("--seed", type=click.IntRange(0), help="In place of the scenario's own.")
@click.option("--driver", type=click.Choice(DRIVERS), default="heap", show_default=True)
@click.option("--output", "-o", type=FORMAT, default="table")
@data_dir_option
@debug_option
def run(scenario: str, seed: int | None, driver: str, output: str, data_dir: str | None) -> int:
    """Run SCENARIO: a .toml file, or the name of one that comes along.

    Prints what came out; exits 1 when a rule was broken, with the time and the rule. It needs no
    running pool, and nothing in it is measured on devices.
    """
    del data_dir  # every command takes it; this one touches no pool
    screen = current_screen()
    with Bar(screen, f"simulating {scenario}"):
        report = simulate(load(scenario), driver, seed)
    click.echo(render_one(REPORT, report, output, screen), nl=False)
    return 0 if report.ok else 1


@sim.command("list")
@click.option("--output", "-o", type=FORMAT, default="table")
@data_dir_option
@debug_option
def list_(output: str, data_dir: str | None) -> None:
    """The scenarios that come along."""
    del data_dir
    found = [load(name) for name in shipped()]
    click.echo(render_list(SCENARIO, found, output, current_screen()), nl=False)
