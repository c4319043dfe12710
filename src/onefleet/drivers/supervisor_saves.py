"""The supervisor's saves and holds: what is under way, who waits for it, what comes of it.

    running --save--> saving --> save-held --finish(commit)--> saved
       ^                 |          |  '-----finish(abort)---> running, the image is gone
       '-----refused-----'          '--------nobody asks-----> running, the image stays

A save that is not to be held is finished at once. With leave_running, commit leads back to running
as well. A hold ends by itself after a limit, because an agent that vanished must not stop a job
for ever. Nothing is lost by that: the image stays, so if the gang as a whole has been given up, its
control plane still says so (commit), and a rank that ran on is stopped and goes back to the image
with all the others. To give the rank up instead would lose it if the others were told to run on.
The same holds for a restore: a rank that runs while the gang does not only waits for the others.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from onefleet.domain.errors import Conflict, OnefleetError, TimedOut
from onefleet.drivers import cooperative, criu_commands, image, process_tree
from onefleet.drivers.cell_worker import CellWorker
from onefleet.drivers.command_socket import Client, line, refuse, send, told
from onefleet.drivers.criu_commands import CriuKilled
from onefleet.drivers.device_checkpoint import DeviceStateUnknown
from onefleet.drivers.work_files import WorkFiles

if TYPE_CHECKING:
    from onefleet.drivers.supervisor import Supervisor

SAVE_HELD, RESTORE_HELD = "save-held", "restore-held"
#: How often a program that saves itself and goes on is looked at.
LOOK_S = 0.05


class Saves:
    """The saves of one supervisor's worker.

    deadline: when the present hold, or the grace of a cooperative save, is over; by the monotonic
    clock. asked: the program that was asked to save itself.
    """

    def __init__(self, supervisor: Supervisor, order: dict[str, Any], own: WorkFiles) -> None:
        self._daemon = supervisor
        self._order = order
        self._files = own
        self._holds = False  # whether the save under way is to be held
        self._was_frozen = False
        self._allowed_s = 0.0  # how long a program may take to save itself
        self._waiting: list[Client] = []
        self._manifest: dict[str, Any] = {}
        self.asked: cooperative.Request | None = None
        self.deadline: float | None = None

    @property
    def is_held(self) -> bool:
        return self._daemon.state["state"] in (SAVE_HELD, RESTORE_HELD)

    @property
    def ends_worker(self) -> bool:
        """Whether the worker was asked to save itself and end."""
        return self.asked is not None and not self.asked.leave_running

    def hold_restore(self) -> None:
        """The worker is back, and stands still until `finish`."""
        target = self._order["image"]
        self._hold(RESTORE_HELD, _hold(target, restores=True), image.read(target))

    def save(self, command: dict[str, Any], client: Client) -> None:
        """Obey a command to save."""
        target, state = str(command["image"]), self._daemon.state
        leaves = bool(command.get("leave_running"))
        if self.asked is not None and self.asked.target == target:
            self._waiting.append(client)
            return
        held = (state.get("hold") or {}).get("image") if state["state"] == SAVE_HELD else None
        if target in (held, state.get("checkpoint")):
            send(client, {"ok": True})
            return
        worker = self._daemon.worker
        if worker is None or state["state"] not in ("running", "frozen"):
            busy = Conflict("the worker cannot be saved", why=f"it is {state['state']}")
            refuse(client, busy)
            return
        self._holds = bool(command.get("hold"))
        limit_ms = int(command.get("limit_ms") or 0)  # an older agent does not say
        self._was_frozen = worker.freezer.frozen
        self._waiting.append(client)
        self._daemon.write(state="saving", image=target)
        try:
            if isinstance(worker, CellWorker):
                at_once = self._holds or not leaves
                memory = command.get("memory")  # an older agent does not say
                limit_s = criu_commands.allowed_s(limit_ms)
                worker.dump(target, memory, self._daemon.cpu_before_ms, leaves, at_once, limit_s)
                self._settle(target, worker.manifest, leaves)
            else:
                if self._was_frozen:
                    worker.freezer.thaw(worker.processes)
                self.asked = cooperative.Request(worker, target, leaves, self._daemon.began_ns)
                grace_ms = self._order["grace_ms"]
                self._allowed_s = min(grace_ms, limit_ms or grace_ms) / 1000
                self.deadline = time.monotonic() + self._allowed_s
        except (CriuKilled, DeviceStateUnknown, TimedOut) as error:
            self.distrust(error)
        except (OnefleetError, OSError) as error:
            self._refused(error)

    # Cooperative saves

    def look(self) -> None:
        """Whether the program that was asked to save itself and go on has done so, or won't."""
        asked = self.asked
        assert asked is not None and self.deadline is not None
        if asked.is_done():
            self._complete(asked, self._daemon.cpu_ms(), {})
        elif time.monotonic() >= self.deadline:
            asked.call_off()
            why = f"the program wrote no checkpoint within {self._allowed_s:g} s of SIGUSR1"
            self._refused(TimedOut("the worker did not save itself", why=why))

    def program_ended(self, exit_code: int, cpu_ms: int, killed: bool) -> None:
        """The program that was asked to save itself and end has ended."""
        assert self.asked is not None
        reason = ""
        if killed:
            reason = (
                f"killed after {self._allowed_s:g} s: it did not end when asked to save itself, so "
                "its work since its own last checkpoint is lost"
            )
        self._complete(self.asked, cpu_ms, {"exit_code": exit_code, "reason": reason})

    def _complete(self, asked: cooperative.Request, cpu_ms: int, more: dict[str, Any]) -> None:
        worker = self._daemon.worker
        assert worker is not None
        if asked.leave_running and (self._holds or self._was_frozen):
            worker.freezer.freeze(worker.processes)
        try:
            facts = {**more, "cpu_ms": cpu_ms}
            manifest = asked.commit(self._order["command"], self._files, facts)
        except (OSError, OnefleetError) as error:
            asked.call_off()
            if asked.leave_running:
                self._refused(error)
                return
            refused = {"ok": False, "error": told(error)}
            self._over(refused, state="ended", exit_code=None, reason=line(error))
        else:
            self._settle(asked.target, manifest, asked.leave_running)

    # What becomes of a save

    def _settle(self, target: str, manifest: dict[str, Any], leaves: bool) -> None:
        """All is saved: hold it, or finish at once."""
        self.asked = None
        self._manifest = manifest
        if self._holds:
            self._hold(SAVE_HELD, _hold(target, leaves=leaves), manifest)
            self._answer({"ok": True})
        else:
            self._decide(_hold(target, leaves=leaves), commit=True, lapsed=False)

    def _hold(self, state: str, hold: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.deadline = time.monotonic() + self._order["hold_ms"] / 1000
        worker = self._daemon.worker
        lives = worker is not None and worker.root_status is None
        since = time.monotonic()
        if isinstance(worker, CellWorker) and state == SAVE_HELD:
            since = worker.dumped_at
        self._daemon.write(
            state=state,
            pid=worker.root if worker is not None and lives else None,
            born=process_tree.born_at(worker.root) if worker is not None and lives else 0,
            image=hold["image"],
            image_bytes=image.total_bytes(manifest),
            frozen_ms=int((time.monotonic() - since) * 1000),
            lost_ms=manifest.get("lost_ms", 0),
            hold=hold,
        )

    def finish(self, commit: bool, client: Client) -> None:
        """Obey a command to end a hold."""
        hold = self._daemon.state.get("hold")
        if hold is None:
            refuse(client, Conflict("the worker is not held"))
        elif hold["answer"] is not None:
            if hold["answer"] is commit:
                send(client, {"ok": True})
            else:
                refuse(client, Conflict("the worker was told otherwise before"))
        elif self.is_held:
            self._waiting.append(client)
            self._decide(hold, commit, lapsed=False)
        else:
            self._waiting.append(client)
            self._decide_late(hold, commit)

    def lapse(self) -> None:
        """Nobody has ended the hold within its limit."""
        hold = self._daemon.state["hold"]
        self._decide(hold, commit=hold["restores"] or hold["leaves"], lapsed=True)

    def _decide(self, hold: dict[str, Any], commit: bool, lapsed: bool) -> None:
        """End a hold, by an answer or because its time is over."""
        self.deadline = None
        answer = {**hold, "answer": None if lapsed else commit}
        try:
            if hold["restores"]:
                self._decide_restore(answer, commit)
            else:
                self._decide_save(answer, commit)
        except (CriuKilled, DeviceStateUnknown, TimedOut) as error:
            self.distrust(error)
        except (OnefleetError, OSError) as error:
            self._failed(error, hold)

    def _decide_restore(self, answer: dict[str, Any], commit: bool) -> None:
        if commit:
            self._daemon.resume()
            self._goes_on(answer)
        else:
            self._daemon.undo()
            self._over({"ok": True}, state="saved", reason="", hold=answer)

    def _decide_save(self, answer: dict[str, Any], commit: bool) -> None:
        worker, leaves = self._daemon.worker, answer["leaves"]
        assert worker is not None
        if isinstance(worker, CellWorker):
            self._manifest = worker.let_go(give_up=commit)
        elif leaves:
            if not self._was_frozen:
                worker.freezer.thaw(worker.processes)
        elif not commit:
            self._daemon.resume()
            worker = self._daemon.worker
            if self._was_frozen and worker is not None:
                worker.freezer.freeze(worker.processes)
        if commit and not leaves:
            self._saved(answer)
            return
        if commit:
            size = image.total_bytes(self._manifest)
            frozen_ms = self._manifest.get("frozen_ms", 0)
            self._daemon.write(checkpoint=answer["image"], image_bytes=size, frozen_ms=frozen_ms)
        elif answer["answer"] is False:
            image.discard(answer["image"])
        self._goes_on(answer)

    def _failed(self, error: OnefleetError | OSError, hold: dict[str, Any]) -> None:
        """What a hold was to end in went wrong."""
        worker, told_ = self._daemon.worker, {"ok": False, "error": told(error)}
        if hold["restores"]:
            self._over(told_, state="saved", reason=line(error), hold={**hold, "answer": False})
        elif worker is not None and worker.root_status is None:
            image.discard(hold["image"])
            self._refused(error, {**hold, "answer": False})
        else:  # a program that had ended, and did not start again
            self._over(told_, state="ended", exit_code=None, reason=line(error))

    def _decide_late(self, hold: dict[str, Any], commit: bool) -> None:
        """An answer to a hold that has ended by itself: the worker runs."""
        answer = {**hold, "answer": commit}
        ends = not commit if hold["restores"] else commit and not hold["leaves"]
        if not commit and not hold["restores"]:
            image.discard(hold["image"])
        if not ends:
            self._daemon.write(hold=answer)
            self._answer({"ok": True})
            return
        self._daemon.sweep()
        self._manifest = image.read(hold["image"])
        self._saved(answer)

    def _goes_on(self, hold: dict[str, Any]) -> None:
        """The worker runs, or is frozen as before."""
        reason = "it was held, and nobody said what was to follow" if hold["answer"] is None else ""
        self._daemon.write_going(hold=hold, reason=reason)
        self._answer({"ok": True})

    def _saved(self, hold: dict[str, Any]) -> None:
        manifest = self._manifest
        self._over(
            {"ok": True},
            state="saved",
            reason=manifest.get("reason", ""),
            image=hold["image"],
            image_bytes=image.total_bytes(manifest),
            cpu_ms=manifest["cpu_ms"],
            frozen_ms=manifest.get("frozen_ms", 0),
            lost_ms=manifest.get("lost_ms", 0),
            hold=hold,
        )

    def _over(self, answer: dict[str, Any], **changes: Any) -> None:
        """No process of the worker is left."""
        self._daemon.write(pid=None, **changes)
        self._answer(answer)
        self._daemon.finish()

    def _refused(self, error: OnefleetError | OSError, hold: dict[str, Any] | None = None) -> None:
        """The worker runs on unharmed."""
        self.asked = self.deadline = None
        worker = self._daemon.worker
        if worker is not None and self._was_frozen and not worker.freezer.frozen:
            worker.freezer.freeze(worker.processes)
        reason = f"the last save failed, nothing was lost: {line(error)}"
        self._daemon.write_going(image=None, reason=reason, hold=hold)
        self._answer({"ok": False, "error": told(error)})

    def distrust(self, error: OnefleetError) -> None:
        """Nobody knows what was done to its memory: better an honest end than a wrong result."""
        self._daemon.sweep()
        reason = f"ended: {error.what}, {error.why}; what it had done since its last image is lost"
        self._over(
            {"ok": False, "error": told(error)}, state="ended", exit_code=None, reason=reason
        )

    def drop(self) -> None:
        """The worker is to end, whatever was under way: no image comes of it."""
        if self._daemon.state["state"] == SAVE_HELD:
            target = self._daemon.state["hold"]["image"]
            image.discard(target)
        self.forget()
        self._daemon.write(hold=None)

    def forget(self) -> None:
        """The worker has ended, or is to: nothing comes of what it was asked."""
        if self.asked is not None:
            self.asked.call_off()
        self.asked = self.deadline = None
        ended = Conflict("the worker was not saved", why="it has ended, or was told to")
        self._answer({"ok": False, "error": told(ended)})

    def _answer(self, answer: dict[str, Any]) -> None:
        for client in self._waiting:
            send(client, answer)
        self._waiting.clear()


def _hold(target: str, *, restores: bool = False, leaves: bool = False) -> dict[str, Any]:
    """answer: what was said to it; None so far, or because it ended by itself."""
    return {"image": target, "restores": restores, "leaves": leaves, "answer": None}
