"""How models come into the pool: the memory plan first, then the registry's import."""

from __future__ import annotations

from collections.abc import Sequence

from onefleet.control.clock import WallClock
from onefleet.control.fitting import rooms
from onefleet.control.pool import AddModel, Tell
from onefleet.core.memory_plan import plan_memory
from onefleet.domain.fleet import Node
from onefleet.domain.layout import Layout
from onefleet.domain.serving import Model
from onefleet.registry import models
from onefleet.registry.hub import Hub


def adder(layout: Layout, hub: Hub | None = None) -> AddModel:
    """The registry's import into this pool's folder. hub: None takes the public one."""

    async def add(source: str, name: str | None, nodes: Sequence[Node], tell: Tell) -> Model:
        seen = await models.preview(source)
        if seen.shape is not None and seen.purpose is not None:
            plan_memory(seen.shape, seen.purpose, seen.weights_bytes, rooms(nodes))
        return await models.add_model(source, name, layout, WallClock().now(), tell, hub)

    return add
