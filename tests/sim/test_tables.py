"""The commands that print tables: on imitations, small, and checked against what they must show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import (
    charts,
    failures,
    kueue,
    openb,
    packing,
    philly,
    shares,
    single_pool,
    spares,
    tables,
)
from tests.trace_files import FORMATS

from onefleet.domain.errors import InvalidRequest
from onefleet.sim.jobs.catalog import BASELINES
from onefleet.sim.traces.lines import BadTrace

ROOT = Path(__file__).resolve().parents[2]


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of every row of Markdown by its first cell."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("| ") and "---" not in line:
            first, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            rows[first.strip()] = cells
    return rows


def number(cell: str) -> float:
    return float(re.split(r"[ %]", cell.replace(",", ""))[0])


def test_philly_shows_every_policy_beside_its_bound(capsys):
    assert (
        philly.main(["--jobs", "1000", "--devices", "140", "--seeds", "2", "--workers", "1"]) == 0
    )
    text = capsys.readouterr().out
    rows = rows_of(text)
    for named in BASELINES:
        ratio = rows[philly.star(named)][0]
        assert number(ratio) >= 1.0
        assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", ratio)
        assert f"* {philly.star(named)}: {named.about}" in text
    assert number(rows["srsf †"][0]) <= number(rows["fifo"][0])
    assert "an imitation of Microsoft's Philly trace, 1000 jobs; seeds 0 to 1" in text
    assert number(rows["tiers, suspend (60 s)"][0]) <= number(rows["tiers, no preemption"][0])


def test_philly_reads_a_trace_by_its_path(tmp_path, capsys):
    form = FORMATS[0]
    path = form.write(tmp_path / "mine.csv.gz", form.lines(form.values(300)))
    arguments = ["--trace", str(path), "--devices", "130", "--policy", "fifo", "--workers", "1"]
    philly.main([*arguments, "--seeds", "2"])
    text = capsys.readouterr().out
    assert "(mine.csv.gz), 300 jobs; seed 0 is the whole trace" in text
    assert "tiers" not in text


def test_worker_processes_find_the_same(capsys):
    arguments = ["--jobs", "800", "--devices", "130", "--policy", "first-fit", "--policy", "drf"]
    philly.main([*arguments, "--workers", "1"])
    alone = capsys.readouterr().out
    philly.main([*arguments, "--workers", "2"])
    assert capsys.readouterr().out == alone


@pytest.mark.parametrize(
    ("main", "arguments", "told"),
    [
        (philly.main, ["--jobs", "0"], "--jobs: 0 is less than 1"),
        (philly.main, ["--devices", "64", "0"], "--devices: 0 is less than 1"),
        (openb.main, ["--seeds", "0"], "--seeds: 0 is less than 1"),
        (single_pool.main, ["--workers", "-1"], "--workers: -1 is less than 1"),
        (failures.main, ["--mttf-h", "0"], "--mttf-h: 0 is not above 0"),
        (failures.main, ["--days", "nan"], "--days: nan is not above 0"),
        (failures.main, ["--devices", "100"], "--devices 100 are no whole nodes of 8"),
        (shares.main, ["--nodes", "0"], "--nodes: 0 is less than 1"),
        (packing.main, ["--devices", "12"], "--devices: 12 are no whole nodes of 8"),
        (packing.main, ["--decisions", "0"], "--decisions: 0 is less than 1"),
        (kueue.main, ["--seeds", "3"], "unrecognized arguments: --seeds 3"),
    ],
)
def test_numbers_that_make_no_table_are_refused(main, arguments, told, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert told in capsys.readouterr().err


def test_spares_that_leave_no_room_for_the_work_are_refused():
    with pytest.raises(InvalidRequest, match="with 9 spares") as raised:
        spares.main(["--spares", "9", "--seeds", "1", "--workers", "1"])
    assert "never ended" in raised.value.why


def test_what_goes_wrong_is_three_lines():
    command = [sys.executable, "-m", "benchmarks.philly", "--trace", "no/such.csv.gz"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("error: no trace at no/such.csv.gz\nwhy: ")
    assert "Traceback" not in done.stderr


def test_a_bad_line_that_a_worker_process_reads_is_named(tmp_path):
    form = FORMATS[0]
    lines = form.lines(form.values(9))
    path = form.write(tmp_path / "mine.csv.gz", [*lines[:6], "nothing of the kind", *lines[6:]])
    with pytest.raises(BadTrace, match=r"mine\.csv\.gz:7") as raised:
        philly.main(["--trace", str(path), "--policy", "fifo", "--devices", "64", "--workers", "2"])
    assert "expected 5 cells" in raised.value.why


def test_failures_stay_at_the_ceiling(capsys):
    arguments = [
        "--devices",
        "64",
        "--mttf-h",
        "6",
        "--days",
        "10",
        "--seeds",
        "6",
        "--workers",
        "1",
    ]
    failures.main(arguments)
    rows = rows_of(capsys.readouterr().out)
    costly, cheap = rows["60 s"], rows["1 s"]
    for row in (costly, cheap):
        assert number(row[3]) == pytest.approx(number(row[2]), abs=1.0)
    assert number(cheap[3]) > number(costly[3])
    assert cheap[-1] == "yes"


def test_kueue_is_decided_near_its_bound(capsys):
    kueue.main(["--shape", "baseline", "--workers", "1", "--policy", "drf", "--policy", "silos"])
    text = capsys.readouterr().out
    rows = rows_of(text)
    assert "15,000 workloads of 30 queues in 5 cohorts" in text
    assert number(rows["Kueue, as published"][1]) == pytest.approx(5.3, abs=0.1)
    assert 1.0 <= number(rows["drf"][1]) <= 1.2
    assert number(rows["silos"][1]) > number(rows["drf"][1])
    assert number(rows["silos"][-1]) <= 20
    assert number(rows["drf"][-1]) <= 120


def test_the_single_pool_beats_walls_and_draws_it(tmp_path, capsys):
    arguments = ["--jobs", "1500", "--devices", "300", "--workers", "1", "--charts", str(tmp_path)]
    single_pool.main(arguments)
    rows = rows_of(capsys.readouterr().out)
    walls, _, pool = (rows[name] for name in single_pool.CASES.values())
    assert number(pool[3]) < number(walls[3])  # stranded
    assert number(pool[5]) == 0.0  # premium waits for nobody
    assert pool[8] == "100.0%"
    assert (tmp_path / "single_pool.png").read_bytes()[:4] == b"\x89PNG"
    drawn = (tmp_path / "single_pool.svg").read_text()
    for title in single_pool.CASES.values():
        assert title in drawn


def test_a_chart_is_the_same_twice(tmp_path):
    panel = charts.Panel("a", "b", [0.0, 1.0, 2.0], [("premium", [1.0, 2.0, 1.0])])
    paths = [tmp_path / "1.svg", tmp_path / "2.svg"]
    for path in paths:
        charts.draw_pools([panel, panel], 3, "title", "source", [path])
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_report_names_the_command_that_made_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "HERE", tmp_path)
    told = tables.command("philly", ["--trace", "/some/where/t.csv.gz", "--report"])
    tables.report("philly", philly.__doc__ or "", told, "| table |", write=True)
    page = (tmp_path / "philly.md").read_text()
    assert page.startswith("# Philly: policies beside bounds\n")
    assert "by `python -m benchmarks.philly --trace t.csv.gz`." in page
    assert "| table |" in page
    assert "/some/where" not in page


def test_openb_shows_a_policy_below_the_ceiling(capsys):
    assert openb.main(["--seeds", "1", "--workers", "1", "--policy", "best-fit"]) == 0
    text = capsys.readouterr().out
    rows = rows_of(text)
    assert "an imitation of the trace:" in text
    assert 50 < number(rows["best-fit"][0]) <= number(rows["ceiling"][0]) <= 100
    assert rows["best-fit"][2] == "", "what was published is of the trace, not of an imitation"
    assert re.search(r"The ceiling (reaches 98 % when \d+ %|does not reach 98 %)", text)


def test_openb_takes_the_variant_from_the_file_name():
    assert openb.variant(Path("x/openb_pod_list_gpuspec33.csv.gz")) == "gpuspec33"
    assert openb.variant(None) == "imitation"
    assert {policy.peer for policy in openb.POLICIES.values() if policy.peer} == (
        set(openb.PUBLISHED["default"]) - {"GpuClustering"}
    )


def test_the_planner_fills_a_fleet_with_shares_as_well_as_the_packer(capsys):
    assert shares.main(["--nodes", "12", "--seeds", "2"]) == 0
    rows = rows_of(capsys.readouterr().out)
    used = {name: number(rows[name][0]) for name in (*shares.PACKERS, shares.NAME)}
    assert used["onefleet"] >= used["least-loss"] - 1 and used["onefleet"] > used["gpu-packing"] - 1
    assert all(80 < percent <= 100 for percent in used.values())


def test_packing_shows_its_decisions_beside_their_budget(capsys):
    assert packing.main(["--devices", "2048", "--decisions", "60"]) == 0
    row = rows_of(capsys.readouterr().out)["2,048"]
    times = [number(cell) for cell in row[1:5]]
    assert times == sorted(times)
    assert times[1] < number(row[5]) == 100
