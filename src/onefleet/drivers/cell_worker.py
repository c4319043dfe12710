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
from typing import Any

from onefleet.domain.errors import Conflict, OnefleetError, StorageFull, UpstreamFailed
from onefleet.drivers import clocks, criu_commands, image, process_tree, pstree
from onefleet.drivers.cell import JOB, OWN, ROOT_PID, Cell
from onefleet.drivers.launch import become_command, launch_error
from onefleet.drivers.rights import Identity
from onefleet.drivers.supervisor_files import RESTORED, read_json, write_json

_SHM = "shm.tar"
#: The least that a kernel's limit of process ids may be, and where to look when it is reached.
_PID_LIMIT = 32_768
_LOW_PIDS = 300


class CellWorker:
    """The processes of one worker in its cell; same shape as `keeper.Keeper`."""

    descriptor = -1  # all news comes as the end of children

    def __init__(self, order: dict[str, Any], folder: str, restoring: bool) -> None:
        self.root_status: int | None = None
        self.ended_cpu_ms = 0
        self.lost = ""
        self.root = 0
        self._order = order
        self._folder = folder
        criu_commands.write_hook(folder)
        if restoring:
            with image.opened(order["image"], order.get("chunks")) as manifest:
                self._restore(order["image"], manifest)
        else:
            self._start()

    def _start(self) -> None:
        order = self._order
        me = Identity(os.getuid(), os.getgid(), {})
        self.cell = Cell(self._folder, order["work"], order["network"], ROOT_PID - 1, me)
        report, failed = os.pipe()
        self.root = self.cell.run(lambda: become_command(order, OWN, JOB, self.cell.rights, failed))
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
        if pid == self.root:
            self.root_status, self.ended_cpu_ms = status, cpu_ms
            # The kernel lets a cell's first process go last, so that its death shows here first.
            if not (self.cell.ending or self.cell.is_alive()):
                self.lost = "the first process of its cell was killed, and the cell with it"

    def members(self) -> list[int]:
        """Live processes of the worker, as its cell numbers them."""
        return self.cell.living()

    def ask_to_end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.root, signal.SIGTERM)

    def destroy(self) -> None:
        self.cell.destroy()

    def save(self, target: str, cpu_before_ms: int) -> dict[str, Any]:
        """Dump into `target` and free everything; returns the manifest.

        The worker runs on when this raises, unless it is CriuKilled or TimedOut: then its state
        cannot be trusted. Raises Conflict when the cell holds processes outside the tree.
        """
        if strangers := self.cell.strangers():
            raise Conflict(
                f"the worker cannot be saved: {len(strangers)} of its processes left its tree",
                why=f"pids {strangers[:8]} in its cell do not descend from its root process",
                hint="end them, or do not detach them",
            )
        began = time.monotonic()
        resident = process_tree.memory_bytes(process_tree.tree(self.root))
        manifest: dict[str, Any] = {}

        def make_durable() -> None:
            facts = self._facts(cpu_before_ms)
            facts["memory_bytes"] = resident
            pstree.keep_daemons(f"{target}{image.PARTIAL}/pstree.img")
            _pack(self.cell.shm, f"{target}{image.PARTIAL}/{_SHM}")
            manifest.update(image.commit(target, facts))

        try:
            partial = image.begin(target)
            try:
                criu_commands.dump(
                    self.cell, self._order["criu"], self._folder, partial, make_durable
                )
            except criu_commands.CriuKilled:
                if not manifest:
                    raise
                # The image was whole before criu was killed: it counts, the processes do not.
            except (OnefleetError, OSError):
                image.discard(target)
                raise
        except OSError as error:
            raise _disk_error(error, target) from error
        finally:
            image.discard_partial(target)
        self._end_cell()
        manifest["frozen_ms"] = int((time.monotonic() - began) * 1000)
        return manifest

    def _end_cell(self) -> None:
        """criu has killed the tree; end the cell with it and see that no memory is held."""
        self.destroy()
        for pid in (self.root, self.cell.init):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _facts(self, cpu_before_ms: int) -> dict[str, Any]:
        """What the manifest says besides the files; taken while the processes stand still."""
        members = process_tree.tree(self.root)
        programs = process_tree.programs(members)
        proc = f"/proc/{self.cell.init}/root/proc"
        pids = [int(t) for p in self.cell.pids() for t in _listed(f"{proc}/{p}/task")]
        uname = os.uname()
        return {
            "kind": "criu",
            "id": uuid.uuid4().hex,
            "made_at_ms": time.time_ns() // 1_000_000,
            "criu": self._order["criu_version"],
            "kernel": uname.release,
            "machine": uname.machine,
            "command": self._order["command"],
            "network": self._order["network"],
            "uid": os.getuid(),
            "gid": os.getgid(),
            "clocks": clocks.of_process(self.root),
            "pids": sorted(pids),
            "writable": process_tree.writable_files(members),
            "programs": programs,
            "environment": hashlib.sha256(repr(programs).encode()).hexdigest(),
            "cpu_ms": cpu_before_ms + process_tree.cpu_ms(members),
        }

    def _restore(self, source: str, manifest: dict[str, Any]) -> None:
        _check_machine(source, manifest, self._order["criu_version"])
        first = _free_pids(manifest["pids"])
        order = self._order
        # Images of earlier versions were root's, and had no clocks.
        ids = int(manifest.get("uid", 0)), int(manifest.get("gid", 0))
        who = Identity(*ids, manifest.get("clocks", {}))
        self.cell = Cell(self._folder, order["work"], manifest["network"], first - 1, who)
        try:
            _check_environment(source, manifest, f"/proc/{self.cell.init}/root")
            _unpack(f"{source}/{_SHM}", self.cell.shm)
            self._rewind_files(manifest)
            if order["cpus"]:
                # Inherited by what criu restores; a job that had bound itself is bound anew below.
                os.sched_setaffinity(0, order["cpus"])
            criu_commands.restore(self.cell, order["criu"], source)
            born = [p for p in process_tree.children(os.getpid()) if p != self.cell.init]
            self.root = born[-1] if born else 0
            if not self.root:
                raise UpstreamFailed("the restored worker has no process", why="criu left none")
            if order["cpus"]:
                process_tree.pin(process_tree.tree(self.root), order["cpus"])
        except (OnefleetError, OSError):
            self.destroy()
            raise

    def _rewind_files(self, manifest: dict[str, Any]) -> None:
        """Cut off what an earlier restore of the same image has written to growing files.

        Without that a log would hold lines of a future that no longer comes. On the first restore
        nothing is cut: whatever was added meanwhile was added by somebody else.
        """
        path = f"{self._folder}/{RESTORED}"
        before: list[str] = read_json(path).get("images", [])
        if manifest["id"] in before:
            for name, size, _, grows in manifest["writable"]:
                inside = f"/proc/{self.cell.init}/root{name}"
                with contextlib.suppress(FileNotFoundError):
                    if grows and os.stat(inside).st_size > size:
                        os.truncate(inside, size)
        else:
            write_json(path, {"images": [*before, manifest["id"]]})


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
