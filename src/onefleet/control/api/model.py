"""Models: add, look, remove."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
from starlette.responses import Response, StreamingResponse

from onefleet.control import views
from onefleet.control.call import Call, good_text
from onefleet.control.errors import detail_of
from onefleet.control.pool import Pool
from onefleet.control.replicas import model_in_use
from onefleet.domain.errors import Conflict, InvalidRequest, NotFound, OnefleetError
from onefleet.domain.ids import Instant, ModelId
from onefleet.domain.quantities import size
from onefleet.domain.serving import Model
from onefleet.registry import models
from onefleet.store.base import Commit, Delete, Note, Put, State
from onefleet.wire.api import ModelLine, ModelView, NewModel, Page, Progress

SOURCE_CHARACTERS_MAX = 4_096
NAME_CHARACTERS_MAX = 200
LINES_A_SECOND = 10


def find_model(state: State, text: str) -> Model:
    """The model of that name. Raises NotFound."""
    found = state.models.get(ModelId(text))
    if found is None:
        known = ", ".join(state.models) or "none yet"
        raise NotFound(
            f'there is no model "{text[:120]}"',
            why=f"models of this pool: {known[:300]}",
            hint=f"onefleet model add {text[:120]}",
            param="model",
        )
    return found


async def add_model(call: Call) -> ModelView | Response:
    """Add a model. With ?progress=true: JSON lines of `ModelLine`, else the model when it is there.

    A caller that leaves does not stop it.
    """
    new = await call.body(NewModel)
    source = good_text(new.source, SOURCE_CHARACTERS_MAX, "source")
    if not source:
        raise InvalidRequest(
            'the "source" is empty', hint="onefleet model add demo:smollm2", param="source"
        )
    name = None if new.name is None else good_text(new.name, NAME_CHARACTERS_MAX, "name")
    streamed = call.choice("progress", {"true": True, "false": False}, "false")
    steps = Steps()
    task = call.pool.background(_add(call.pool, source, name, steps))
    if streamed:
        return StreamingResponse(_lines(task, steps), 201, media_type="application/jsonl")
    return views.model_view(await asyncio.shield(task))


async def _add(pool: Pool, source: str, name: str | None, steps: Steps) -> Model:
    """Fetch and describe it, then record it."""
    loop = asyncio.get_running_loop()

    def tell(done: int, total: int) -> None:
        step = Progress(step=f"adding {source}", done=done, total=total)
        loop.call_soon_threadsafe(steps.put, step)

    nodes = tuple((await pool.store.read()).nodes.values())
    added = await pool.add_model(source, name, nodes, tell)

    def decide(state: State, now: Instant) -> tuple[Commit, Model]:
        known = state.models.get(added.id)
        if known is not None and known.revision == added.revision:
            return Commit(), known
        if known is not None:
            raise Conflict(
                f'there is another model "{added.id}" already',
                why=f"its weights are {known.revision[:19]}, not {added.revision[:19]}",
                hint="choose another --name",
                param="name",
            )
        model = replace(added, created_at=now)
        note = Note(now, "model.added", model.id, f"{size(model.size_bytes)} from {model.source}")
        return Commit([Put(model)], [note]), model

    async with pool.model_files:
        if added.path and not await asyncio.to_thread(Path(added.path).exists):
            raise Conflict(
                f'the file of "{added.id}" was removed while it was added', hint="add it again"
            )
        return await pool.change(decide)


class Steps:
    """The newest progress of a model that is being added; older progress nobody needs."""

    def __init__(self) -> None:
        self.newest: Progress | None = None
        self.event = asyncio.Event()

    def put(self, progress: Progress) -> None:
        """It is as far as this."""
        self.newest = progress
        self.event.set()


async def _lines(task: asyncio.Task[Model], steps: Steps) -> AsyncIterator[bytes]:
    """Progress as it comes, at most `LINES_A_SECOND`, and then the outcome."""
    task.add_done_callback(lambda _: steps.event.set())
    while not task.done():
        await steps.event.wait()
        steps.event.clear()
        if steps.newest is not None and not task.done():
            yield _line(ModelLine(progress=steps.newest))
            await asyncio.wait((task,), timeout=1 / LINES_A_SECOND)
    try:
        yield _line(ModelLine(model=views.model_view(task.result())))
    except OnefleetError as error:
        yield _line(ModelLine(error=detail_of(error)))


def _line(line: ModelLine) -> bytes:
    return msgspec.json.encode(line) + b"\n"


async def list_models(call: Call) -> Page[ModelView]:
    state = await call.pool.store.read()
    ordered = sorted(state.models.values(), key=lambda m: (m.created_at, m.id))
    return Page(tuple(views.model_view(model) for model in ordered))


async def show_model(call: Call) -> ModelView:
    state = await call.pool.store.read()
    return views.model_view(find_model(state, call.path("id")))


async def remove_model(call: Call) -> ModelView:
    """Forget a model that nothing serves, and delete its file unless another model has the same."""

    def decide(state: State, now: Instant) -> tuple[Commit, Model]:
        model = find_model(state, call.path("id"))
        users = model_in_use(state, model)
        if users:
            raise Conflict(
                f'model "{model.id}" is served by {len(users)} deployments',
                why=f"they are {', '.join(d.name for d in users[:5])}",
                hint=f"onefleet undeploy {users[0].name}",
            )
        note = Note(now, "model.removed", model.id, "")
        return Commit([Delete(model)], [note]), model

    removed = await call.pool.change(decide)
    async with call.pool.model_files:
        left = (await call.pool.store.read()).models.values()
        used = [model.revision for model in left]
        await asyncio.to_thread(models.remove_model, removed, call.pool.layout, used)
    return views.model_view(removed)
