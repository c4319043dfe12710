"""What lies in a worker's folder. The supervisor writes it, the agent's drivers read it.

worker.json      the order: what to start or restore, and how (written by the driver)
state.json       what is true now; replaced as a whole, never half written
supervisor.lock  locked for as long as the supervisor lives, so that its death shows at once
supervisor.sock  its commands, one JSON line each way
supervisor.log   what it has to say when it fails
stdout, stderr   of the command; append only, they survive a save
place.json       names this folder, and the image that its files belong to, if any
hosts            the names of its gang's ranks
checkpoint/      where a program that saves itself keeps its state
hook             what criu calls while the processes stand still, and its two pipes
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from typing import Any

ORDER = "worker.json"
STATE = "state.json"
LOCK = "supervisor.lock"
SOCKET = "supervisor.sock"
LOG = "supervisor.log"
STDOUT = "stdout"
STDERR = "stderr"
PLACE = "place.json"
CHECKPOINT = "checkpoint"
HOOK = "hook"
HOOK_ASKS = "hook.asks"
HOOK_HEARS = "hook.hears"

#: The longest line of a command or its answer.
LINE_LIMIT = 64 * 1024
_LOCK_POLL_S = 0.005


def read_json(path: str) -> dict[str, Any]:
    """The object in a file; empty when the file does not exist. ValueError when it is torn."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except FileNotFoundError:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold an object")
    return value


def write_json(path: str, value: dict[str, Any]) -> None:
    """Replace the file as a whole and make it durable. Raises OSError."""
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(value, file, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        os.unlink(temporary)  # on a full disk its bytes are wanted elsewhere
        raise
    os.replace(temporary, path)
    sync_folder(os.path.dirname(path) or ".")


def overwrite_json(path: str, value: dict[str, Any]) -> None:
    """Write the file in place, for a disk with no room for a second copy. Never raises.

    Short values fit into the block that the file already has.
    """
    with contextlib.suppress(OSError), open(path, "r+b") as file:
        file.write(json.dumps(value, separators=(",", ":")).encode())
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: str) -> None:
    """Make renames and new names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tail(path: str, size: int) -> str:
    """The last `size` bytes of a file as text; empty when it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - size, 0))
            return file.read(size).decode(errors="replace")
    except OSError:
        return ""


def newest_change_ns(folder: str) -> int:
    """When a file in the folder, at any depth, was last written, renamed or made; 0 for none.

    By ctime: unlike mtime, no program sets it.
    """
    newest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                newest = max(newest, os.lstat(f"{parent}/{name}").st_ctime_ns)
    return newest


def take_lock(path: str, limit_s: float) -> int | None:
    """Lock the file for the life of this process; None when another holds it for `limit_s`.

    A record lock: it is not inherited over fork, so a surviving child never stands for a dead
    supervisor.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + limit_s
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(_LOCK_POLL_S)
        else:
            return descriptor


def is_locked(path: str) -> bool:
    """Whether a living process holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    finally:
        os.close(descriptor)
    return False
