"""``onefleet model``: what the pool can serve."""

from __future__ import annotations

from pathlib import Path

import click

from onefleet.cli.kinds import MODEL
from onefleet.cli.model_add import add_model
from onefleet.cli.options import Acting, Reading, acting, confirm, reading
from onefleet.cli.pool import connect
from onefleet.cli.progress import Bar
from onefleet.domain.quantities import counted
from onefleet.wire.api import DeploymentView, ModelView, NewModel, Page
from onefleet.wire.client import segment

#: Hashing and fetching a large model takes long; the answer comes when the pool has it.
ADD_TIMEOUT_S = 3600.0


@click.group()
def model() -> None:
    """Models of the pool: add, list, show, remove."""


@model.command()
@click.argument("source")
@click.option("--name", help="What to call it (default: after its source).")
@acting
def add(act: Acting, source: str, name: str | None) -> None:
    """Add a model and print its id.

    SOURCE is a GGUF file or Hugging Face folder on this machine, demo:NAME (smollm2,
    gemma3-base, minilm, tiny) or hf:ORG/NAME.
    """
    if ":" not in source or Path(source).exists():
        source = str(Path(source).absolute())
    pool = connect(act.data_dir, ADD_TIMEOUT_S)
    with Bar(act.screen, f"adding {source}") as bar:
        added = add_model(pool, NewModel(source=source, name=name), bar)
    act.done(MODEL, added)


@model.command(name="list")
@reading
def list_(view: Reading) -> None:
    """Models, oldest first."""
    view.many(MODEL, lambda: view.pool.get("/api/v1/models", Page[ModelView]).data)


@model.command()
@click.argument("name", metavar="MODEL")
@reading
def show(view: Reading, name: str) -> None:
    """One model."""
    view.one(MODEL, lambda: view.pool.get(f"/api/v1/models/{segment(name)}", ModelView))


@model.command()
@click.argument("name", metavar="MODEL")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@acting
def remove(act: Acting, name: str, yes: bool) -> None:
    """Take a model out of the pool. Refused (exit 5) while a deployment uses it."""
    found = act.pool.get(f"/api/v1/models/{segment(name)}", ModelView)
    used = act.pool.get("/api/v1/deployments", Page[DeploymentView]).data
    count = sum(d.model == found.id for d in used)
    confirm(f"removes {found.id}; in use by {counted(count, 'deployment')}", yes)
    act.pool.delete(f"/api/v1/models/{segment(found.id)}", object)
    act.done(MODEL, found)
