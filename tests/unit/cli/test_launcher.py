"""The launcher with tiny children: start, restart, sockets that stay, stop, who is in the way."""

from __future__ import annotations

import errno
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from onefleet.cli import launcher, pool_folder
from onefleet.cli.down import down
from onefleet.cli.pool_folder import Process
from onefleet.domain.layout import Layout

PROGRAM = Path(__file__).with_name("launcher_program.py")


class Pool:
    """A launcher program, its output read by a thread."""

    def __init__(self, root: Path, port: int = 0, mode: str = "") -> None:
        self.layout = Layout(root)
        self.running = subprocess.Popen(
            [sys.executable, PROGRAM, root, str(port), *([mode] if mode else [])],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.running.stdout is not None
        with self.running.stdout as lines:
            self.said.extend(iter(lines.readline, ""))

    def ready(self) -> Pool:
        until(lambda: any(s.startswith("ready ") for s in self.said) or self.ended)
        assert not self.ended, self.said
        return self

    @property
    def ended(self) -> bool:
        return self.running.poll() is not None

    @property
    def url(self) -> str:
        return next(s for s in self.said if s.startswith("ready ")).split()[1]

    def children(self) -> dict[str, Process]:
        pool = pool_folder.read_pool(self.layout)
        return dict(pool.processes) if pool else {}

    def ask(self) -> int:
        """The pid that answers on the public port."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        try:
            connection.request("GET", "/")
            return int(connection.getresponse().read())
        finally:
            connection.close()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.running.send_signal(number)
        return self.join()

    def join(self) -> int:
        code = self.running.wait(60)
        self._reader.join()
        return code


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    pools: list[Pool] = []

    def started(*args: object, **more: object) -> Pool:
        pools.append(Pool(tmp_path, *args, **more))  # type: ignore[arg-type]
        return pools[-1]

    yield started
    for pool in pools:
        children = pool.children()
        if not pool.ended:
            pool.running.kill()
        pool.join()
        for process in children.values():
            process.signal(signal.SIGKILL)


def until(good: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not good():
        assert time.monotonic() < deadline, "not within the limit"
        time.sleep(0.01)


def test_up_serves_and_down_leaves_nothing(start: Callable[..., Pool]) -> None:
    pool = start().ready()
    children = pool.children()
    assert sorted(children) == ["agent", "control", "gateway"]
    assert pool.ask() == children["gateway"].pid
    said = json.loads(pool.layout.pool_file.read_text())
    assert said["url"] == pool.url and said["pids"]["agent"] == children["agent"].pid
    internal = json.loads(pool.layout.internal_file.read_text())
    assert pool.layout.internal_file.stat().st_mode & 0o777 == 0o600 and len(internal["token"]) > 20
    result = CliRunner().invoke(down, ["--data-dir", str(pool.layout.root)])
    assert result.exit_code == 0, result.output
    assert pool.join() == 0
    assert not any(p.alive for p in children.values())
    assert not pool.layout.pool_file.exists() and not pool.layout.internal_file.exists()
    assert "none of the 3 processes" in pool.said[-1]
    assert (pool.layout.logs / "agent.log").read_text() == "drained\n"
    assert not (pool.layout.root / "swept").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_it_in_order(start: Callable[..., Pool], number: int) -> None:
    pool = start().ready()
    assert pool.end(number) == 0
    stops = [s.split()[1].strip(":\n") for s in pool.said if s.startswith("stopping")]
    assert stops == ["agent", "gateway", "control"]


@pytest.mark.parametrize("name", ["control", "gateway", "agent"])
def test_a_killed_child_is_started_again(start: Callable[..., Pool], name: str) -> None:
    pool = start().ready()
    before = pool.children()
    os.kill(before[name].pid, signal.SIGKILL)
    until(lambda: pool.children()[name] != before[name])
    after = pool.children()
    assert all(after[other] == before[other] for other in before if other != name)
    assert pool.ask() == after["gateway"].pid
    assert any(f"{name} ended (signal 9)" in s for s in pool.said)
    assert pool.end() == 0


def test_a_full_disk_does_not_end_a_pool_that_serves(start: Callable[..., Pool]) -> None:
    pool = start().ready()
    before = pool.children()["agent"]
    blocker = pool.layout.pool_file.with_name(".pool.json.new")
    blocker.mkdir()  # the pool file cannot be replaced now
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: any("cannot be written" in s for s in pool.said))
    assert pool.ask() == pool.children()["gateway"].pid
    assert pool.children()["agent"] == before, "the file says what it said"
    blocker.rmdir()
    until(lambda: pool.children()["agent"] != before)
    assert pool.end() == 0


def test_clients_wait_while_the_gateway_is_started_again(start: Callable[..., Pool]) -> None:
    pool = start().ready()
    for _ in range(3):
        before = pool.children()["gateway"]
        os.kill(before.pid, signal.SIGKILL)
        until(lambda before=before: not before.alive)  # type: ignore[misc]
        assert pool.ask() != before.pid  # not refused: it waited in the socket's queue


def test_a_second_up_names_the_first(start: Callable[..., Pool]) -> None:
    first = start().ready()
    second = start()
    assert second.join() == 5
    text = "".join(second.said)
    assert str(first.running.pid) in text and first.url in text
    assert first.ask() and first.end() == 0


def test_a_port_in_use_names_who_holds_it(start: Callable[..., Pool]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        pool = start(port)
        assert pool.join() == 5
        text = "".join(pool.said)
        assert f"port {port}" in text and f"process {os.getpid()}" in text and "--port 0" in text
    assert not (pool.layout.root / "swept").exists() and not pool.layout.pool_file.exists()


def test_a_port_that_is_none(start: Callable[..., Pool]) -> None:
    pool = start(70_000)
    assert pool.join() == 2 and "70000 is no port" in "".join(pool.said)


def test_a_child_that_cannot_start_is_quoted_and_all_is_ended(start: Callable[..., Pool]) -> None:
    pool = start(mode="gateway-dies")
    assert pool.join() == 1
    text = "".join(pool.said)
    assert "gateway ended 3 times (exit code 1)" in text and "I cannot" in text
    assert "none of the 5 processes" in text  # three tries of one, and the two others


def test_an_agent_that_hangs_is_hurried_and_what_it_left_is_swept(
    start: Callable[..., Pool],
) -> None:
    pool = start(mode="agent-hangs").ready()
    pool.running.send_signal(signal.SIGINT)
    for word in ("stopping agent", "faster"):
        until(lambda word=word: any(word in s for s in pool.said))  # type: ignore[misc]
        pool.running.send_signal(signal.SIGINT)
    assert pool.join() == 0
    assert (pool.layout.root / "swept").exists()


def test_told_to_stop_before_it_is_ready(start: Callable[..., Pool]) -> None:
    pool = start(mode="never")
    until(lambda: any("waiting for ages" in s for s in pool.said))
    children = pool.children()
    assert pool.end() == 0
    assert not any(p.alive for p in children.values())


def test_after_a_killed_launcher_up_and_down_work(start: Callable[..., Pool]) -> None:
    first = start().ready()
    children = first.children()
    first.end(signal.SIGKILL)
    second = start(int(urlsplit(first.url).port or 0)).ready()  # on the very same port
    assert not any(p.alive for p in children.values())
    assert any("launcher that was killed" in s for s in second.said)
    children = second.children()
    second.end(signal.SIGKILL)
    result = CliRunner().invoke(down, ["--data-dir", str(second.layout.root)])
    assert result.exit_code == 0 and "killed" in result.output
    assert not any(p.alive for p in children.values())
    assert not second.layout.pool_file.exists()


def test_down_without_a_pool(tmp_path: Path) -> None:
    result = CliRunner().invoke(down, ["--data-dir", str(tmp_path)])
    assert result.exit_code == 0 and "no pool runs" in result.output


def test_down_that_takes_too_long_names_what_it_waits_for(start: Callable[..., Pool]) -> None:
    pool = start(mode="agent-hangs").ready()
    result = CliRunner().invoke(down, ["--data-dir", str(pool.layout.root), "--timeout", "0.3"])
    assert isinstance(result.exception, launcher.TimedOut) and "agent" in result.exception.why
    pool.running.send_signal(signal.SIGINT)
    until(lambda: any("faster" in s for s in pool.said))
    pool.running.send_signal(signal.SIGINT)
    assert pool.join() == 0


def test_a_pid_that_was_given_again_is_somebody_else() -> None:
    own = pool_folder.process(os.getpid())
    assert own.alive and not Process(own.pid, own.start + 1).alive


def test_a_long_log_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    with path.open("ab") as writer:
        writer.write(b"x" * 100)
        writer.flush()
        pool_folder.bound_log(path, 50)
        writer.write(b"new")
    assert path.read_bytes() == b"new" and (tmp_path / "x.log.1").read_bytes() == b"x" * 100


def test_a_long_log_is_cut_where_there_is_no_room_to_put_it_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path, target: Path) -> None:
        target.write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pool_folder.shutil, "copyfile", full)
    path = tmp_path / "x.log"
    path.write_bytes(b"x" * 100)
    pool_folder.bound_log(path, 50)
    assert [(p.name, p.stat().st_size) for p in tmp_path.iterdir()] == [("x.log", 0)]


def test_without_room_for_a_log_it_goes_nowhere(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    with pool_folder.open_log(Layout(tmp_path), "control") as log:
        log.write(b"said")


def test_a_log_on_a_full_disk_costs_lines_and_nothing_else() -> None:
    program = "from onefleet.config import StandardError as E; E().write('x'); E().flush()"
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", program], stderr=full, check=False)
    assert done.returncode == 0
