"""The recipe of a pass: its steps, in order."""

from __future__ import annotations

from onefleet.core.scratch import Scratch
from onefleet.core.steps.errands import checkpoint, promise, ready
from onefleet.core.steps.frozen import thaw
from onefleet.core.steps.losses import drop_images, fence
from onefleet.core.steps.moves import move
from onefleet.core.steps.overdue import call_in
from onefleet.core.steps.owners import stop, suspend
from onefleet.core.steps.queue import Placing
from onefleet.core.steps.resize import resize
from onefleet.core.steps.spread import spread
from onefleet.core.steps.tidy import tidy
from onefleet.core.steps.width import widen


def work_off(this: Scratch, *, thorough: bool = False) -> Placing:
    """Take all steps. thorough: look at each work that waits, so that all can be explained; what
    is decided is the same."""
    fence(this)
    drop_images(this)
    stop(this)
    suspend(this)
    ready(this)
    promise(this)
    call_in(this)
    move(this)
    placing = Placing(this, thorough)
    placing.order()
    placing.place()
    thaw(this)
    widen(this, placing.contended)
    resize(this, placing.contended)
    spread(this, placing.contended)
    tidy(this, placing.contended)
    checkpoint(this)
    return placing
