"""One worker as its agent knows it: what is true of it, and what an outcome or look makes of that.

What is to be done next is not decided here but in `deciding.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from onefleet.agent.protocol import (
    Act,
    Adopted,
    Discard,
    Done,
    Fetch,
    Finish,
    Freeze,
    Hold,
    HoldKind,
    Pin,
    Prune,
    Restore,
    Save,
    Start,
    StatusSeen,
    Stop,
    Thaw,
    WorkerKey,
)
from onefleet.domain.fleet import CheckpointMode
from onefleet.domain.ids import NO_GENERATION, DeviceId, Generation, ImageId, Instant
from onefleet.domain.work import WHOLE
from onefleet.drivers.base import WorkerState
from onefleet.wire.agent import Made, Observed, Order, OrderVerb, WorkerReport

#: Between asking and killing, for a worker whose order did not say.
DEFAULT_GRACE_MS = 10_000
NEVER_BEFORE = Instant(0)
#: Before what failed is asked for again: a stop, a freeze, a thaw, the end of a hold.
RETRY_MS = 1_000
#: Before an image is fetched again for which nobody waits.
FETCH_RETRY_MS = 5_000
#: So often the end of a hold is asked for; what never ends is killed.
TRIES_MAX = 3

#: What is seen of a worker that no call is under way for.
SETTLED = {
    WorkerState.RUNNING: Observed.RUNNING,
    WorkerState.FROZEN: Observed.FROZEN,
    WorkerState.SAVE_HELD: Observed.SAVE_HELD,
    WorkerState.SAVED: Observed.SAVED,
    WorkerState.RESTORE_HELD: Observed.RESTORE_HELD,
    WorkerState.ENDED: Observed.ENDED,
}
_MOVING = {
    WorkerState.STARTING: Observed.STARTING,
    WorkerState.SAVING: Observed.SAVING,
    WorkerState.RESTORING: Observed.RESTORING,
    WorkerState.STOPPING: Observed.STOPPING,
}
_HELD = {WorkerState.SAVE_HELD: HoldKind.SAVE, WorkerState.RESTORE_HELD: HoldKind.RESTORE}


@dataclass(slots=True)
class Worker:
    """What the machine knows of one worker.

    epoch: the highest that an order named. ran: that its process was started under. alive: a
    process of it may exist; true from before a start until its end is known. doing: the driver
    call under way. settling: nobody knows its state until its driver is asked, as it was adopted
    in the middle of a call of the agent before, or a call failed halfway. image: what it was saved
    as. failed_save: the image that could not be made. condemned: why it is to be ended without an
    order. not_before: nothing is asked of it until then. devices: that its process has while it
    is alive and is not known to stand still frozen; milli: the share of each. binding: others that
    it may have, too, as a try to give it these did not come to its end. hold: that it is in.
    made: the outcome of the last image that was ordered as it ran. tries: failures in a row.
    """

    key: WorkerKey
    is_job: bool
    order: Order | None = None
    epoch: Generation = NO_GENERATION
    ran: Generation = NO_GENERATION
    observed: Observed | None = None
    alive: bool = False
    doing: Act | None = None
    settling: bool = False
    image: ImageId | None = None
    images: tuple[ImageId, ...] = ()
    image_bytes: int = 0
    image_lost_ms: int = 0
    image_took_ms: int = 0
    failed_save: ImageId | None = None
    condemned: str = ""
    exit_code: int | None = None
    reason: str = ""
    host: str = ""
    port: int = 0
    grace_ms: int = DEFAULT_GRACE_MS
    not_before: Instant = NEVER_BEFORE
    devices: tuple[DeviceId, ...] = ()
    milli: int = WHOLE
    binding: tuple[DeviceId, ...] = ()
    frozen: bool = False
    hold: Hold | None = None
    made: Made | None = None
    tries: int = 0

    def view(self) -> tuple[object, ...]:
        """What the control plane is told; a change of it is worth a report."""
        return (
            self.ran, self.observed, self.image, self.exit_code, self.reason, self.port, self.made,
            self.images,
        )  # fmt: skip

    def report(
        self, mode: CheckpointMode = CheckpointMode.NONE, memory_bytes: int = 0, cpu_ms: int = 0
    ) -> WorkerReport:
        """All that is true of a worker that has been observed. The arguments: what its driver
        knows of it.
        """
        assert self.observed is not None
        return WorkerReport(
            work_id=self.key.work_id,
            rank=self.key.rank,
            epoch=self.ran,
            observed=self.observed,
            reason=self.reason,
            exit_code=self.exit_code,
            image=self.image,
            image_bytes=self.image_bytes,
            image_lost_ms=self.image_lost_ms,
            image_took_ms=self.image_took_ms,
            images=self.images,
            made=self.made,
            memory_bytes=memory_bytes,
            cpu_ms=cpu_ms,
            checkpoint_mode=mode,
            host=self.host if self.alive else "",
            port=self.port if self.alive else 0,
        )

    @property
    def standing(self) -> Observed:
        """What a job's process does when nothing else is said of it."""
        return Observed.FROZEN if self.frozen else Observed.RUNNING

    def may_use(self, device: DeviceId) -> bool:
        """Whether it has this device, or may have."""
        given = self.doing.devices if isinstance(self.doing, Thaw | Pin) else ()
        return device in (*self.devices, *self.binding, *given)

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken."""
        if self.observed in (Observed.ENDED, Observed.SAVED, Observed.RESTORE_FAILED):
            assert not self.alive, f"{self.key} is {self.observed} but may be alive"
        if isinstance(self.doing, Start | Restore | Save | Finish | Freeze | Thaw | Pin | Stop):
            assert self.alive, f"{self.key}: {self.doing.verb} of what cannot be alive"
        if isinstance(self.doing, Discard | Fetch):
            assert not self.alive, f"{self.key}: {self.doing.verb} of what may be alive"
        if self.observed in (Observed.SAVED, Observed.SAVE_HELD):
            assert self.image is not None
        assert self.hold is None or self.alive, f"{self.key} is held but not alive"

    # --- a call begins and ends ----------------------------------------------------------------

    def begin(self, act: Act) -> None:
        """A driver call is under way from now on."""
        self.doing = act
        match act:
            case Start():
                self.observed = Observed.STARTING
                self.image = None
                self._runs_as(act.order)
            case Restore():
                self.observed = Observed.RESTORING
                self.image = act.image
                self._runs_as(act.order)
            case Save(runs_on=False):
                self.observed = Observed.SAVING
            case Fetch():
                self.observed, self.reason = Observed.FETCHING, ""
            case Stop():
                self.observed = Observed.STOPPING
            case _:
                pass

    def _runs_as(self, order: Order) -> None:
        self.alive, self.ran = True, order.epoch
        self.devices, self.milli, self.binding = order.devices, order.milli, ()
        self.exit_code, self.reason, self.condemned = None, "", ""
        self.host, self.port = "", 0
        self.failed_save, self.made, self.hold = None, None, None
        self.frozen, self.tries = False, 0

    def finished(self, act: Act, done: Done, now: Instant) -> None:
        """The outcome of the call that was under way."""
        match act:
            case Start():
                self._started(done, Observed.ENDED)
            case Restore(image=image, hold=hold):
                self._started(done, Observed.RESTORE_FAILED)
                if hold and not done.error:
                    self.observed, self.hold = (
                        Observed.RESTORE_HELD,
                        Hold(HoldKind.RESTORE, image),
                    )
            case Save(runs_on=True):
                self._made(act, done)
            case Save():
                self._saved(act, done)
            case Finish():
                self._let_go(act, done, now)
            case Freeze() | Thaw() | Pin():
                self._moved(act, done, now)
            case Fetch(image=image):
                self._fetched(image, done, now)
            case Stop():
                self._stopped(done, now)
            case Prune(keep=keep):
                self.images = tuple(i for i in self.images if i in keep)
            case Discard():
                raise AssertionError("the machine forgets the worker then")
            case _:
                assert_never(act)

    def _started(self, done: Done, failed: Observed) -> None:
        self.alive = not done.error
        self.reason = done.error
        if done.error:
            self.observed = failed
            self.exit_code = done.exit_code
        else:
            self.observed = Observed.RUNNING if self.is_job else Observed.STARTING

    def _saved(self, act: Save, done: Done) -> None:
        self.reason = done.error
        if done.over:
            self.alive, self.observed, self.exit_code = False, Observed.ENDED, done.exit_code
            return
        if done.error:
            self.observed = Observed.SAVE_FAILED
            self.failed_save, self.tries = act.image, 0
            return
        self._has(act.image)
        self.image, self.image_bytes = act.image, done.image_bytes
        self.image_lost_ms, self.image_took_ms = done.lost_ms, done.took_ms
        if act.hold:
            self.observed, self.hold = Observed.SAVE_HELD, Hold(HoldKind.SAVE, act.image)
        else:
            self.alive, self.observed = False, Observed.SAVED

    def _made(self, act: Save, done: Done) -> None:
        self.made = Made(
            image=act.image,
            image_bytes=done.image_bytes,
            took_ms=done.took_ms,
            error=done.error,
        )
        if done.error:
            return
        self._has(act.image)
        if act.hold:
            self.hold = Hold(HoldKind.MAKING, act.image)

    def _let_go(self, act: Finish, done: Done, now: Instant) -> None:
        if done.error and self.hold is None:
            self.condemned = f"it was not held when its save counted: {done.error}"
            return
        if done.error:  # its driver is asked what is true, and then it is asked for again
            self.reason = done.error
            self.tries += 1
            self.settling, self.not_before = True, Instant(now + RETRY_MS)
            return
        kind = HoldKind.SAVE if self.hold is None else self.hold.kind
        self.hold, self.tries, self.reason = None, 0, ""
        if not act.commit and kind is not HoldKind.RESTORE:
            self.images = tuple(i for i in self.images if i != act.image)
        match kind:
            case HoldKind.SAVE if act.commit:
                self.alive, self.observed, self.image = False, Observed.SAVED, act.image
            case HoldKind.RESTORE if not act.commit:
                self.alive, self.observed, self.image = False, Observed.SAVED, act.image
            case HoldKind.SAVE:
                self.observed, self.image, self.reason = self.standing, None, ""
            case HoldKind.RESTORE:
                self.observed = Observed.RUNNING
            case HoldKind.MAKING:
                self.made = self.made if act.commit else None
            case _:
                assert_never(kind)

    def _moved(self, act: Freeze | Thaw | Pin, done: Done, now: Instant) -> None:
        """Frozen, thawed or bound elsewhere."""
        if done.error:
            self.reason = done.error
            self.tries += 1
            self.not_before = Instant(now + RETRY_MS)
            if not isinstance(act, Freeze):
                self.binding = tuple(dict.fromkeys((*self.binding, *act.devices)))
            return
        self.tries, self.reason, self.binding = 0, "", ()
        if isinstance(act, Freeze):
            self.frozen, self.devices = True, ()
        else:
            self.frozen, self.devices = self.frozen and isinstance(act, Pin), act.devices
        self.observed = self.standing

    def _fetched(self, image: ImageId, done: Done, now: Instant) -> None:
        if not done.error:
            if not done.more:
                self._has(image)
            return
        self.observed, self.reason = Observed.RESTORE_FAILED, done.error
        order = self.order
        if order is not None and order.verb is OrderVerb.RUN and order.image == image:
            self.ran = order.epoch  # it is the restore that has failed
            self.exit_code = None
        else:
            self.not_before = Instant(now + FETCH_RETRY_MS)

    def _stopped(self, done: Done, now: Instant) -> None:
        self.not_before = NEVER_BEFORE
        if done.error:  # it may live still: the next decision asks again
            self.reason = done.error
            self.not_before = Instant(now + RETRY_MS)
            return
        if self.hold is not None and self.hold.kind is not HoldKind.RESTORE:
            gone = self.hold.image
            self.images = tuple(i for i in self.images if i != gone)
        self.alive, self.hold, self.frozen = False, None, False
        self.observed = Observed.ENDED
        self.exit_code = None if self.condemned else done.exit_code
        self.reason, self.condemned = self.condemned, ""

    def _has(self, image: ImageId) -> None:
        if image not in self.images:
            self.images = (*self.images, image)

    # --- what is seen of it --------------------------------------------------------------------

    def see(self, seen: StatusSeen) -> None:
        """What its driver says, while no call is under way."""
        if self.settling and seen.state in SETTLED:
            self.settling = False
            self.image_bytes, self.image_lost_ms = seen.image_bytes, seen.lost_ms
            self._settle(seen.state)
        elif not self.settling and self.alive:
            self._note(seen.state)
        if self.observed is Observed.ENDED and self.exit_code is None:
            self.exit_code = seen.exit_code
            self.reason = self.reason or seen.reason

    def _note(self, state: WorkerState) -> None:
        """A look at what is not in doubt: it may have ended, or been frozen by its supervisor."""
        if self.hold is not None and self.hold.kind is HoldKind.SAVE:
            return  # even if it ran on, or has ended since: its image is whole, and may yet count
        if state is WorkerState.ENDED:
            self.alive, self.hold = False, None
            self.observed = Observed.ENDED
        elif state is WorkerState.FROZEN and self.hold is None and not self.frozen:
            self.frozen, self.observed = True, Observed.FROZEN
            self.devices = self.binding = ()
        elif state is WorkerState.RUNNING and self.frozen:
            self.frozen, self.observed = False, Observed.RUNNING

    def adopt(self, found: Adopted) -> None:
        """Be what an agent before this one left."""
        self.ran = self.epoch = found.epoch
        self.image, self.images = found.image, found.images
        self.image_bytes, self.image_lost_ms = found.image_bytes, found.lost_ms
        self.exit_code, self.reason = found.exit_code, found.reason
        self.grace_ms, self.devices, self.milli = found.grace_ms, found.devices, found.milli
        self.binding = found.binding
        if found.state is None:
            if found.image in found.images:
                self.observed = Observed.SAVED
            else:
                self.image, self.ran = None, NO_GENERATION
            return
        self.alive, self.hold = True, found.hold
        if found.state in _MOVING:
            self.settling, self.observed = True, _MOVING[found.state]
        else:
            self._settle(found.state)
            if self.alive:
                self.reason = ""  # of something that is over

    def _settle(self, state: WorkerState) -> None:
        """Its state is known again."""
        self.frozen = state is WorkerState.FROZEN
        self.alive = state not in (WorkerState.SAVED, WorkerState.ENDED)
        self.observed = SETTLED[state]
        if state is WorkerState.RUNNING and not self.is_job:
            self.observed = Observed.STARTING  # until it answers
        self._settle_hold(state)
        if state is WorkerState.SAVED:
            if self.image is None:  # nobody knows as what: it cannot be brought back
                self.observed = Observed.ENDED
                self.reason = "it was saved, but its image is not known"
            else:
                self._has(self.image)

    def _settle_hold(self, state: WorkerState) -> None:
        """Whether it is still held, and in what.

        A hold whose time has run out may still be ended either way, as long as its image is there:
        of a save it counts on; a restore of which that is true runs, and nothing is left to say.
        """
        hold = self.hold
        if state in _HELD:
            if hold is None and self.image is not None:
                hold = self.hold = Hold(_HELD[state], self.image)
            if hold is None or self.tries >= TRIES_MAX:
                self.condemned = f"its hold could not be ended: {self.reason or 'it is not known'}"
            elif hold.kind is HoldKind.SAVE:
                self.image = hold.image
                self._has(hold.image)
            elif hold.kind is HoldKind.MAKING:
                self.observed = self.standing
                self._has(hold.image)
            return
        lapsed = (
            state in (WorkerState.RUNNING, WorkerState.FROZEN)
            and hold is not None
            and hold.kind is not HoldKind.RESTORE
            and hold.image in self.images
        )
        if not lapsed:
            self.hold, self.tries = None, 0
        elif self.tries >= TRIES_MAX:
            self.condemned = f"its hold could not be ended: {self.reason}"
        elif hold is not None and hold.kind is HoldKind.SAVE:
            self.image, self.observed = hold.image, Observed.SAVE_HELD
