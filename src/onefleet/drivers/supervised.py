"""The agent's side of a supervisor: what both real drivers share.

Everything about a worker is in its folder, so a driver keeps nothing in memory: a restarted agent
sees the same. An operation that is called again while it runs, or after it is done, finds that out
from the state file and does no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onefleet.domain import errors
from onefleet.drivers import image as images
from onefleet.drivers import process_tree
from onefleet.drivers import supervisor_files as files
from onefleet.drivers.base import SavedImage, WorkerSpec, WorkerState, WorkerStatus
from onefleet.drivers.spare import Spare, start

#: How long a supervisor may take to answer: a start or restore of the largest image, a save.
_ANSWER_LIMIT_S = 900.0
_STOP_MARGIN_S = 60.0
_POLL_S = 0.02


class SupervisedDriver:
    """Starts a supervisor a worker and speaks to it. `name` and what goes into the order differ."""

    name = ""

    def __init__(self) -> None:
        self._spare: Spare | None = None

    def keep_ready(self, on: bool) -> None:
        """See Driver.keep_ready."""
        if on:
            self._spare = self._spare or Spare()
            self._spare.refill()
        elif self._spare is not None:
            self._spare.close()
            self._spare = None

    def _order(self) -> dict[str, Any]:
        """What this driver's supervisor needs to know besides the spec."""
        return {}

    async def start(self, spec: WorkerSpec) -> None:
        """See Driver.start."""
        if (await _state_of(spec.folder)) in _ALIVE:
            return
        await self._launch(spec, "start", None)

    async def restore(self, spec: WorkerSpec, image: Path, *, hold: bool = False) -> None:
        """See Driver.restore."""
        if (await _state_of(spec.folder)) in _ALIVE:
            return
        try:
            await self._launch(spec, "restore", image, hold)
        except errors.UpstreamFailed:
            # It may have lost raw files that had decayed: then its chunks are to be tried.
            if not await asyncio.to_thread(images.is_only_folded, str(image)):
                raise
            await self._launch(spec, "restore", image, hold)

    async def save(
        self,
        folder: Path,
        image: Path,
        *,
        hold: bool = False,
        leave_running: bool = False,
        memory: Path | None = None,
        limit_ms: int = 0,
    ) -> SavedImage:
        """See Driver.save."""
        self._require(folder)
        target = _absolute(image)
        command = {
            "op": "save",
            "image": target,
            "hold": hold,
            "leave_running": leave_running,
            "memory": None if memory is None else _absolute(memory),
            "limit_ms": limit_ms,
        }
        state = await self._command(folder, command, _ANSWER_LIMIT_S)
        held = (state.get("hold") or {}).get("image")
        saved = {
            WorkerState.SAVED: state.get("image"),
            WorkerState.SAVE_HELD: held,
        }.get(state.get("state", ""), state.get("checkpoint"))
        if saved != target:
            raise errors.Conflict(
                f"the worker in {folder} was not saved",
                why=f"it is {state.get('state')}: {state.get('reason') or 'it does not run'}",
                hint="start it, or restore it, first",
            )
        manifest = await asyncio.to_thread(images.read, str(image))
        return SavedImage(
            folder=image,
            size_bytes=images.total_bytes(manifest),
            frozen_ms=int(state.get("frozen_ms", 0)),
            files=tuple((path, size) for path, size, *_ in manifest["writable"]),
            lost_ms=int(manifest.get("lost_ms", 0)),
        )

    async def finish(self, folder: Path, commit: bool) -> None:
        """See Driver.finish."""
        self._require(folder)
        state = await self._command(folder, {"op": "finish", "commit": commit}, _ANSWER_LIMIT_S)
        hold = state.get("hold")
        if hold is None:
            why = f"it is {state.get('state')}"
            raise errors.Conflict(f"the worker in {folder} is not held", why=why)
        if hold["answer"] is None:
            await asyncio.to_thread(_finish_ended, folder, state, commit)
        elif hold["answer"] is not commit:
            raise errors.Conflict(f"the worker in {folder} was told otherwise before")

    async def freeze(self, folder: Path) -> None:
        """See Driver.freeze."""
        await self._tell(folder, {"op": "freeze"})

    async def thaw(self, folder: Path, gpus: Sequence[str] = ()) -> None:
        """See Driver.thaw."""
        await self._tell(folder, {"op": "thaw", "gpus": list(gpus)})

    async def pause(self, folder: Path, limit_ms: int) -> None:
        """See Driver.pause. It is short work, done often: the state file is not looked at."""
        self._require(folder)
        answer = await self._ask(folder, {"op": "pause", "limit_ms": limit_ms}, _ANSWER_LIMIT_S)
        if answer is None:
            raise errors.Conflict(f"the worker in {folder} has no processes")
        if not answer["ok"]:
            raise _raised(answer["error"])

    async def off(self, folder: Path, towards: Sequence[str] = ()) -> None:
        """See Driver.off."""
        await self._tell(folder, {"op": "off", "gpus": list(towards)})

    async def on(self, folder: Path, gpus: Sequence[str] = ()) -> None:
        """See Driver.on."""
        await self._tell(folder, {"op": "on", "gpus": list(gpus)})

    async def is_off(self, folder: Path) -> bool:
        """See Driver.is_off. Its supervisor says so when it has done what it was told before."""
        self._require(folder)
        answer = await self._ask(folder, {"op": "where"}, _ANSWER_LIMIT_S)
        if answer is None:
            raise errors.Conflict(f"the worker in {folder} has no processes")
        if not answer["ok"]:
            raise _raised(answer["error"])
        return bool(answer["off"])

    async def pin(self, folder: Path, cpus: Sequence[int]) -> None:
        """See Driver.pin."""
        await self._tell(folder, {"op": "pin", "cpus": list(cpus)})

    async def connect(self, folder: Path, node: str, nodes: Sequence[str]) -> None:
        """See Driver.connect."""
        await self._tell(folder, {"op": "connect", "node": node, "nodes": list(nodes)})

    async def _tell(self, folder: Path, command: Mapping[str, Any]) -> None:
        """Have a living worker's supervisor obey. Raises Conflict for one that does not live."""
        self._require(folder)
        state = await self._command(folder, command, _ANSWER_LIMIT_S)
        if state.get("state") not in _ALIVE:
            why = f"it is {state.get('state')}"
            raise errors.Conflict(f"the worker in {folder} has no processes", why=why)

    async def stop(self, folder: Path, grace_ms: int) -> None:
        """See Driver.stop. A worker that does not run, or is saved, stays as it is."""
        self._require(folder)
        limit_s = grace_ms / 1000 + _STOP_MARGIN_S
        await self._command(folder, {"op": "stop", "grace_ms": grace_ms}, limit_s)

    async def status(self, folder: Path) -> WorkerStatus:
        """See Driver.status."""
        self._require(folder)
        return await asyncio.to_thread(_status, folder)

    async def adopt(self, root: Path) -> Sequence[Path]:
        """See Driver.adopt."""
        return await asyncio.to_thread(_workers, root, self.name)

    async def _launch(
        self, spec: WorkerSpec, action: str, image: Path | None, hold: bool = False
    ) -> None:
        if not spec.command:
            raise errors.InvalidRequest("the command is empty", hint="give a program to run")
        order = self._common_order(spec, action, image) | self._order() | {"hold": hold}
        folder = Path(order["folder"])
        try:
            await asyncio.to_thread(_prepare, folder, order)
        except OSError as error:
            raise _storage_error(folder, error) from error
        process = start(str(folder)) if self._spare is None else self._spare.take()
        line = None if self._spare is None else json.dumps(str(folder)).encode() + b"\n"
        telling = asyncio.to_thread(process.communicate, line, _ANSWER_LIMIT_S)
        try:
            said, complaint = await telling
        except subprocess.TimeoutExpired as error:
            raise errors.TimedOut(
                f"the supervisor of {folder} did not answer within {_ANSWER_LIMIT_S:.0f} s"
            ) from error
        finally:
            process.kill()
            if self._spare is not None:
                self._spare.refill()
        if not said:
            why = complaint.decode(errors="replace").strip().rpartition("\n")[2]
            raise errors.InternalError(
                f"the supervisor of {folder} died as it started", why=why, hint=f"see {folder}"
            )
        answer = json.loads(said)
        if not answer["ok"]:
            raise _raised(answer["error"])

    def _common_order(self, spec: WorkerSpec, action: str, image: Path | None) -> dict[str, Any]:
        return {
            "driver": self.name,
            "folder": str(spec.folder.absolute()),
            "action": action,
            "image": None if image is None else str(image.absolute()),
            "command": list(spec.command),
            "work": str(spec.work.absolute()),
            "environment": _environment(spec),
            "cpus": list(spec.cpus),
            "gpus": list(spec.gpus),
            "takes_turns": spec.takes_turns,
            "network": spec.network,
            "gang": None if spec.gang is None else asdict(spec.gang),
            "grace_ms": spec.grace_ms,
            "hold_ms": spec.hold_ms,
            "ends_with": spec.ends_with,
            "chunks": None if spec.chunks is None else str(spec.chunks.absolute()),
            "lease": None if spec.lease is None else str(spec.lease.absolute()),
            "origin": None if spec.origin is None else str(spec.origin.absolute()),
        }

    async def _command(
        self, folder: Path, command: Mapping[str, Any], limit_s: float
    ) -> dict[str, Any]:
        """Have the supervisor obey; the worker's state after. Raises what the supervisor says.

        A supervisor that ends at this very moment gives no answer: it is asked again until it
        answers, or is seen to be gone.
        """
        deadline = asyncio.get_running_loop().time() + limit_s
        while True:
            answer = await self._ask(folder, command, limit_s)
            if answer is not None and not answer["ok"]:
                raise _raised(answer["error"])
            state = await self._settled(folder)
            done = answer is not None or state.get("state") not in _ALIVE
            if done or asyncio.get_running_loop().time() > deadline:
                return state
            await asyncio.sleep(_POLL_S)

    async def _ask(
        self, folder: Path, command: Mapping[str, Any], limit_s: float
    ) -> dict[str, Any] | None:
        """The supervisor's answer; None when there is none, or it ended before it answered."""
        here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Through /proc: a socket's path may have 107 bytes, a folder's has no such limit.
            path = f"/proc/self/fd/{here}/{files.SOCKET}"
            async with asyncio.timeout(limit_s):
                reader, writer = await asyncio.open_unix_connection(path, limit=files.LINE_LIMIT)
                try:
                    writer.write(json.dumps(command).encode() + b"\n")
                    line = await reader.readline()
                finally:
                    writer.close()
        except TimeoutError as error:
            raise errors.TimedOut(
                f"the supervisor of {folder} did not answer within {limit_s:.0f} s",
                hint="ask for its status",
            ) from error
        except (FileNotFoundError, ConnectionError):
            return None
        finally:
            os.close(here)
        answer: dict[str, Any] | None = json.loads(line) if line else None
        return answer

    async def _settled(self, folder: Path) -> dict[str, Any]:
        """The state file, once no operation is under way. Raises TimeoutError."""
        async with asyncio.timeout(_ANSWER_LIMIT_S):
            while True:
                state = await asyncio.to_thread(_read_state, folder)
                if state.get("state") not in _MOVING:
                    return state
                await asyncio.sleep(_POLL_S)

    def _require(self, folder: Path) -> None:
        if not (folder / files.ORDER).exists():
            raise errors.NotFound(f"there is no worker in {folder}", hint="start one there")


async def _state_of(folder: Path) -> WorkerState | None:
    if not (folder / files.ORDER).exists():
        return None
    status = await asyncio.to_thread(_status, folder)
    return status.state


_ALIVE = tuple(s for s in WorkerState if s not in (WorkerState.SAVED, WorkerState.ENDED))
_MOVING = (
    WorkerState.STARTING,
    WorkerState.SAVING,
    WorkerState.RESTORING,
    WorkerState.STOPPING,
)


def _finish_ended(folder: Path, state: dict[str, Any], commit: bool) -> None:
    """Answer a hold whose supervisor is gone. Raises Conflict when the answer cannot be kept.

    Of a save, the image is whole, so it can count; of a restore, nothing has happened.
    """
    hold = state["hold"]
    saved = state["state"] == WorkerState.SAVED
    if hold["restores"] and saved and not commit:
        return
    if not hold["restores"] and commit and (saved or _is_whole(hold["image"])):
        if not (saved or hold["leaves"]):
            facts = {"image": hold["image"], **_image_facts(hold["image"])}
            saved_now = {"state": WorkerState.SAVED, "pid": None, "exit_code": None, "reason": ""}
            changed = {**state, **saved_now, **facts, "hold": {**hold, "answer": True}}
            files.write_json(str(folder / files.STATE), changed)
        return
    raise errors.Conflict(
        f"the worker in {folder} cannot do as it is told",
        why=f"it is {state['state']}: {state.get('reason')}",
        hint="restore it from its last image",
    )


def _absolute(path: Path) -> str:
    """The supervisor has another current directory."""
    return str(path.absolute())


def _prepare(folder: Path, order: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / files.CHECKPOINT).mkdir(exist_ok=True)
    files.write_json(str(folder / files.ORDER), order)


def _environment(spec: WorkerSpec) -> dict[str, str]:
    checkpoint = str(spec.folder.absolute() / files.CHECKPOINT)
    return {"PATH": os.defpath, "ONEFLEET_CHECKPOINT_DIR": checkpoint, **dict(spec.environment)}


def _storage_error(folder: Path, error: OSError) -> errors.OnefleetError:
    free = 0
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder.parent).free
    return errors.StorageFull(
        f"worker folder {folder} could not be written ({free} bytes free)",
        why=str(error),
        hint="free some space, or choose another data folder",
    )


def _read_state(folder: Path) -> dict[str, Any]:
    """The state file, corrected when its supervisor is gone. Blocking."""
    path = str(folder / files.STATE)
    try:
        alive = files.is_locked(str(folder / files.LOCK))
        state = files.read_json(path)
    except ValueError:
        return {"state": WorkerState.ENDED, "reason": "its state file cannot be read"}
    if alive or state.get("state") in (WorkerState.ENDED, WorkerState.SAVED):
        return state
    if not state:
        return {"state": WorkerState.ENDED, "reason": "it was never started"}
    lost = f"its supervisor (pid {state.get('supervisor')}) was killed, and it was ended with that"
    target = state.get("image")
    if state.get("pid") and process_tree.born_at(state["pid"]) == state.get("born"):
        return {**state, "state": WorkerState.STOPPING, "reason": lost}  # but not all of it yet
    saving = state["state"] in (WorkerState.SAVING, WorkerState.SAVE_HELD)
    if saving and target and _is_whole(target):
        return {**state, "state": WorkerState.SAVED, "pid": None, **_image_facts(target)}
    if state["state"] in (WorkerState.RESTORING, WorkerState.RESTORE_HELD):
        return {**state, "state": WorkerState.SAVED, "pid": None, "reason": lost}
    return {**state, "state": WorkerState.ENDED, "pid": None, "exit_code": None, "reason": lost}


def _is_whole(image: str) -> bool:
    try:
        images.read(image)
    except errors.OnefleetError:
        return False
    return True


def _image_facts(image: str) -> dict[str, int]:
    manifest = images.read(image)
    return {
        "image_bytes": images.total_bytes(manifest),
        "lost_ms": int(manifest.get("lost_ms", 0)),
    }


def _status(folder: Path) -> WorkerStatus:
    state = _read_state(folder)
    pid = state.get("pid")
    cpu_ms = int(state.get("cpu_ms", 0))
    memory = 0
    if pid is not None:
        members = process_tree.tree(pid)
        memory = process_tree.memory_bytes(members)
        cpu_ms = int(state.get("cpu_before_ms", 0)) + process_tree.cpu_ms(members)
    return WorkerStatus(
        state=WorkerState(state["state"]),
        pid=pid,
        exit_code=state.get("exit_code"),
        reason=str(state.get("reason", "")),
        image_bytes=int(state.get("image_bytes", 0)),
        lost_ms=int(state.get("lost_ms", 0)),
        memory_bytes=memory,
        cpu_ms=cpu_ms,
    )


def _workers(root: Path, name: str) -> list[Path]:
    found: list[Path] = []
    if not root.is_dir():
        return found
    for folder in sorted(root.iterdir()):
        with contextlib.suppress(ValueError, NotADirectoryError):
            if files.read_json(str(folder / files.ORDER)).get("driver") == name:
                found.append(folder)
    return found


def _raised(told: dict[str, str]) -> errors.OnefleetError:
    """The supervisor's error as the class that it was there."""
    kind = getattr(errors, told["kind"], errors.UpstreamFailed)
    error: errors.OnefleetError = kind(told["what"], why=told["why"], hint=told["hint"])
    return error
