"""``onefleet doctor --fix`` where nothing can be fixed, and the port that it looks at."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import structlog

from onefleet.cli import doctor_checks
from onefleet.cli.main import main
from onefleet.domain.errors import Unsupported
from onefleet.domain.fleet import CheckpointMode, Device, DeviceKind
from onefleet.domain.ids import DeviceId
from onefleet.drivers.base import Capability
from onefleet.wire.agent import LOCAL_NODE, node_id
from onefleet.wire.api import Page


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """The command sends what is logged to stderr."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def only_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other checks start programs."""
    checks = tuple(c for c in doctor_checks.CHECKS if c[0] == "port")
    monkeypatch.setattr(doctor_checks, "CHECKS", checks)


def test_what_cannot_be_fixed_is_said_and_the_checks_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(*arguments: object) -> None:
        raise Unsupported("no copy can be made", why="this is not root", hint="run it as root")

    monkeypatch.setattr("onefleet.drivers.criu_setup.setup_criu", refuse)
    assert main(["doctor", "--fix", "--data-dir", str(tmp_path), "-o", "name"]) == 0
    said = capsys.readouterr()
    assert (
        said.err == "not fixed: no copy can be made: this is not root; to fix it, run it as root\n"
    )
    assert said.out == "port\n"


def test_what_a_check_logs_is_not_in_what_it_prints(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def logs(*arguments: object) -> tuple[str, str, str]:
        log = structlog.get_logger()
        log.info("no devices")
        log.warning("devices cannot be read")
        return "skip", "none", ""

    monkeypatch.setattr(doctor_checks, "CHECKS", (("gpus", logs),))
    assert main(["doctor", "--data-dir", str(tmp_path), "-o", "json"]) == 0
    said = capfd.readouterr()
    assert [check["id"] for check in json.loads(said.out)] == ["gpus"]
    assert "devices cannot be read" in said.err and "no devices" not in said.err


@pytest.mark.parametrize(
    ("mode", "result", "says"),
    [
        (
            CheckpointMode.CRIU,
            "pass",
            "saved transparently, workers of a gang that share one take turns on it: seen",
        ),
        (
            CheckpointMode.NONE,
            "warn",
            "asked to save themselves (cooperative), none take turns on them: too old",
        ),
    ],
)
def test_how_jobs_on_gpus_are_saved_is_tried_and_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    mode: CheckpointMode,
    result: str,
    says: str,
) -> None:
    gpu = Device(DeviceId("n1/gpu-1"), DeviceKind.GPU, 0, "NVIDIA L4", 1 << 30, uuid="GPU-1")
    tried: list[Sequence[str]] = []

    async def probe(driver: object, gpus: Sequence[str]) -> Capability:
        tried.append(gpus)
        return Capability(mode, "" if mode is CheckpointMode.CRIU else "too old", "seen")

    checks = (("gpus", doctor_checks._gpus),)
    monkeypatch.setattr(doctor_checks, "CHECKS", checks)
    monkeypatch.setattr("onefleet.agent.devices.NvidiaProbe.discover", lambda *_: [gpu])
    monkeypatch.setattr("onefleet.drivers.criu.CriuDriver.probe_gpus", probe)
    main(["doctor", "--data-dir", str(tmp_path), "-o", "jsonl"])
    check = json.loads(capsys.readouterr().out)
    assert (check["result"], tried) == (result, [["GPU-1"]])
    assert "1 GPUs (NVIDIA L4)" in check["evidence"] and says in check["evidence"]


def test_the_port_that_is_asked_for_is_looked_at(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        main(["doctor", "--port", str(port), "--data-dir", str(tmp_path), "-o", "jsonl"])
    check = json.loads(capsys.readouterr().out)
    assert check["result"] == "warn"
    assert f"port {port} cannot be used" in check["evidence"]


def test_a_node_without_criu_is_mended_where_it_is(fake, monkeypatch, capsys, tmp_path) -> None:
    view = fake.views["/api/v1/nodes"].data[0]
    weak = msgspec.structs.replace(view, checkpoint="none", checkpoint_reason="no criu here")
    nodes = (
        msgspec.structs.replace(view, id="node-good", name="good"),
        msgspec.structs.replace(weak, id=node_id(LOCAL_NODE), name=LOCAL_NODE),
        msgspec.structs.replace(weak, id="node-b", name="b", data_dir="/srv/node b"),
        msgspec.structs.replace(weak, id="node-c", name="c"),
    )
    fake.views["/api/v1/nodes"] = Page(nodes)
    monkeypatch.setattr(doctor_checks, "CHECKS", (("pool", doctor_checks._pool),))

    def mended() -> list[str]:
        main(["doctor", "-o", "jsonl"])
        check = json.loads(capsys.readouterr().out)
        assert check["result"] == "warn" and "good" not in check["evidence"]
        return check["fix"].split("; ")

    monkeypatch.setenv("ONEFLEET_DATA_DIR", str(tmp_path))
    again = ", then end its agent with Ctrl-C, which saves its jobs, and start it again with the "
    assert mended() == [
        "onefleet doctor --fix && onefleet down && onefleet up",
        f"on the machine of b: onefleet doctor --fix --data-dir '/srv/node b'{again}same command",
        "on the machine of c: onefleet doctor --fix --data-dir DIR (that of its onefleet agent)"
        f"{again}same command",
    ]
    monkeypatch.setenv("ONEFLEET_DATA_DIR", str(tmp_path / "other"))
    main(["doctor", "-o", "jsonl", "--data-dir", str(tmp_path)])
    where = f"--data-dir {tmp_path}"
    assert f"onefleet down {where} && onefleet up {where}" in capsys.readouterr().out
