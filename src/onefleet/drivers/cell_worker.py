"""A worker in a cell: start it, save it, bring it back. The CRIU driver's containment.

What a save must not lose besides memory is carried here: the cell's shared memory files, the sizes
of files that are written to, and what the processes execute, by which a restore sees at once
that the machine no longer has the same libraries.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
import uuid
from collections.abc import Sequence
from typing import Any, NoReturn

from onefleet.domain.errors import (
    Conflict,
    OnefleetError,
    StorageFull,
    TimedOut,
    Unsupported,
    UpstreamFailed,
)
from onefleet.domain.gang import GangPlace
from onefleet.drivers import clocks, criu_commands, image, linux, process_tree, pstree
from onefleet.drivers.cell import JOB, OWN, ROOT_PID, Cell
from onefleet.drivers.device_checkpoint import DeviceStateUnknown, NoRoom
from onefleet.drivers.device_cut import LockRules
from onefleet.drivers.freezer import Freezer
from onefleet.drivers.held_devices import HeldDevices
from onefleet.drivers.intake import Intake
from onefleet.drivers.launch import become_command, launch_error
from onefleet.drivers.rights import Identity
from onefleet.drivers.work_files import WorkFiles, cut

_SHM = "shm.tar"
#: The least that a kernel's limit of process ids may be, and where to look when it is reached.
_PID_LIMIT = 32_768
_LOW_PIDS = 300
#: A worker whose peers are locked by others is let go soon: all of the gang are tried again.
_GANG_LOCKS = LockRules(tries=1, first_ms=10_000)


class CellWorker:
    """The processes of one worker in its cell; same shape as `keeper.Keeper`.

    A restored one stands still until `resume`, a dumped one until `let_go`. manifest: of the last
    dump; without files while these are not durable. dumped_at: when that began (monotonic).
    devices: what it has on GPUs.
    """

    descriptor = -1  # all news comes as the end of children

    def __init__(self, order: dict[str, Any], folder: str, own: WorkFiles, restoring: bool) -> None:
        self.root_status: int | None = None
        self.ended_cpu_ms = 0
        self.lost = ""
        self.root = 0
        self.manifest: dict[str, Any] = {}
        self.dumped_at = 0.0
        self._target = ""
        self._leaves = self._stopped = self._took_off = False
        self._saved_devices: dict[str, Any] | None = None
        self._criu: criu_commands.Criu | None = None
        self._intake: Intake | None = None
        self._order = order
        self._folder = folder
        self._files = own
        self.freezer = Freezer()
        criu_commands.write_hook(folder)
        try:
            if restoring:
                source, chunks = order["image"], order.get("chunks")
                with linux.ahead_of_others(), image.opened_early(source, chunks) as opened:
                    self._restore(image.raw(source), *opened)
            else:
                self._start()
        except (OnefleetError, OSError):
            with contextlib.suppress(ChildProcessError):
                while True:  # they were all killed
                    os.wait()
            self.freezer.remove()
            raise

    def _start(self) -> None:
        order = self._order
        self._files.arrive()
        me = Identity(os.getuid(), os.getgid(), {})
        place = _place(order)
        self.cell = Cell(self._folder, order["work"], order["network"], ROOT_PID - 1, me, place)
        self.devices = _devices(self.cell, order)
        report, failed = os.pipe()

        def body() -> NoReturn:
            become_command(order, OWN, JOB, self.cell.rights, failed, self.freezer.enter)

        try:
            self.cell.plug()
            self.root = self.cell.run(body)
        except OSError:
            self.destroy()
            raise
        os.close(failed)
        with os.fdopen(report, encoding="ascii") as lines:
            said = lines.read()
        if said:
            self.destroy()
            raise launch_error(said, order)

    def poll(self) -> None:
        """Nothing: the end of the root is seen by `reaped`."""

    def reaped(self, pid: int, status: int, cpu_ms: int) -> None:
        """A child of the supervisor has ended."""
        if self._criu is not None and pid == self._criu.pid:
            self._criu.status = status
            self.lost = "criu was killed while it held the worker, and the worker was ended with it"
        if pid == self.root:
            self.root_status, self.ended_cpu_ms = status, cpu_ms
            # The kernel lets a cell's first process go last, so that its death shows here first.
            if not (self.cell.ending or self.cell.is_alive()):
                self.lost = "the first process of its cell was killed, and the cell with it"

    def members(self) -> list[int]:
        """Live processes of the worker, as its cell numbers them."""
        return self.cell.living()

    def processes(self) -> list[int]:
        """All processes of the worker, as the machine numbers them."""
        return process_tree.tree(self.root)

    def ask_to_end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.root, signal.SIGTERM)

    def destroy(self) -> None:
        self.cell.destroy()

    def leave(self) -> None:
        """All its processes have ended: take away what the kernel does not."""
        self.freezer.remove()
        if self.cell.gang is not None:
            self.cell.gang.leave()

    @linux.ahead_of_others()
    def dump(
        self,
        target: str,
        memory: str | None,
        cpu_before_ms: int,
        leave_running: bool,
        at_once: bool,
        limit_s: float,
    ) -> None:
        """Dump into `target`; the worker then stands still until `let_go`.

        memory: a folder in memory for the files, if they are to lie there.
        at_once: make the image durable while the worker stands still, not at `let_go`. limit_s: a
        dump that takes longer is broken off. The worker runs on when this raises, unless it is
        CriuKilled, DeviceStateUnknown or TimedOut: then its state cannot be trusted. Raises
        Conflict when the cell holds processes outside the tree.
        """
        if strangers := self.cell.strangers():
            raise Conflict(
                f"the worker cannot be saved: {len(strangers)} of its processes left its tree",
                why=f"pids {strangers[:8]} in its cell do not descend from its root process",
                hint="end them, or do not detach them",
            )
        began = time.monotonic()
        frozen = self.freezer.frozen
        try:
            partial = image.begin(target, memory)
            self._stopped = frozen and not self.freezer.group
            if self._stopped:  # criu would bring it back as stopped as it is
                self.freezer.thaw(self.processes)
            self._took_off = self.devices.taken is None  # else it is off them for longer
            try:
                self.devices.take_off(ran=not frozen)
                resident = process_tree.memory_bytes(self.processes())
                self._criu = criu_commands.begin_dump(
                    self.cell,
                    self._order["criu"],
                    self._folder,
                    partial,
                    leave_running,
                    self.freezer.group if frozen else "",
                )
                self._intake = Intake(partial, durable=memory is None)
                self._criu.wait_asked(self._intake.step, limit_s)
                self._collect(target, cpu_before_ms, resident)
                if at_once:
                    self._commit(target)
            except (OnefleetError, OSError) as error:
                self._call_off(error, target)
                raise
        except OSError as error:
            raise _disk_error(error, target) from error
        self._target, self._leaves, self.dumped_at = target, leave_running, began

    def _commit(self, target: str) -> None:
        assert self._intake is not None
        self.manifest = image.commit(target, self.manifest, self._intake)
        self._intake.close()

    def _call_off(self, error: Exception, target: str) -> None:
        """Nothing comes of this dump. Raises CriuKilled, DeviceStateUnknown, TimedOut."""
        try:
            if self._criu is not None and self._criu.asked:
                self._refuse()
        finally:
            self._criu = None
            if self._intake is not None:
                self._intake.close()
            image.discard(target)
            image.discard_partial(target)
        if not isinstance(error, criu_commands.CriuKilled | DeviceStateUnknown | TimedOut):
            self._stop_again()
            if self._took_off:
                self.devices.put_back()

    def _stop_again(self) -> None:
        """A worker that was stopped for good, and went on for a moment for criu."""
        if self._stopped:
            self.freezer.freeze(self.processes)

    def _collect(self, target: str, cpu_ms: int, resident: int) -> None:
        partial = image.raw(target + image.PARTIAL)
        facts = self._facts(cpu_ms)
        facts["memory_bytes"] = resident
        facts["work"] = self._files.pack(partial)
        pstree.keep_daemons(f"{partial}/pstree.img")
        _pack(self.cell.shm, f"{partial}/{_SHM}")
        self.manifest = facts

    def _refuse(self) -> None:
        """Have criu let the worker run on. Raises CriuKilled, TimedOut."""
        assert self._criu is not None
        self._criu.answer(yes=False)
        try:
            self._criu.finish()
        except (criu_commands.CriuKilled, TimedOut):
            raise
        except OnefleetError:
            pass  # its complaint about our answer

    @linux.ahead_of_others()
    def let_go(self, give_up: bool) -> dict[str, Any]:
        """End a hold; returns the manifest.

        give_up: end the worker and free everything (leave_running: let it run on). Else it runs
        on, and the image stays for the caller to keep or discard. An image that is not durable yet
        is made so; when that fails it is gone, and the error is raised, but the worker runs.
        Raises CriuKilled, DeviceStateUnknown, TimedOut when the worker's state cannot be trusted.
        """
        assert self._criu is not None
        lost: DeviceStateUnknown | None = None
        try:
            if not give_up and not self._leaves:
                self._refuse()
            else:
                self._criu.answer(yes=True)
                self._finish_dump()
        finally:
            self._criu = None
        if give_up and not self._leaves:
            self._end_cell()
            self._files.belong_to(self.manifest["id"])
        else:
            self._stop_again()
            try:
                if self._took_off:
                    self.devices.put_back()
            except DeviceStateUnknown as error:
                lost = error
        frozen_ms = int((time.monotonic() - self.dumped_at) * 1000)
        if "files" not in self.manifest:
            try:
                self._commit(self._target)
            except OSError as error:
                image.discard_partial(self._target)
                raise _disk_error(error, self._target) from error
        if lost is not None:
            raise lost
        return {**self.manifest, "frozen_ms": frozen_ms}

    def _finish_dump(self) -> None:
        assert self._criu is not None
        try:
            self._criu.finish()
        except criu_commands.CriuKilled:
            if self._leaves:
                raise
            # The image was whole before criu was killed: it counts, the processes do not.

    def _end_cell(self) -> None:
        """criu has killed the tree; end the cell with it and see that no memory is held."""
        self.destroy()
        for pid in (self.root, self.cell.init):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _facts(self, cpu_before_ms: int) -> dict[str, Any]:
        """What the manifest says besides the files; taken while the processes stand still."""
        members = self.processes()
        programs = process_tree.programs(members)
        proc = f"/proc/{self.cell.init}/root/proc"
        pids = [int(t) for p in self.cell.pids() for t in _listed(f"{proc}/{p}/task")]
        uname = os.uname()
        place = _place(self._order)
        return {
            "kind": "criu",
            "id": uuid.uuid4().hex,
            "made_at_ms": time.time_ns() // 1_000_000,
            "criu": self._order["criu_version"],
            "kernel": uname.release,
            "machine": uname.machine,
            "command": self._order["command"],
            "network": self._order["network"],
            "gang": None if place is None else [place.rank, place.workers],
            "uid": os.getuid(),
            "gid": os.getgid(),
            "clocks": clocks.of_process(self.root),
            "pids": sorted(pids),
            "writable": process_tree.writable_files(members),
            "programs": programs,
            "environment": hashlib.sha256(repr(programs).encode()).hexdigest(),
            "cpu_ms": cpu_before_ms + process_tree.cpu_ms(members),
            "devices": self.devices.taken,
        }

    def _restore(self, source: str, manifest: dict[str, Any], pages: image.Verdict) -> None:
        _check_machine(source, manifest, self._order["criu_version"])
        first = _free_pids(manifest["pids"])
        order = self._order
        place = _place(order)
        _check_place(source, manifest, place)
        # Images of earlier versions were root's, and had no clocks.
        ids = int(manifest.get("uid", 0)), int(manifest.get("gid", 0))
        who = Identity(*ids, manifest.get("clocks", {}))
        network = manifest["network"]
        self.cell = Cell(self._folder, order["work"], network, first - 1, who, place)
        self.devices = _devices(self.cell, order)
        self._saved_devices = manifest.get("devices")
        try:
            root = f"/proc/{self.cell.init}/root"
            _check_environment(source, manifest, root)
            _unpack(f"{source}/{_SHM}", self.cell.shm)
            self._rewind_files(source, manifest, root)
            if order["cpus"]:
                # Inherited by what criu restores; a job that had bound itself is bound anew below.
                os.sched_setaffinity(0, order["cpus"])
            self._criu = criu_commands.begin_restore(
                self.cell, order["criu"], self._folder, source, self.freezer.enter
            )
            self._criu.wait_asked()
            apart = (self.cell.init, self._criu.pid, pages.pid)
            born = [p for p in process_tree.children(os.getpid()) if p not in apart]
            self.root = born[-1] if born else 0
            if not self.root:
                raise UpstreamFailed("the restored worker has no process", why="criu left none")
            if order["cpus"]:
                process_tree.pin(self.processes(), order["cpus"])
            pages.wait()
            # Only now are its sockets there.
            self.cell.plug()
        except (OnefleetError, OSError):
            self.destroy()
            raise

    @linux.ahead_of_others()
    def resume(self) -> None:
        """Let a restored worker run. Raises OnefleetError when it cannot."""
        assert self._criu is not None
        try:
            self._criu.answer(yes=True)
            self._criu.finish()
            # Its processes run, and wait for their devices.
            self.devices.bring(self._saved_devices)
        except OnefleetError:
            self.destroy()
            raise
        finally:
            self._criu = None

    def stand_still(self) -> None:
        """Leave the devices to others, and freeze. Raises OnefleetError, and then it runs on,
        unless it is DeviceStateUnknown."""
        was_on = self.devices.taken is None
        self.devices.take_off(ran=not self.freezer.frozen)
        try:
            self.freezer.freeze(self.processes)
        except (OnefleetError, OSError):
            if was_on:
                self.devices.put_back()
            raise

    def go_on(self, gpus: Sequence[str]) -> None:
        """End `stand_still`, on these devices, or its own where none are named; one that takes
        turns stays off them. Raises OnefleetError when it cannot be put on them, and then it stands
        still as before, DeviceStateUnknown."""
        try:
            self.devices.thaw(gpus, lambda: self.freezer.thaw(self.processes))
        except NoRoom:
            self.freezer.freeze(self.processes)
            raise

    def undo(self) -> None:
        """End a restored worker that has not been resumed: nothing has happened."""
        self.destroy()
        self._files.belong_to(image.read(self._order["image"])["id"])

    def _rewind_files(self, source: str, manifest: dict[str, Any], root: str) -> None:
        """See `work_files`. Images of earlier versions have no files."""
        facts = manifest.get("work")
        foreign = facts is not None and self._files.is_foreign(facts)
        changed = facts is None or self._files.bring_back(source, manifest["id"], facts)
        if changed and not foreign:
            # Those that are elsewhere than in its folders, or did not go along.
            cut(manifest["writable"], root)
        self._files.arrive()


def place(worker: object, state: str, gpus: list[str], on: bool) -> None:
    """Put a supervisor's worker on these GPUs, or take it off its own, to be put on these if some
    are named. state: its own. Raises OnefleetError, and it is where it was, unless it is
    DeviceStateUnknown.
    """
    what = f"the worker cannot be {'put on' if on else 'taken off'} its GPUs"
    if not isinstance(worker, CellWorker):
        raise Unsupported(what, why="nobody saves its state on them but itself")
    if state != "running" and (on or state != "frozen"):
        raise Conflict(what, why=f"it is {state}")
    if on:
        worker.devices.put_on(gpus)
    else:
        worker.devices.leave(gpus, ran=not worker.freezer.frozen)


def _devices(cell: Cell, order: dict[str, Any]) -> HeldDevices:
    rules = _GANG_LOCKS if order.get("gang") else LockRules()
    turns = bool(order.get("takes_turns"))  # an older agent does not say
    return HeldDevices(cell, order.get("gpus", []), order.get("device_calls", []), rules, turns)


def _disk_error(error: OSError, target: str) -> OnefleetError:
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return StorageFull(
            f"the save failed: no space left on the disk of {target}",
            why=str(error),
            hint="free some space; the worker was not harmed",
        )
    return UpstreamFailed(f"image {target} could not be written", why=str(error))


def _check_machine(source: str, manifest: dict[str, Any], version: str) -> None:
    machine = os.uname().machine
    if manifest["machine"] != machine:
        raise UpstreamFailed(
            f"image {source} cannot be restored here",
            why=f"it was made on {manifest['machine']}, this machine is {machine}",
            hint="restore it on a machine of its own kind",
        )
    if _numbers(manifest["criu"]) > _numbers(version):
        raise UpstreamFailed(
            f"image {source} cannot be restored here",
            why=f"it was made by criu {manifest['criu']}, here is the older {version}",
            hint="bring criu up to date",
        )


def _check_place(source: str, manifest: dict[str, Any], place: GangPlace | None) -> None:
    """An image's connections name addresses, and these follow from the place in the gang."""
    was = manifest.get("gang")
    now = None if place is None else [place.rank, place.workers]
    if was != now:
        told = ["no gang" if p is None else f"rank {p[0]} of {p[1]}" for p in (was, now)]
        raise Conflict(
            f"image {source} cannot be restored at this place",
            why=f"it is of {told[0]}, and is to become {told[1]}",
            hint="restore it at its own place",
        )


def _place(order: dict[str, Any]) -> GangPlace | None:
    told = order.get("gang")  # an older agent does not say
    return None if told is None else GangPlace(**{**told, "nodes": tuple(told["nodes"])})


def _check_environment(source: str, manifest: dict[str, Any], root: str) -> None:
    for path, size in manifest["programs"].items():
        try:
            now = os.stat(root + path).st_size
        except OSError:
            now = -1
        if now != size:
            has = "is missing" if now < 0 else f"has {now} bytes instead of {size}"
            raise UpstreamFailed(
                f"image {source} cannot be restored here",
                why=f"the program or library {path} {has}",
                hint="restore the software that the job was started with",
            )


def _free_pids(taken: list[int]) -> int:
    """Where criu's own process ids may start without meeting the worker's old ones."""
    first = criu_commands.CRIU_PIDS
    for first in (criu_commands.CRIU_PIDS, _LOW_PIDS):
        for pid in sorted(taken):
            if first <= pid < first + criu_commands.CRIU_SPAN:
                first = pid + 1
        if first + criu_commands.CRIU_SPAN < _PID_LIMIT:
            break
    return first


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _listed(path: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return os.listdir(path)
    return []


def _pack(folder: str, archive: str) -> None:
    """Archive the regular files of the cell's shared memory."""
    import tarfile  # here: the supervisor starts without it

    with tarfile.open(archive, "w") as tar:
        for name in sorted(os.listdir(folder)):
            tar.add(f"{folder}/{name}", name)


def _unpack(archive: str, folder: str) -> None:
    if not os.path.exists(archive):
        return
    import tarfile

    with tarfile.open(archive) as tar:
        # As an attribute: Python before 3.11.4 has no argument for it. Our own, digests checked.
        tar.extraction_filter = lambda member, _: member
        tar.extractall(folder)  # noqa: S202
