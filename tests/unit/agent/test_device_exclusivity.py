"""No worker starts on a device that another process of the node still has."""

from __future__ import annotations

from collections.abc import Sequence

from onefleet.agent.protocol import (
    Act,
    Adopted,
    Done,
    OrdersReceived,
    Report,
    Start,
    Stop,
    Verb,
    WorkerKey,
)
from onefleet.agent.worker_machine import WorkerMachine
from onefleet.domain.ids import DeviceId, Generation, Instant, NodeId, WorkId
from onefleet.drivers.base import WorkerState
from onefleet.wire.agent import JobSpec, NodeOrders, Observed, Order, OrderVerb

OLD, NEW = WorkerKey(WorkId("old"), 0), WorkerKey(WorkId("new"), 0)
DEVICE = DeviceId("n1/cpu0")


def ordered(machine: WorkerMachine, generation: int, *keys: WorkerKey) -> Sequence[Act]:
    orders = tuple(
        Order(
            work_id=key.work_id,
            rank=0,
            epoch=Generation(1),
            verb=OrderVerb.RUN,
            devices=(DEVICE,),
            job=JobSpec(name="j", tenant_id="t", command=("true",)),
        )
        for key in keys
    )
    wanted = NodeOrders(
        node_id=NodeId("n1"), generation=Generation(generation), lease_ms=30_000, orders=orders
    )
    return acts(machine, OrdersReceived(wanted, Instant(0)))


def acts(machine: WorkerMachine, event: OrdersReceived | Done | Adopted) -> Sequence[Act]:
    effects = machine.handle(event, Instant(0))
    machine.check()
    return [effect for effect in effects if not isinstance(effect, Report)]


def waits(machine: WorkerMachine) -> bool:
    worker = machine.get(NEW)
    return worker is not None and worker.observed is Observed.STARTING and not worker.alive


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
    adopted = Adopted(
        OLD,
        is_job=True,
        epoch=Generation(1),
        grace_ms=1,
        state=WorkerState.RUNNING,
        devices=(DEVICE,),
    )
    acts(machine, adopted)
    (stop,) = ordered(machine, 1, NEW)
    assert stop.key == OLD and waits(machine)
    started = acts(machine, Done(OLD, Verb.STOP, exit_code=143))
    assert any(isinstance(act, Start) and act.key == NEW for act in started)
