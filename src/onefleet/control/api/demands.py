"""What a new job asks for, checked: its devices, its terms."""

from __future__ import annotations

from onefleet.control.call import good_text, one_of, within
from onefleet.core.checkpointing import INTERVAL_MS_MIN
from onefleet.domain.errors import InvalidRequest
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import Instant, WorkId
from onefleet.domain.quantities import counted, duration
from onefleet.domain.work import WHOLE, Demand, Speed, Terms
from onefleet.wire.api import NewJob

DEVICES_MAX = 100_000
WORKERS_MAX = 4_096
MEMORY_BYTES_MAX = 2**50
SPEED_MAX = 1_000_000
PRODUCTS_MAX = 32
AFTER_MAX = 1_024
#: The longest run time, pause or time to a deadline that is believed: ten years.
LONG_MS = 10 * 366 * 24 * 3_600_000


def demand_of(new: NewJob) -> Demand:
    """The devices of a new job. Raises InvalidRequest."""
    low = within(new.devices_min, 1, DEVICES_MAX, "devices_min")
    high = within(new.devices_max, 1, DEVICES_MAX, "devices_max")
    workers = within(new.workers, 1, WORKERS_MAX, "workers")
    if high < low:
        raise InvalidRequest(
            f'"devices_max" is {high}, less than "devices_min" ({low})', param="devices_max"
        )
    milli = within(new.device_milli, 1, WHOLE, "device_milli")
    if milli < WHOLE and (high, workers) != (1, 1):
        raise InvalidRequest(
            f'"device_milli" is {milli}: a share is of one device, for one worker',
            hint="ask for whole devices, or for one worker on one device",
            param="device_milli",
        )
    kind = one_of(DeviceKind, new.device_kind, "device_kind")
    if kind is not DeviceKind.CPU and workers == 1 and low < high:
        raise InvalidRequest(
            f"a job of one worker cannot have {low} to {high} {kind} devices",
            why="a program keeps those that it began with, and its state lies on all of them",
            hint=f"ask for {low} or for {high}, or for a gang of {high} workers",
            param="devices_max",
        )
    each, pack = _shape(workers, low, high)
    if len(new.products) > PRODUCTS_MAX:
        raise InvalidRequest(f'"products" has more than {PRODUCTS_MAX} entries', param="products")
    return Demand(
        kind=kind,
        devices_min=each[0],
        devices_max=each[1],
        workers=workers,
        memory_bytes=within(new.memory_bytes, 0, MEMORY_BYTES_MAX, "memory_bytes"),
        milli=milli,
        pack=pack,
        speeds=tuple(
            Speed(good_text(name, 200, "products"), within(speed, 1, SPEED_MAX, "products"))
            for name, speed in sorted(new.products.items())
        ),
        zones=tuple(sorted(dict.fromkeys(good_text(z, 63, "zones") for z in new.zones))),
    )


def _shape(workers: int, low: int, high: int) -> tuple[tuple[int, int], int]:
    """Devices of one worker, least and most, and how many workers may take turns on them."""
    if workers == 1:
        return (low, high), 1
    if high % workers:
        most: int | str = -(-high // workers) * workers
        if high < workers:
            most = f"{low}..{most}: while it has fewer than that, its workers take turns"
        raise InvalidRequest(
            f"{counted(high, 'device')} cannot be dealt evenly to {workers} workers",
            why="each worker of a gang has the same number of devices",
            hint=f"ask for {most}, or for another number of workers",
            param="devices_max",
        )
    each = high // workers
    if low % each:
        raise InvalidRequest(
            f"a gang of {workers} workers with {each} devices each cannot run on {low}",
            why=f"workers that take turns share sets of {each} devices",
            hint=f"ask for at least {-(-low // each) * each}",
            param="devices_min",
        )
    return (each, each), -(-workers // (low // each))


def terms_of(new: NewJob, after: tuple[WorkId, ...], now: Instant) -> Terms:
    """The terms of a new job; after: the jobs that `new.after` names. Raises InvalidRequest."""
    deadline = new.deadline
    if deadline is not None and not now < deadline <= now + LONG_MS:
        raise InvalidRequest(
            f'"deadline" is {deadline}, which is not ahead of now ({now})',
            hint="a deadline is a time in milliseconds since 1970",
            param="deadline",
        )
    for param, value in (
        ("estimate_ms", new.estimate_ms),
        ("checkpoint_every_ms", new.checkpoint_every_ms),
    ):
        if value is not None:
            within(value, 0, LONG_MS, param)
    every_ms = new.checkpoint_every_ms
    if every_ms is not None and 0 < every_ms < INTERVAL_MS_MIN:
        raise InvalidRequest(
            f'"checkpoint_every_ms" is {every_ms}, and it is at least {INTERVAL_MS_MIN}',
            why="a save while it runs takes from a second on, and the machine's disk",
            hint="say 0 for none, or save it with: onefleet checkpoint JOB",
            param="checkpoint_every_ms",
        )
    estimate_ms = new.estimate_ms
    if deadline is not None and estimate_ms is not None and now + estimate_ms > deadline:
        raise InvalidRequest(
            f"its deadline is in {duration(deadline - now)}, "
            f"and it runs for {duration(estimate_ms)}",
            why="it could not end in time if it started now",
            hint="choose a later deadline, or more devices and a shorter estimate",
            param="deadline",
        )
    return Terms(
        after=after,
        deadline=None if deadline is None else Instant(deadline),
        estimate_ms=estimate_ms,
        checkpoint_every_ms=new.checkpoint_every_ms,
    )
