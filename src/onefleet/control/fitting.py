"""Completes what a person asked of a deployment, before anything is downloaded or started.

The engine follows from the model's format, the context length from the model and the fleet; what
can never fit is refused with what would.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from onefleet.control.replicas import demand_of
from onefleet.core.feasibility import feasibility
from onefleet.domain.errors import Infeasible, InvalidRequest, Unsupported
from onefleet.domain.fleet import Node
from onefleet.domain.serving import Deployment, Model
from onefleet.engines import catalog


def fitted(asked: Deployment, model: Model, nodes: Iterable[Node]) -> Deployment:
    """The deployment with engine, slots, context length and memory filled in.

    Raises InvalidRequest for an engine that cannot run this model, Unsupported for one that
    cannot run on this machine, Infeasible when no node of the fleet could hold a replica.
    """
    engine = _engine(asked.engine, model)
    fleet = tuple(nodes)
    slots = asked.slots or 4
    context = asked.context_length or min(model.shape.context_length, 8192)
    sized = replace(
        asked,
        engine=engine,
        slots=slots,
        context_length=context,
        memory_bytes=model.size_bytes,
    )
    why = feasibility(demand_of(sized, fleet), fleet) if fleet else None
    if why is not None:
        raise Infeasible(
            f"{model.id} can never run on this fleet",
            why=why,
            hint="choose a smaller model or context length; see: onefleet device list",
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
    missing = catalog.engine(chosen).available()
    if missing:
        raise Unsupported(f'the engine "{chosen}" cannot run here', why=missing)
    return chosen
