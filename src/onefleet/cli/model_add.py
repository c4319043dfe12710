"""Adding a model with its progress: a large one takes minutes to fetch and to hash."""

from __future__ import annotations

from onefleet.cli.progress import Bar
from onefleet.domain import errors
from onefleet.domain.errors import InternalError, OnefleetError, UpstreamFailed
from onefleet.wire.api import ErrorDetail, ModelLine, ModelView, NewModel
from onefleet.wire.client import Client

PATH = "/api/v1/models?progress=true"


def add_model(pool: Client, new: NewModel, bar: Bar) -> ModelView:
    """POST it and follow its progress lines. Raises what the pool answers."""
    import msgspec

    for text in pool.lines("POST", PATH, new):
        line = msgspec.json.decode(text, type=ModelLine)
        if line.error is not None:
            raise _error(line.error)
        if line.model is not None:
            return line.model
        if line.progress is not None and line.progress.total:
            bar.to(line.progress.done / line.progress.total, line.progress.step)
        elif line.progress is not None:
            bar.say(line.progress.step)
    raise UpstreamFailed(
        "the pool stopped answering while the model was added",
        why="the connection was closed",
        hint="run the same command again; what was fetched is kept",
    )


def _error(detail: ErrorDetail) -> OnefleetError:
    kind = _by_code(errors.OnefleetError, detail.code) or InternalError
    return kind(
        detail.message, why=detail.why, hint=detail.hint, param=detail.param, code=detail.code
    )


def _by_code(kind: type[OnefleetError], code: str | None) -> type[OnefleetError] | None:
    """The class of the tree that carries this code itself."""
    for child in kind.__subclasses__():
        if vars(child).get("code") == code:
            return child
        if found := _by_code(child, code):
            return found
    return None
