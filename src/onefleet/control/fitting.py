"""Completes what a person asked of a deployment, before anything is started.

The engine follows from the model's format; slots, context length and memory from the memory plan;
what can never fit is refused with what would.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from onefleet.control.replicas import demand_of
from onefleet.control.spares import Wanted
from onefleet.core.index.spares import infeasible
from onefleet.core.memory_plan import NodeRoom, plan_memory
from onefleet.domain.errors import Infeasible, InvalidRequest, Unsupported
from onefleet.domain.fleet import Node
from onefleet.domain.serving import Deployment, Model
from onefleet.engines import catalog


def rooms(nodes: Iterable[Node]) -> Sequence[NodeRoom]:
    """The nodes as the memory plan sees them: what they have when they are empty."""
    return tuple(
        NodeRoom(node.id, node.name, node.memory_bytes, node.memory_bytes) for node in nodes
    )


def fitted(
    asked: Deployment, model: Model, nodes: Iterable[Node], spares: Wanted = ()
) -> Deployment:
    """The deployment with engine, slots, context length and memory filled in. spares: so many of
    the nodes are kept empty.

    Raises InvalidRequest for an engine that cannot run this model, Unsupported for one that
    cannot run on this machine, Infeasible when no node of the fleet could hold a replica.
    """
    fleet = tuple(nodes)
    engine = _engine(asked.engine, model)
    plan = plan_memory(
        model.shape,
        model.purpose,
        model.size_bytes,
        rooms(fleet),
        slots=asked.slots,
        context_length=asked.context_length,
    )
    sized = replace(
        asked,
        engine=engine,
        slots=plan.slots,
        context_length=plan.context_length,
        memory_bytes=plan.total_bytes,
    )
    why = infeasible(demand_of(sized), fleet, spares) if fleet else None
    if why is not None:
        raise Infeasible(
            f"{model.id} can never run on this fleet",
            why=why,
            hint="ask for fewer devices for each replica; see: onefleet device list",
            param="devices_per_replica",
        )
    return sized


def _engine(name: str, model: Model) -> str:
    """The engine's name. Raises InvalidRequest or Unsupported."""
    chosen = name or catalog.BY_FORMAT.get(model.format, "")
    if not chosen:
        raise InvalidRequest(
            f'no engine serves models of format "{model.format}"',
            hint=f"name one with --engine: {', '.join(sorted(catalog.ENGINES))}",
            param="engine",
        )
    engine = catalog.engine(chosen)
    if catalog.BY_FORMAT.get(model.format, chosen) != chosen:
        raise InvalidRequest(
            f'the engine "{chosen}" cannot run {model.id}',
            why=f'its format is "{model.format}"',
            hint=f"leave the engine out: it is {catalog.BY_FORMAT[model.format]}",
            param="engine",
        )
    missing = engine.available()
    if missing:
        raise Unsupported(f'the engine "{chosen}" cannot run here', why=missing)
    return chosen
