"""``onefleet key``: API keys, shown once and stored as digests."""

from __future__ import annotations

import click

from onefleet.cli.boundary import say
from onefleet.cli.kinds import KEY
from onefleet.cli.options import Acting, Reading, acting, confirm, reading
from onefleet.domain.errors import NotFound
from onefleet.wire.api import KeyView, NewKey, Page
from onefleet.wire.client import segment


@click.group()
def key() -> None:
    """API keys: create, list, revoke."""


@key.command(short_help="Make a key; it is shown this once.")
@click.option("--tenant", default="default", show_default=True)
@click.option("--name", default="", help="A note to yourself.")
@click.option(
    "--role",
    type=click.Choice(("admin", "member", "caller", "node")),
    default="member",
    show_default=True,
    help="caller: the /v1 API only. member: its tenant's jobs and deployments. admin: the pool. "
    "node: the agent of another machine, of the name --name.",
)
@acting
def create(act: Acting, tenant: str, name: str, role: str) -> None:
    """Make a key and print its id; the key itself is shown this once (-o json: field key)."""
    made = act.pool.post("/api/v1/keys", NewKey(tenant=tenant, name=name, role=role), KeyView)
    act.done(KEY, made)
    if act.format not in ("json", "yaml", "jsonl"):
        say(f"key: {made.key}\nIt is not shown again; the pool keeps only its digest.")


@key.command(name="list")
@reading
def list_(view: Reading) -> None:
    """Keys by their last characters, with tenant and role."""
    view.many(KEY, lambda: view.pool.get("/api/v1/keys", Page[KeyView]).data)


@key.command()
@click.argument("id_", metavar="ID")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@acting
def revoke(act: Acting, id_: str, yes: bool) -> None:
    """Make a key useless at once."""
    keys = act.pool.get("/api/v1/keys", Page[KeyView]).data
    found = next((k for k in keys if k.id == id_), None)
    if found is None:
        raise NotFound(f"no key {id_}", why=f"{len(keys)} keys are known", hint="onefleet key list")
    confirm(f"revokes …{found.hint} ({found.role} of {found.tenant}); its clients get 401", yes)
    act.pool.delete(f"/api/v1/keys/{segment(id_)}", object)
    act.done(KEY, found)
