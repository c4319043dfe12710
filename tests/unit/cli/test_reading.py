"""Every reading command in every format: programs must be able to parse what they asked for."""

from __future__ import annotations

import json
import re

import msgspec
import pytest

from onefleet.wire import api

READING = {
    ("status",): "pool",
    ("ps",): "job-1",
    ("why", "job-1"): "job-1",
    ("model", "list"): "demo:smollm2",
    ("model", "show", "demo:smollm2"): "demo:smollm2",
    ("deployment", "list"): "dep-1",
    ("deployment", "show", "smollm2"): "dep-1",
    ("tenant", "list"): "default",
    ("key", "list"): "key-1",
    ("node", "list"): "node-1",
    ("device", "list"): "node-1/cpu1",
    ("reservation", "list"): "res-1",
    ("spare", "list"): "gpu",
    ("ledger",): "job-1",
    ("ledger", "job-1"): "job-1",
    ("receipts", "job-1"): "job-1",
}
#: Commands that show a list, and where the pool keeps it.
LISTS = {
    ("ps",): "jobs",
    ("model", "list"): "models",
    ("deployment", "list"): "deployments",
    ("tenant", "list"): "tenants",
    ("key", "list"): "keys",
    ("node", "list"): "nodes",
    ("device", "list"): "devices",
    ("reservation", "list"): "reservations",
    ("spare", "list"): "spares",
    ("ledger",): "ledger",
    ("receipts", "job-1"): "jobs/job-1/receipts",
}
COMMANDS = pytest.mark.parametrize("words", READING, ids=" ".join)


def parse_yaml(text: str) -> object:
    """Our own subset: enough to see that each line is a key, an item or a scalar."""
    for line in text.splitlines():
        body = line.strip().removeprefix("- ")
        assert body.startswith(("[]", "{}", '"')) or ":" in body or body.isprintable(), line
    return text


@COMMANDS
def test_json_parses_and_says_what_it_is(fake, cli, words):
    code, out, err = cli(*words, "-o", "json")
    assert (code, err) == (0, "")
    body = json.loads(out)
    views = body if words in LISTS else [body]
    assert isinstance(views, list) and len(views) == 1
    assert views[0]["apiVersion"] == "onefleet/v1"
    assert views[0]["object"][0].isupper()


@COMMANDS
def test_jsonl_is_one_object_a_line(fake, cli, words):
    code, out, _ = cli(*words, "-o", "jsonl")
    assert code == 0
    assert [json.loads(line)["apiVersion"] for line in out.splitlines()] == ["onefleet/v1"]


@COMMANDS
def test_yaml_holds_what_json_holds(fake, cli, words):
    code, out, _ = cli(*words, "-o", "yaml")
    assert code == 0
    assert "apiVersion: onefleet/v1" in out
    parse_yaml(out)


@COMMANDS
@pytest.mark.parametrize("flags", [("-o", "name"), ("-q",)], ids=" ".join)
def test_name_is_the_ids_alone(fake, cli, words, flags):
    assert cli(*words, *flags) == (0, READING[words] + "\n", "")


@COMMANDS
@pytest.mark.parametrize("format_", ["table", "wide"])
def test_tables_have_no_escape_sequences_in_a_pipe(fake, cli, words, format_, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    code, out, _ = cli(*words, "-o", format_)
    assert code == 0 and out.endswith("\n")
    assert "\x1b" not in out
    assert "…" not in out.replace("…-key", ""), "a pipe gets every character"


@pytest.mark.parametrize("words", LISTS, ids=" ".join)
def test_an_empty_list_is_empty_on_stdout(fake, cli, words):
    from onefleet.wire.api import Page

    fake.views["/api/v1/" + LISTS[words]] = Page(())
    assert json.loads(cli(*words, "-o", "json")[1]) == []
    assert cli(*words)[:2] == (0, "")
    assert cli(*words, "-o", "jsonl")[:2] == (0, "")


def test_color_on_demand_and_no_color_wins(fake, cli, monkeypatch):
    assert "\x1b[32mrunning\x1b[0m" in cli("--color", "always", "ps")[1]
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" in cli("ps")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in cli("ps")[1]


def test_a_hostile_job_name_cannot_move_the_cursor(fake, cli):
    import msgspec

    from onefleet.wire.api import Page

    view = fake.views["/api/v1/jobs/job-1"]
    fake.views["/api/v1/jobs"] = Page((msgspec.structs.replace(view, name="a\x1b[2Jb\nc"),))
    out = cli("ps")[1]
    assert "\x1b" not in out and len(out.splitlines()) == 2


def test_ps_running_leaves_out_what_ended(fake, cli):
    import msgspec

    from onefleet.wire.api import Page

    view = fake.views["/api/v1/jobs/job-1"]
    ended = msgspec.structs.replace(view, id="job-2", outcome="failed", exit_code=3)
    fake.views["/api/v1/jobs"] = Page((view, ended))
    assert cli("ps", "-q")[1] == "job-1\njob-2\n"
    assert cli("ps", "-q", "--running")[1] == "job-1\n"
    assert "failed" in cli("ps")[1]


def test_why_names_every_blocker(fake, cli):
    out = cli("why", "job-1")[1]
    assert "contention  both devices are held  (held by rep-1)" in out
    assert "quota       tenant default has 0 of 1 left" in out


def test_why_says_when_and_what_would_be_sooner(fake, cli):
    out = cli("why", "job-1")[1]
    assert "expected to run  in 31m00s (20m00s to 2h10m, as run times " in out
    assert "  starts now with --devices 4\n" in out
    assert "\ndeadline  in 1h00m; it is expected to be met\n" in out
    assert "  starts in 1m00s as premium, pushing back job-17\n" in out


def test_the_ledger_says_what_was_promised_and_what_came_of_it(fake, cli):
    header, line = cli("ledger")[1].splitlines()
    assert header.split()[3:6] == ["PROMISED", "GOT", "PROMISE"]
    assert "70 %" in line and "83 %" in line and "kept" in line


def test_the_ledger_tells_a_promise_that_is_still_to_be_given_from_one_that_is_kept(fake, cli):
    entry = fake.views["/api/v1/jobs/job-1/ledger"]

    def line(**changes: object) -> list[str]:
        changed = msgspec.structs.replace(entry, **changes)
        fake.views["/api/v1/jobs/job-1/ledger"] = changed
        return re.split(r"  +", cli("ledger", "job-1")[1].splitlines()[1])[3:6]

    waits = line(kept_permille=None, state="waiting")
    assert waits == ["-", "-", "waiting: 70 % cannot be promised yet"]
    assert line(kept_permille=0, state="broken") == ["70 %", "0 %", "broken"]
    early = line(kept_permille=140, state="early")
    assert early == ["70 %", "14 %", "too early to say"]
    assert line(kept_permille=400, promised_permille=0, state="none") == ["-", "40 %", "none"]


def test_receipts_say_for_whom_and_for_how_long(fake, cli):
    line = cli("receipts", "job-1")[1].splitlines()[1]
    assert "rep-1" in line and "9.0s" in line and "0ms" in line


def test_a_cordoned_device_says_why(fake, cli):
    import msgspec

    from onefleet.wire.api import Page

    (device,) = fake.views["/api/v1/devices"].data
    out = msgspec.structs.replace(device, holder="", cordoned="ECC errors")
    fake.views["/api/v1/devices"] = Page((out,))
    assert " cordoned: ECC errors\n" in cli("device", "list")[1]
    fake.views["/api/v1/devices"] = Page((msgspec.structs.replace(out, holder="job-1"),))
    assert " job-1 (cordoned: ECC errors)\n" in cli("device", "list")[1]


def test_ps_of_an_array_shows_its_elements_alone(fake, cli):
    import msgspec

    from onefleet.wire.api import Page

    view = fake.views["/api/v1/jobs/job-1"]
    element = msgspec.structs.replace(view, id="job-2", array="sweep")
    fake.views["/api/v1/jobs"] = Page((view, element))
    assert cli("ps", "-q", "--array", "sweep")[1] == "job-2\n"


def test_which_nodes_are_spares_is_seen_where_nodes_are(fake, cli):
    (node,) = fake.views["/api/v1/nodes"].data
    fake.views["/api/v1/nodes"] = api.Page((msgspec.structs.replace(node, spare=True),))
    assert " spare " in cli("node", "list")[1]
    status = fake.views["/api/v1/status"]
    assert "spares" not in cli("status")[1]
    changed = msgspec.structs.replace(status, spares=1, spares_wanted=2)
    fake.views["/api/v1/status"] = changed
    assert "1 of 2 nodes are kept empty" in cli("status")[1]
    few = api.SparesView(id="cpu", wanted=2, nodes=("a",))
    fake.views["/api/v1/spares"] = api.Page((few, api.SparesView(id="gpu", wanted=1, nodes=("b",))))
    first, second = cli("spare", "list")[1].splitlines()[1:]
    assert first.endswith("the next node that is empty is kept") and second.endswith("-")


def test_what_stands_still_is_counted(fake, cli):
    status = fake.views["/api/v1/status"]
    assert "1 running, 0 waiting, 0 suspended\n" in cli("status")[1]
    fake.views["/api/v1/status"] = msgspec.structs.replace(status, jobs_frozen=2)
    assert "1 running, 0 waiting, 0 suspended, 2 frozen\n" in cli("status")[1]
