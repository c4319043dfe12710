"""What `doctor` looks at. Each check tries the thing itself where that can be done in seconds."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from onefleet.config import DEFAULT_HOST, Settings, settings
from onefleet.domain.errors import OnefleetError
from onefleet.domain.quantities import size

if TYPE_CHECKING:
    from onefleet.wire.api import NodeView

PASS, WARN, FAIL, SKIP = "pass", "warn", "fail", "skip"

DISK_LEAST = 1 << 30
DISK_EASY = 5 << 30
MEMORY_EASY = 2 << 30
FILES_LEAST = 1024
CLOCK_SKEW_S_MAX = 2.0
#: When this check was written; a clock before it is wrong.
CLOCK_EARLIEST_S = 1_767_225_600  # 2026-01-01
ENGINE_LIMIT_S = 60.0


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """result: pass, warn, fail or skip. evidence: what was seen. fix: what to do."""

    id: str
    result: str
    evidence: str
    fix: str = ""
    took_ms: int = 0


Verdict = tuple[str, str, str]  # result, evidence, fix


def _python(chosen: Settings) -> Verdict:
    # A Python that is too old could not have imported this file; set-up has said so then.
    return PASS, f"Python {platform.python_version()}, {sys.executable}", ""


def _cores(chosen: Settings) -> Verdict:
    from onefleet.agent.devices import cpu_product, cpu_quota

    cores, quota = len(os.sched_getaffinity(0)), cpu_quota()
    usable = cores if quota is None else max(min(cores, quota), 1)
    evidence = f"{usable} cores of {os.cpu_count()}, {cpu_product()}"
    if usable < 2:
        return WARN, evidence, "the tour shares devices between two owners: give it two cores"
    return PASS, evidence, ""


def _memory(chosen: Settings) -> Verdict:
    from onefleet.agent.devices import memory_bytes

    whole, free = memory_bytes()
    evidence = f"{size(free)} free of {size(whole)}"
    return (PASS, evidence, "") if free >= MEMORY_EASY else (WARN, evidence, "free some memory")


def _disk(chosen: Settings) -> Verdict:
    place = chosen.data_dir
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    evidence = f"{size(free)} free at {place}"
    fix = "free space, or use another --data-dir: models and saved jobs lie there"
    if free < DISK_LEAST:
        return FAIL, evidence, fix
    return (WARN, evidence, fix) if free < DISK_EASY else (PASS, evidence, "")


def _data_folder(chosen: Settings) -> Verdict:
    from onefleet.cli.pool_folder import is_locked

    place = chosen.data_dir
    if not place.exists():
        parent = next(p for p in place.parents if p.exists())
        if not os.access(parent, os.W_OK):
            return FAIL, f"{place} is not there, {parent} may not be written", "use --data-dir"
        return PASS, f"{place} will be made by the first onefleet up", ""
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor-") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return FAIL, f"{place} may not be written: {error}", "use another --data-dir"
    held = "a pool runs on it" if is_locked(chosen.layout) else "no pool runs on it"
    return PASS, f"{place} can be written; {held}", ""


def _port(chosen: Settings) -> Verdict:
    from onefleet.cli.listening import holder
    from onefleet.cli.pool_folder import read_pool

    pool = read_pool(chosen.layout)
    if pool is not None and pool.launcher.alive:
        return PASS, f"this pool serves at {pool.url}", ""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((DEFAULT_HOST, chosen.port))
        except (OSError, OverflowError) as error:
            who = holder(chosen.port) or str(error)
            return WARN, f"port {chosen.port} cannot be used: {who}", "onefleet up --port 0"
    return PASS, f"{DEFAULT_HOST}:{chosen.port} is free", ""


def _files(chosen: Settings) -> Verdict:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    evidence = f"{soft} open files a process ({hard} at most)"
    return (PASS, evidence, "") if soft >= FILES_LEAST else (WARN, evidence, "ulimit -n 4096")


def _clock(chosen: Settings) -> Verdict:
    with tempfile.NamedTemporaryFile(prefix="onefleet-doctor-") as file:
        skew = abs(time.time() - os.stat(file.name).st_mtime)
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if time.time() < CLOCK_EARLIEST_S or skew > CLOCK_SKEW_S_MAX:
        return FAIL, f"{shown}; {skew:.1f} s off the file system's", "set the clock: timedatectl"
    return PASS, f"{shown}; {skew * 1000:.0f} ms off the file system's", ""


def _namespaces(chosen: Settings) -> Verdict:
    tool = shutil.which("unshare")
    if tool is None:
        return SKIP, "the program unshare is not there", "apt-get install util-linux"
    from onefleet.drivers.rights import no_cell, rights

    mine = rights()
    user = ["--user", "--map-root-user"] if mine.user_namespace else []
    line = [tool, *user, "--pid", "--fork", "--mount", "--net", "--mount-proc", "true"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode == 0:
        inside = ", in a user namespace" if user else ""
        return PASS, f"pid, mount and net namespaces can be made{inside}: jobs get cells", ""
    refusal = no_cell(mine, done.stderr.strip()[-200:])
    hint = f"{refusal.hint}; without cells jobs are asked to save themselves"
    return WARN, refusal.why, hint


def _criu(chosen: Settings) -> Verdict:
    import asyncio

    from onefleet.domain.fleet import CheckpointMode
    from onefleet.drivers.criu import CriuDriver, make_finder

    driver = CriuDriver(make_finder(chosen.layout.criu, chosen.criu))
    found = asyncio.run(driver.probe())
    if found.mode is CheckpointMode.CRIU:
        return PASS, found.evidence, ""
    result = FAIL if os.geteuid() == 0 else WARN
    return result, found.reason, found.evidence or "onefleet doctor --fix"


def _engine(chosen: Settings) -> Verdict:
    from onefleet.engines.catalog import ENGINES

    missing = ENGINES["llamacpp"].available()
    if missing:
        return FAIL, missing, "make run installs it"
    with tempfile.TemporaryDirectory(prefix="onefleet-doctor-") as folder:
        return _answer(Path(folder))


def _answer(folder: Path) -> Verdict:
    """Start the engine with the committed tiny model, ask it, end it."""
    from onefleet.config import child_environment
    from onefleet.domain.serving import Purpose
    from onefleet.engines.base import EngineProcess
    from onefleet.engines.catalog import ENGINES
    from onefleet.engines.launch import read_port_file
    from onefleet.wire.client import Client

    spec = EngineProcess(
        model_id="tiny",
        served_name="tiny",
        purpose=Purpose.CHAT,
        path=Path(__file__).parents[1] / "registry" / "data" / "tiny.gguf",
        slots=1,
        context_length=256,
        threads=1,
        port_file=folder / "port",
        cache_folder=folder,
    )
    adapter = ENGINES["llamacpp"]
    engine = subprocess.Popen(
        adapter.command(spec),
        env=child_environment(dict(adapter.environment(spec))),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        until = time.monotonic() + ENGINE_LIMIT_S
        while (address := read_port_file(spec.port_file)) is None:
            if engine.poll() is not None or time.monotonic() > until:
                engine.kill()
                said = (engine.communicate()[1] or b"")[-200:].decode(errors="replace")
                return FAIL, f"the engine did not start: {said.strip()}", "see its package"
            time.sleep(0.02)
        client = Client(f"http://{address[0]}:{address[1]}", timeout_s=ENGINE_LIMIT_S)
        messages = [{"role": "user", "content": "Hello"}]
        body = {"model": "tiny", "messages": messages, "max_tokens": 4}
        answer: Any = client.post("/v1/chat/completions", body, dict[str, Any])
        count = answer["usage"]["completion_tokens"]
        return PASS, f"llama.cpp answered {count} tokens with the model of the tests", ""
    finally:
        engine.kill()
        engine.communicate()


def _gpus(chosen: Settings) -> Verdict:
    """What GPUs there are, and how jobs on them are saved: that is tried on the first of them."""
    import asyncio

    from onefleet.agent.devices import NvidiaProbe, nvidia_driver
    from onefleet.domain.fleet import CheckpointMode
    from onefleet.domain.ids import NodeId
    from onefleet.drivers.criu import CriuDriver, make_finder

    found = NvidiaProbe().discover(NodeId("here"))
    if not found:
        return SKIP, "no NVIDIA GPUs, or no driver of theirs", ""
    names = ", ".join(gpu.product for gpu in found)
    evidence = f"{len(found)} GPUs ({names}), driver {nvidia_driver()}"
    driver = CriuDriver(make_finder(chosen.layout.criu, chosen.criu))
    saves = asyncio.run(driver.probe_gpus([gpu.uuid for gpu in found]))
    if saves.mode is CheckpointMode.CRIU:
        turns = "workers of a gang that share one take turns on it"
        saved = f"jobs on them are saved transparently, {turns}: {saves.evidence}"
        return PASS, f"{evidence}; {saved}", ""
    asked = "jobs on them are asked to save themselves (cooperative), none take turns on them"
    return WARN, f"{evidence}; {asked}: {saves.reason}", saves.evidence


def _models(chosen: Settings) -> Verdict:
    tiny = Path(__file__).parents[1] / "registry" / "data" / "tiny.gguf"
    if not tiny.is_file():
        return FAIL, f"{tiny} is missing", "install the package again"
    blobs = chosen.layout.blobs
    count = sum(1 for p in blobs.iterdir() if p.is_file()) if blobs.is_dir() else 0
    return PASS, f"demo:tiny is in the package; {count} files in the pool's store", ""


def _pool(chosen: Settings) -> Verdict:
    from onefleet.cli.pool import pool_url, stored_key
    from onefleet.wire.api import NodeView, Page
    from onefleet.wire.client import Client

    try:
        url = pool_url(chosen.layout)
    except OnefleetError:
        return SKIP, "no pool runs on this data folder", "onefleet up"
    try:
        Client(url, timeout_s=10).get("/ready", object)
        key = chosen.key or stored_key(chosen.layout)
        nodes = Client(url, key, timeout_s=10).get("/api/v1/nodes", Page[NodeView]).data
    except OnefleetError as error:
        return FAIL, f"{url}: {error.what}", f"onefleet status; logs in {chosen.layout.logs}"
    weak = [n for n in nodes if n.checkpoint != "criu"]
    if weak:
        told = ", ".join(f"{n.name} ({n.checkpoint_reason or n.checkpoint})" for n in weak)
        evidence = f"{url} is ready, but jobs are not saved by criu on {told}"
        return WARN, evidence, "; ".join(_mended(n, chosen) for n in weak)
    return PASS, f"{url} is ready", ""


def _mended(node: NodeView, chosen: Settings) -> str:
    """How a node gets to have criu. It tries it when it starts, so what has been mended since is
    seen at its next start."""
    from onefleet.wire.agent import LOCAL_NODE, node_id

    if node.id == node_id(LOCAL_NODE):
        usual = settings().data_dir == chosen.data_dir
        where = "" if usual else f" --data-dir {shlex.quote(str(chosen.data_dir))}"
        return " && ".join(f"onefleet {verb}{where}" for verb in ("doctor --fix", "down", "up"))
    folder = shlex.quote(node.data_dir) if node.data_dir else "DIR (that of its onefleet agent)"
    return (
        f"on the machine of {node.name}: onefleet doctor --fix --data-dir {folder}, then end its "
        "agent with Ctrl-C, which saves its jobs, and start it again with the same command"
    )


CHECKS: tuple[tuple[str, Callable[[Settings], Verdict]], ...] = (
    ("python", _python),
    ("cores", _cores),
    ("memory", _memory),
    ("disk", _disk),
    ("data-folder", _data_folder),
    ("port", _port),
    ("open-files", _files),
    ("clock", _clock),
    ("namespaces", _namespaces),
    ("criu", _criu),
    ("engine", _engine),
    ("models", _models),
    ("gpus", _gpus),
    ("pool", _pool),
)


def run_checks(chosen: Settings, begin: Callable[[str], None]) -> Iterator[Check]:
    """All checks in turn; `begin` hears the id of each before it runs."""
    for name, check in CHECKS:
        begin(name)
        started = time.monotonic()
        try:
            result, evidence, fix = check(chosen)
        except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
            result, evidence, fix = FAIL, f"{type(error).__name__}: {error}", ""
        except OnefleetError as error:
            result, evidence, fix = FAIL, f"{error.what} {error.why}".strip(), error.hint
        took_ms = int((time.monotonic() - started) * 1000)
        yield Check(id=name, result=result, evidence=evidence, fix=fix, took_ms=took_ms)
