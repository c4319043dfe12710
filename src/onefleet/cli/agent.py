"""``onefleet agent``: be a further node of a pool, on this machine or another."""

from __future__ import annotations

import shlex

import click

from onefleet.cli.boundary import debug_option, say
from onefleet.cli.indices import Indices
from onefleet.config import DEFAULT_HOST, DEFAULT_PORT, Settings, settings


@click.command()
@click.option("--name", required=True, metavar="NAME", help="The node's name; its key has it, too.")
@click.option(
    "--join",
    "url",
    default=f"http://{DEFAULT_HOST}:{DEFAULT_PORT}",
    show_default=True,
    metavar="URL",
    help="The pool's address.",
)
@click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="A file with the node's key; else ONEFLEET_KEY has it.",
)
@click.option(
    "--data-dir",
    required=True,
    metavar="DIR",
    help="Where this node keeps its workers; no other's folder.",
)
@click.option("--cpus", type=Indices(), metavar="LIST", help="The cores that it has, as 0,2-3.")
@click.option("--gpus", type=Indices(), metavar="LIST", help="The GPUs that it has; or none.")
@click.option("--region", default="", metavar="NAME", help="Where it stands, for placement.")
@click.option("--zone", default="", metavar="NAME", help="Where in the region.")
@click.option(
    "--listen",
    default=DEFAULT_HOST,
    show_default=True,
    metavar="HOST[:PORT]",
    help="Where other nodes fetch saved jobs from: an address that they can reach.",
)
@debug_option
def agent(
    name: str,
    url: str,
    key_file: str | None,
    data_dir: str,
    cpus: tuple[int, ...] | None,
    gpus: tuple[int, ...] | None,
    region: str,
    zone: str,
    listen: str,
) -> None:
    """Be a node of a pool until Ctrl-C, which saves the node's jobs.

    Make its key first: `onefleet key create --role node --name NAME`, and what saves its jobs:
    `onefleet doctor --fix --data-dir DIR`. Without --cpus and --gpus it has all of this machine;
    beside a pool or another node, each needs a part of its own (`onefleet up --cpus`).
    """
    from onefleet.agent.devices import default_probes
    from onefleet.agent.link import joined
    from onefleet.agent.process import SYNC_WAIT_MS, NodeSpec, run
    from onefleet.cli.pool_folder import take_lock
    from onefleet.cli.processes import configure_logs
    from onefleet.drivers.catalog import create_drivers

    given = settings(data_dir)
    host, port = _address(listen)
    link = joined(url, _key(key_file, given.key), SYNC_WAIT_MS)
    configure_logs()
    with take_lock(given.layout):
        say(f"node {name} joins {url}; its data is in {given.layout.root}")
        _say_what_is_missing(given)
        run(
            given.layout,
            NodeSpec(name, region, zone, host, port),
            create_drivers(given.layout, given.criu),
            default_probes(cpus, gpus),
            given.image_share,
            link=link,
            drains=True,
        )
    say(f"node {name} has left; its jobs are saved")


def _say_what_is_missing(given: Settings) -> None:
    from onefleet.domain.errors import OnefleetError
    from onefleet.drivers.criu import make_finder

    try:
        make_finder(given.layout.criu, given.criu)()
    except OnefleetError as refusal:
        mend = f"onefleet doctor --fix --data-dir {shlex.quote(str(given.layout.root))}"
        say(f"note: {refusal.what}: {refusal.why}; its jobs save themselves. To mend it: {mend}")


def _key(key_file: str | None, key: str | None) -> str:
    from pathlib import Path

    from onefleet.domain.errors import Unauthenticated

    text = Path(key_file).read_text(encoding="utf-8").strip() if key_file else key
    if not text:
        raise Unauthenticated(
            "this node has no key",
            why="neither --key-file nor ONEFLEET_KEY gives one",
            hint="onefleet key create --role node --name NAME",
        )
    return text


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon:
        return listen, 0
    if not port.isdigit() or int(port) > 65_535:
        raise click.BadParameter(f"{listen!r} is not HOST or HOST:PORT", param_hint="--listen")
    return host, int(port)
