"""GPUs that are a process: real programs compute on them, and criu refuses who is connected.

    python fake_gpu.py node FOLDER GPU:MEMORY..   the machine's GPUs; its socket is in FOLDER
    python fake_gpu.py job FOLDER BYTES [FORKS]   a program on the first GPU of CUDA_VISIBLE_DEVICES
    python fake_gpu.py calls FOLDER               a `device_calls` for them

A connection to the node is a CUDA context: memory on one GPU, gone with it, and a thing of the
outside, which criu cannot save. In each process of a job a thread does what the driver's own does:
it locks the process's calls, takes the device's memory into the process, and brings it back.
FAULTS in a job's environment, "checkpoint=not_supported restore=failed,..", lets its calls fail;
STUBBORN gives it a connection that is not on a GPU. A job has a thread that uses no GPU, which
writes what comes into the file `asked` into `answered`; and it forks once more when there is a file
`fork`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NODE = "node.sock"
DRIVER = os.environ.get("FAKE_DRIVER", "590.44")
FACTOR, MASK = 6364136223846793005, (1 << 64) - 1


def chain(last: int) -> list[str]:
    """What an undisturbed job prints."""
    x, lines = 1, []
    for n in range(1, last + 1):
        x = (x * FACTOR + n) & MASK
        lines.append(f"{n} {x}")
    return lines


class Line:
    """JSON lines over a socket: one asks, one answers."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._file = self._socket.makefile("rwb")

    def ask(self, **line: Any) -> dict[str, Any]:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        answer: dict[str, Any] = json.loads(self._file.readline())
        return answer

    def close(self) -> None:
        self._file.close()
        self._socket.close()


# --- the node ------------------------------------------------------------------------------------


class Gpus:
    """Memory of each GPU, who holds how much of it, and who computed since that was asked last."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self.held: dict[int, tuple[str, int]] = {}  # by connection
        self.pids: dict[int, int] = {}
        self.busy: set[int] = set()
        self.lock = threading.Lock()

    def uses(self) -> dict[str, Any]:
        """By GPU, the processes that hold memory, and those that computed."""
        with self.lock:
            busy, self.busy = self.busy, set()
            held = {n: [w for w, (gpu, _) in self.held.items() if gpu == n] for n in self.sizes}
            return {
                name: [[self.pids[w] for w in who], [self.pids[w] for w in who if w in busy]]
                for name, who in held.items()
            }

    def used(self, name: str) -> int:
        return sum(size for gpu, size in self.held.values() if gpu == name)

    def facts(self) -> dict[str, Any]:
        with self.lock:
            gpus = [
                {
                    "name": name,
                    "product": name.partition("-")[0],
                    "free_bytes": size - self.used(name),
                    "used_bytes": self.used(name),
                    "holders": [
                        (self.pids[who], held)
                        for who, (gpu, held) in self.held.items()
                        if gpu == name
                    ],
                }
                for name, size in self.sizes.items()
            ]
        return {"driver": DRIVER, "gpus": gpus}

    def leave(self, who: int) -> None:
        with self.lock:
            self.held.pop(who, None)

    def take(self, who: int, name: str, size: int) -> str:
        with self.lock:
            if name not in self.sizes:
                return "invalid_value"
            if self.sizes[name] - self.used(name) < size:
                return "out_of_memory"
            self.held[who] = (name, size)
            return ""


class Context(socketserver.StreamRequestHandler):
    """One connection: two numbers in a GPU's memory, and the steps that it is asked for."""

    def handle(self) -> None:
        gpus: Gpus = self.server.gpus  # type: ignore[attr-defined]
        told = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        gpus.pids[id(self)] = int.from_bytes(told[:4], sys.byteorder)
        with contextlib.suppress(ConnectionError):
            self._answer(gpus)
        gpus.leave(id(self))

    def _answer(self, gpus: Gpus) -> None:
        n, x = 0, 1
        for text in self.rfile:
            line = json.loads(text)
            answer: dict[str, Any] = {}
            match line["op"]:
                case "node":
                    answer = gpus.facts()
                case "uses":
                    answer = gpus.uses()
                case "open":
                    answer = {"error": gpus.take(id(self), line["gpu"], line["bytes"])}
                case "close":
                    gpus.leave(id(self))
                case "put":
                    n, x = line["n"], line["x"]
                case "step":
                    gpus.busy.add(id(self))
                    n += 1
                    x = (x * FACTOR + n) & MASK
            if line["op"] in ("step", "get"):
                answer = {"n": n, "x": x}
            self.wfile.write(json.dumps(answer).encode() + b"\n")


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def serve_node(folder: str, sizes: Mapping[str, int]) -> None:
    with Server(f"{folder}/{NODE}", Context) as server:
        server.gpus = Gpus(sizes)  # type: ignore[attr-defined]
        print("up", flush=True)
        server.serve_forever()


class Meter:
    """A `GpuMeter` of them. folder: of the node."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def read(self, gpus: Sequence[str]) -> Any:
        from onefleet.agent.gpu_meter import Use

        line = Line(f"{self._folder}/{NODE}")
        with contextlib.closing(line):
            said = line.ask(op="uses")
        return {gpu: Use(*map(frozenset, said[gpu])) for gpu in gpus}

    def holders(self, gpus: Sequence[str]) -> Any:
        with contextlib.closing(Line(f"{self._folder}/{NODE}")) as line:
            found = {gpu["name"]: gpu["holders"] for gpu in line.ask(op="node")["gpus"]}
        return {gpu: frozenset(pid for pid, _ in found[gpu]) for gpu in gpus}


# --- a job ---------------------------------------------------------------------------------------


class Cuda:
    """What a process has on a GPU, and the driver's thread in it."""

    def __init__(self, folder: str, gpu: str, size: int) -> None:
        self._folder = folder
        self._gpu = gpu
        self._size = size
        self._calls = threading.Lock()
        self._state = "running"
        self._kept: dict[str, int] = {}
        faults = [fault.split("=") for fault in os.environ.get("FAULTS", "").split()]
        self._faults = {verb: kinds.split(",") for verb, kinds in faults}
        self._line = self._open(gpu)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(control(os.getpid()))
        listener.listen()
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def step(self) -> tuple[int, int]:
        with self._calls:
            got = self._line.ask(op="step")
        return got["n"], got["x"]

    def _open(self, gpu: str) -> Line:
        line = Line(f"{self._folder}/{NODE}")
        if error := line.ask(op="open", gpu=gpu, bytes=self._size)["error"]:
            line.close()
            raise ValueError(error)
        return line

    def _serve(self, listener: socket.socket) -> None:
        while True:
            client = listener.accept()[0]
            with client, client.makefile("rwb") as file:
                for text in file:
                    line = json.loads(text)
                    try:
                        answer = self._obey(line["verb"], line)
                    except ValueError as error:
                        answer = {"error": str(error)}
                    file.write(json.dumps(answer).encode() + b"\n")
                    file.flush()

    def _obey(self, verb: str, line: dict[str, Any]) -> dict[str, Any]:
        if self._faults.get(verb) and (kind := self._faults[verb].pop(0)):
            if kind == "failed":
                self._state = kind
            raise ValueError("other" if kind == "failed" else kind)
        needed = {"lock": "running", "checkpoint": "locked", "restore": "checkpointed"}
        if verb != "state" and self._state != needed.get(verb, "locked"):
            raise ValueError("illegal_state")
        match verb:
            case "lock":
                if not self._calls.acquire(timeout=line["limit_ms"] / 1000):
                    raise ValueError("not_ready")
                self._state = "locked"
            case "checkpoint":
                self._kept = self._line.ask(op="get")
                self._line.ask(op="close")
                self._line.close()
                self._state = "checkpointed"
            case "restore":
                gpu = line["devices"].get(self._gpu, "") if line["devices"] else self._gpu
                self._line = self._open(gpu)
                self._gpu = gpu
                self._line.ask(op="put", **self._kept)
                self._state = "locked"
            case "unlock":
                self._state = "running"
                self._calls.release()
        return {"state": self._state}


def control(pid: int) -> str:
    return f"/dev/shm/.fake-cuda-{pid}"


def answer() -> None:
    """What a process does meanwhile that waits for a GPU."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            os.rename("asked", "answered")
        if os.path.exists("fork"):
            os.unlink("fork")
            command = [sys.executable, *sys.argv[:-1], "-1"]
            subprocess.Popen(command)
        time.sleep(0.005)


def run_job(folder: str, size: int, forks: int) -> None:
    if forks > 0 and os.fork() == 0:
        run_job(folder, size, forks - 1)
    cuda = Cuda(folder, os.environ["CUDA_VISIBLE_DEVICES"].split(",")[0], size)
    # What no save can take along.
    _stubborn = Line(f"{folder}/{NODE}") if "STUBBORN" in os.environ else None
    name = f"numbers-{forks}"
    threading.Thread(target=answer, daemon=True).start()
    with open(name, "a", encoding="ascii", buffering=1) as file:
        while not os.path.exists("finish"):
            n, x = cuda.step()
            file.write(f"{n} {x}\n")
            print(n, x, flush=True)
            time.sleep(0.002)
    os._exit(3)


# --- the calls -----------------------------------------------------------------------------------


class Calls:
    """A `DeviceCheckpoint` of them."""

    def state(self, pid: int) -> Any:
        from onefleet.drivers.device_checkpoint import DeviceState

        if not os.path.exists(control(pid)):
            return DeviceState.NONE
        return DeviceState(self._call(pid, "state")["state"])

    def lock(self, pid: int, limit_ms: int) -> None:
        self._call(pid, "lock", limit_ms=limit_ms)

    def checkpoint(self, pid: int) -> None:
        self._call(pid, "checkpoint")

    def restore(self, pid: int, devices: Mapping[str, str]) -> None:
        self._call(pid, "restore", devices=dict(devices))

    def unlock(self, pid: int) -> None:
        self._call(pid, "unlock")

    def _call(self, pid: int, verb: str, **more: Any) -> dict[str, Any]:
        from onefleet.drivers.device_checkpoint import DeviceError, DeviceErrorKind

        try:
            line = Line(control(pid))
        except OSError as error:
            raise DeviceError(DeviceErrorKind.OTHER, str(error)) from error
        with contextlib.closing(line):
            answer = line.ask(verb=verb, **more)
        if "error" in answer:
            raise DeviceError(DeviceErrorKind(answer["error"]), f"{verb}: {answer['error']}")
        return answer


def serve_calls(folder: str) -> None:
    from onefleet.drivers import device_calls

    def facts() -> dict[str, Any]:
        line = Line(f"{folder}/{NODE}")
        with contextlib.closing(line):
            return line.ask(op="node")

    def say(text: str) -> None:
        print(text, flush=True)

    device_calls.serve(sys.stdin, say, Calls, facts, lambda pid: Path(f"/proc/{pid}").exists())
    os._exit(0)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["node", where, *gpus]:
            serve_node(where, {g.rpartition(":")[0]: int(g.rpartition(":")[2]) for g in gpus})
        case ["job", where, size, *forks]:
            run_job(where, int(size), int(forks[0]) if forks else 0)
        case ["calls", where]:
            serve_calls(where)
