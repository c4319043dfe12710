"""The command on a pool's past and on a trace: what it prints, and what it says when it cannot."""

from __future__ import annotations

import json

import msgspec

from onefleet.domain import errors
from onefleet.wire.api import Page

HEADER = "timestamp,duration,num_gpus,gpu_time,cluster\n"
TRACE = HEADER + (
    "2017-10-03 00:00:00,60.0,1,60.0,red\n"
    "2017-10-03 00:00:01,60.0,1,60.0,red\n"
    "2017-10-03 00:00:02,60.0,1,60.0,blue\n"
)


def with_past(fake) -> None:
    """One job that waited a second and ran for a minute, and one that runs."""
    live = fake.views["/api/v1/jobs/job-1"]
    ended = msgspec.structs.replace(
        live, id="job-0", phase="ended", outcome="succeeded", suspends=0, ran_ms=60_000,
        started_at=live.submitted_at + 1_000, ended_at=live.submitted_at + 61_000,
    )  # fmt: skip
    fake.views["/api/v1/jobs"] = Page((ended, live))


def test_the_past_stands_beside_its_replay_and_each_change(fake, cli):
    with_past(fake)
    fake.views["/api/v1/reservations"] = Page(())
    code, out, err = cli("whatif", "--policy", "fifo", "--devices", "+1", "--walls")
    assert code == 0
    rows = [line.split("  ")[0] for line in out.splitlines()]
    assert rows == ["CASE", "as it was", "replayed", "policy fifo", "2 devices", "team walls"]
    assert err.startswith("simulated, but for what says as it was: 1 jobs, seed 1, a resume costs ")
    assert "left out: 1 jobs that have not ended" in err and "not known to it: " in err
    lines = json.loads(cli("whatif", "-o", "json")[1])
    assert [(x["case"], x["simulated"], x["jct_s"]) for x in lines] == [
        ("as it was", False, 61.0), ("replayed", True, 60.0),
    ]  # fmt: skip
    assert [x["seed"] for x in lines] == [1, 1]


def test_what_spares_cost_is_a_pool_without_their_devices(fake, cli):
    with_past(fake)
    fake.views["/api/v1/reservations"] = Page(())
    device, node = fake.views["/api/v1/devices"].data[0], fake.views["/api/v1/nodes"].data[0]
    fake.views["/api/v1/devices"] = Page((device,) * 6)
    fake.views["/api/v1/nodes"] = Page((node,) * 3)  # of two devices each
    words = ("whatif", "--spares", "0", "--spares", "1", "--spares", "9", "-o", "json")
    lines = json.loads(cli(*words)[1])
    assert [(line["case"], line["devices"]) for line in lines] == [
        ("as it was", 2), ("replayed", 2), ("0 spares", 6), ("1 spares", 4), ("9 spares", 2),
    ]  # fmt: skip
    assert cli("whatif", "--trace", "x.csv", "--devices", "2", "--spares", "1")[0] == 2


def test_without_a_past_it_says_so_in_three_lines(fake, cli):
    fake.views["/api/v1/reservations"] = Page(())
    code, out, err = cli("whatif")
    assert (code, out) == (errors.NotFound.exit_code, "")
    assert [line.split(":")[0] for line in err.splitlines()] == ["error", "why", "try"]
    assert "of 1 jobs none has run, ended" in err
    with_past(fake)
    assert cli("whatif", "--since", "1d")[0] == errors.NotFound.exit_code  # all of it is older


def test_a_reservation_of_more_than_there_is_is_refused(fake, cli):
    with_past(fake)  # two devices are reserved, and the pool has one
    code, out, err = cli("whatif")
    assert (code, out) == (2, "") and "more than 1 devices are reserved" in err


def test_a_change_that_cannot_be_takes_no_other_row_with_it(fake, cli):
    live = fake.views["/api/v1/jobs/job-1"]
    with_past(fake)
    ended = fake.views["/api/v1/jobs"].data[0]
    other = msgspec.structs.replace(ended, id="job-9", tenant="lab", devices_max=2)
    fake.views["/api/v1/jobs"] = Page((ended, other, live))
    fake.views["/api/v1/devices"] = Page(fake.views["/api/v1/devices"].data * 2)
    words = ("whatif", "--walls", "--devices", "1", "--devices", "4")
    code, out, err = cli(*words)
    rows = [line.split("  ")[0] for line in out.splitlines()]
    assert (code, rows) == (0, ["CASE", "as it was", "replayed", "4 devices"])
    why = [
        "impossible: 1 devices: more than 1 devices are reserved",
        "impossible: team walls: 2 devices are too few for 2 teams; "
        "each has at least as many as its largest gang wants: 3 together",
    ]
    assert err.splitlines()[:2] == why
    assert len(json.loads(cli(*words, "-o", "json")[1])) == 3
    code, out, err = cli("whatif", "--walls", "--devices", "1", "-o", "name")
    assert (code, out.splitlines(), err.splitlines()) == (6, ["as it was", "replayed"], why)


def test_a_trace_needs_no_pool(cli, tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text(TRACE)
    words = ("whatif", "--trace", str(path))
    code, out, err = cli(*words, "--devices", "2", "--devices", "+1", "--walls", "-o", "name")
    assert (code, out.splitlines(), err) == (0, ["replayed", "3 devices", "team walls"], "")
    code, out, err = cli(*words, "--devices", "2", "--jobs", "2")
    assert code == 0 and "left out: 1 later jobs" in err and "made from the trace" in err
    for more in ((), ("--devices", "+2")):
        code, _, err = cli(*words, *more)
        assert code == 2 and err.startswith("error: how many devices are there?\n")
    assert cli(*words, "--devices", "2", "--since", "1d")[0] == 2
    assert cli(*words, "--devices", "0")[0] == 2


def test_a_bad_line_of_a_trace_is_named(cli, tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text(TRACE.replace("01,60.0,1", "01,60.0,one"))
    code, out, err = cli("whatif", "--trace", str(path), "--devices", "2")
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == "error: bad trace: jobs.csv:3"
    assert cli("whatif", "--trace", str(tmp_path / "none"), "--devices", "2")[0] == 3
