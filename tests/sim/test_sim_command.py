"""The command: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from onefleet.cli.sim import sim


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(sim, words, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return int(done.return_value or 0), done.stdout


def test_a_scenario_is_run_by_name_and_printed() -> None:
    code, out = run("run", "burst")
    assert code == 0
    assert out.startswith("scenario       burst, seed 2 (simulated, heap driver)\n")
    assert "1 suspends, 1 resumes" in out and out.endswith("result         ok\n")
    code, out = run("run", "burst", "--driver", "asyncio", "-o", "json")
    report = json.loads(out)
    assert code == 0 and report["simulated"] is True and report["violations"] == []


def test_a_broken_rule_is_told_with_its_time_and_fails(tmp_path: Path) -> None:
    path = tmp_path / "stuck.toml"
    path.write_text(
        'name = "stuck"\nabout = ""\nseed = 1\nhorizon_s = 3\n'
        '[fleet]\nnodes = 1\ndevices = 1\n[[jobs]]\nname = "long"\nrun_s = [60, 60]\n'
    )
    code, out = run("run", str(path))
    assert code == 1
    assert "VIOLATION      at 3.0" in out or "VIOLATION      at 2." in out
    assert "long-0001 never ended: it is running ()" in out
    assert out.endswith("result         1 violations\n")


def test_the_scenarios_are_listed() -> None:
    code, out = run("list", "-o", "name")
    assert (code, out.split()) == (0, ["burst", "node_loss", "spares", "steady"])
