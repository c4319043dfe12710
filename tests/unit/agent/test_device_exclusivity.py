"""No worker starts on a device that another process of the node still has."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from onefleet.agent.protocol import (
    Act,
    Adopted,
    Done,
    Freeze,
    OrdersReceived,
    Pin,
    Report,
    Start,
    Stop,
    Tick,
    Verb,
    WorkerKey,
)
from onefleet.agent.worker_machine import WorkerMachine
from onefleet.domain.ids import DeviceId, Generation, Instant, NodeId, WorkId
from onefleet.drivers.base import WorkerState
from onefleet.wire.agent import JobSpec, NodeOrders, Observed, Order, OrderVerb

OLD, NEW = WorkerKey(WorkId("old"), 0), WorkerKey(WorkId("new"), 0)
DEVICE, ELSEWHERE = DeviceId("n1/cpu0"), DeviceId("n1/cpu1")
SOON, LATER = Instant(0), Instant(2_000)


def ordered(
    machine: WorkerMachine,
    generation: int,
    *keys: WorkerKey,
    verb: OrderVerb = OrderVerb.RUN,
    **devices: DeviceId,
) -> Sequence[Act]:
    """devices: by the name of the work. verb: of the first."""
    orders = tuple(
        Order(
            work_id=key.work_id,
            rank=0,
            epoch=Generation(1),
            verb=verb if key == keys[0] else OrderVerb.RUN,
            devices=(devices.get(key.work_id, DEVICE),),
            job=JobSpec(name="j", tenant_id="t", command=("true",)),
        )
        for key in keys
    )
    wanted = NodeOrders(
        node_id=NodeId("n1"), generation=Generation(generation), lease_ms=30_000, orders=orders
    )
    return acts(machine, OrdersReceived(wanted, Instant(0)))


def acts(
    machine: WorkerMachine, event: OrdersReceived | Done | Adopted | Tick, now: Instant = SOON
) -> Sequence[Act]:
    effects = machine.handle(event, now)
    machine.check()
    return [effect for effect in effects if not isinstance(effect, Report)]


def waits(machine: WorkerMachine) -> bool:
    worker = machine.get(NEW)
    return worker is not None and worker.observed is Observed.STARTING and not worker.alive


def adopted(
    state: WorkerState = WorkerState.RUNNING, binding: tuple[DeviceId, ...] = ()
) -> Adopted:
    """What an earlier agent left of it."""
    return Adopted(
        OLD,
        is_job=True,
        epoch=Generation(1),
        grace_ms=1,
        state=state,
        devices=(DEVICE,),
        binding=binding,
    )


def test_a_start_waits_until_the_one_before_is_gone() -> None:
    machine = WorkerMachine()
    (start,) = ordered(machine, 1, OLD)
    assert isinstance(start, Start)
    acts(machine, Done(OLD, Verb.START))
    (stop,) = ordered(machine, 2, NEW)
    assert isinstance(stop, Stop) and stop.key == OLD and waits(machine)
    (_, begun) = acts(machine, Done(OLD, Verb.STOP, exit_code=143)), machine.get(NEW)
    assert begun is not None and isinstance(begun.doing, Start)


def test_what_an_earlier_agent_started_keeps_its_devices_too() -> None:
    machine = WorkerMachine()
    acts(machine, adopted())
    (stop,) = ordered(machine, 1, NEW)
    assert stop.key == OLD and waits(machine)
    started = acts(machine, Done(OLD, Verb.STOP, exit_code=143))
    assert any(isinstance(act, Start) and act.key == NEW for act in started)


@pytest.mark.parametrize("error", ["", "its record could not be written"])
def test_what_was_sent_to_a_device_and_is_not_to_go_there_any_more_keeps_it_until_then(
    error: str,
) -> None:
    machine = WorkerMachine()
    ordered(machine, 1, OLD)
    acts(machine, Done(OLD, Verb.START))
    assert ordered(machine, 2, OLD, old=ELSEWHERE) == [Pin(OLD, (ELSEWHERE,))]
    assert ordered(machine, 3, OLD, NEW, new=ELSEWHERE) == [] and waits(machine)
    back = acts(machine, Done(OLD, Verb.PIN, error=error)) or acts(machine, Tick(), LATER)
    assert back == [Pin(OLD, (DEVICE,))] and waits(machine)
    (start,) = acts(machine, Done(OLD, Verb.PIN), LATER)
    assert isinstance(start, Start) and start.key == NEW


def test_what_an_earlier_agent_sent_to_a_device_keeps_it_until_it_is_known_not_to_be_there() -> (
    None
):
    machine = WorkerMachine()
    acts(machine, adopted(binding=(ELSEWHERE,)))
    assert ordered(machine, 1, OLD, NEW, new=ELSEWHERE) == [Pin(OLD, (DEVICE,))]
    assert waits(machine)
    (start,) = acts(machine, Done(OLD, Verb.PIN))
    assert isinstance(start, Start) and start.key == NEW


def test_what_an_earlier_agent_may_have_thawed_keeps_its_device_until_it_is_frozen() -> None:
    machine = WorkerMachine()
    acts(machine, adopted(WorkerState.FROZEN))
    assert ordered(machine, 1, OLD, NEW, verb=OrderVerb.FREEZE) == [Freeze(OLD)]
    assert waits(machine)
    (start,) = acts(machine, Done(OLD, Verb.FREEZE))
    assert isinstance(start, Start) and start.key == NEW
