"""How models come into the pool: the registry's import, as the API's handlers call it."""

from __future__ import annotations

from collections.abc import Callable

from onefleet.control.pool import AddModel
from onefleet.domain.errors import Unsupported
from onefleet.domain.layout import Layout
from onefleet.domain.serving import Model


def adder(layout: Layout) -> AddModel:
    """The registry's import into this pool's folder."""

    def add(source: str, name: str | None, tell: Callable[[str, int, int], None]) -> Model:
        raise Unsupported(f'"{source}" cannot be added to {layout.root} by this version')

    return add
