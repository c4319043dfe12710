"""Commands that change something: what they send, what they print, and their exit codes."""

from __future__ import annotations

import json
import os
import sys
import time

import msgspec
import pytest

from onefleet.cli.job_verb import all_reached
from onefleet.cli.run import code_folder
from onefleet.domain import errors
from onefleet.wire import api

CREATING = {
    ("model", "add", "demo:smollm2"): "demo:smollm2",
    ("deploy", "demo:smollm2", "--replicas", "0..2"): "dep-1",
    ("run", "--", "true"): "job-1",
    ("reservation", "create", "default", "2", "--from", "+1h", "--until", "+2h"): "res-1",
    ("spare", "set", "2", "--kind", "gpu"): "gpu",
    ("migrate", "job-1", "--to", "box"): "job-1",
    ("scale", "job-1", "2"): "job-1",
    ("node", "drain", "box"): "node-1",
    ("node", "undrain", "box"): "node-1",
    ("device", "cordon", "node-1/cpu1", "--reason", "ECC errors"): "node-1/cpu1",
    ("device", "uncordon", "node-1/cpu1"): "node-1/cpu1",
    ("tenant", "create", "lab", "--reserve", "cpu=1"): "default",
    ("key", "create", "--tenant", "default"): "key-1",
}


@pytest.mark.parametrize("words", CREATING, ids=" ".join)
def test_creating_prints_the_id_or_the_object(fake, cli, words):
    code, out, _ = cli(*words)
    assert (code, out) == (0, CREATING[words] + "\n")
    at = words.index("--") if "--" in words else len(words)
    code, out, _ = cli(*words[:at], "-o", "json", *words[at:])
    body = json.loads(out)
    assert code == 0 and body["id"]
    assert ("key" in body) == (words[0] == "key")


def test_the_key_is_shown_once_and_not_on_stdout(fake, cli):
    _, out, err = cli("key", "create")
    assert "ok-secret" not in out
    assert "ok-secret" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("tenant", "create", "lab", "--weight", "nan"), "'nan' is not a number"),
        (("suspend", "job-1", "--wait", "--timeout", "nan"), "'nan' is not a number"),
        (("run", "--share", "inf", "--", "true"), "'inf' is not a part of a device"),
        (("run", "--on", "L4=inf", "--", "true"), "'L4=inf' is not PRODUCT=SPEED"),
        (("run", "--estimate", "inf", "--", "true"), "'inf' is not a length of time"),
        (("run", "--memory", "2 apples", "--", "true"), "'2 apples' is not a size"),
    ],
)
def test_a_number_that_is_none_is_a_mistake_of_the_user(fake, cli, words, says):
    code, out, err = cli(*words)
    assert (code, out) == (2, "") and says in err


#: verb, words after the name of a job or array, the body of the call.
ON_ARRAYS = [
    *((verb, (), b"") for verb in ("suspend", "freeze", "resume", "cancel", "checkpoint")),
    ("migrate", ("--to", "box"), b'{"node":"box"}'),
    ("scale", ("2",), b'{"devices":2}'),
]

ERRORS = [
    (errors.InvalidRequest, 2),
    (errors.NotFound, 3),
    (errors.Unauthenticated, 4),
    (errors.Forbidden, 4),
    (errors.Conflict, 5),
    (errors.QuotaExceeded, 5),
    (errors.Infeasible, 6),
    (errors.Unreachable, 7),
    (errors.TimedOut, 124),
    (errors.InternalError, 1),
]


@pytest.mark.parametrize(("kind", "code"), ERRORS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_errors_of_the_pool_are_three_lines_and_an_exit_code(fake, cli, kind, code, monkeypatch):
    monkeypatch.setattr("onefleet.wire.client.BACKOFF_S", (0, 0))
    fake.fail["/api/v1/status"] = kind("3 of 2 devices", why="there are two", hint="ask for 2")
    got, out, err = cli("status")
    assert (got, out) == (code, "")
    assert err == "error: 3 of 2 devices\nwhy: there are two\ntry: ask for 2\n"


def test_what_v1_says_twice_is_shown_once(fake, cli):
    said = "no model; none of that name; try: another"
    fake.fail["/v1/chat/completions"] = errors.NotFound(
        said, why="none of that name", hint="another"
    )
    err = cli("chat", "nope", "hello")[2]
    assert err == "error: no model\nwhy: none of that name\ntry: another\n"


def test_debug_adds_the_traceback(fake, cli):
    fake.fail["/api/v1/status"] = errors.NotFound("nothing here")
    code, _, err = cli("status", "--debug")
    assert code == 3 and "Traceback" in err and "error: nothing here" in err
    assert cli("--debug", "status")[2].count("Traceback") >= 1


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("ps", "--nonsense"),
        ("ps", "-o", "xml"),
        ("run",),
        ("run", "--devices", "3..1", "--", "true"),
        ("run", "--devices", "0", "--", "true"),
        ("deploy", "m", "--replicas", "0..0"),
        ("deploy", "m", "--tier", "gold"),
        ("tenant", "create", "x", "--reserve", "cpu"),
        ("run", "--share", "1.5", "--", "true"),
        ("run", "--share", "0", "--", "true"),
        ("run", "--workers", "0", "--", "true"),
        ("run", "--array", "2", "--watch", "--", "true"),
        ("run", "--deadline", "soon", "--", "true"),
        ("run", "--estimate", "-3m", "--", "true"),
        ("run", "--on", "V100=fast", "--", "true"),
        ("scale", "job-1", "many"),
        ("migrate", "job-1"),
        ("scale", "2"),
        ("suspend",),
        ("reservation", "create", "x", "0"),
        ("reservation", "create", "x", "1", "--within", "2d"),
        ("run", "--env", "novalue", "--", "true"),
        ("run", "--", "echo", os.fsdecode(b"\xff\xfe")),
    ],
    ids=lambda words: " ".join(words).encode("ascii", "replace").decode(),
)
def test_usage_errors_exit_2_in_three_lines(fake, cli, words):
    code, out, err = cli(*words)
    assert (code, out) == (2, "")
    assert [line.split(":")[0] for line in err.splitlines()] == ["error", "why", "try"]
    assert fake.calls == []


def test_a_group_without_a_command_shows_its_help_and_exits_2(cli):
    code, out, err = cli("model")
    assert (code, out) == (2, "")
    assert "Usage: onefleet model" in err and "remove" in err


def test_no_pool_is_exit_7_and_says_where_it_looked(cli, tmp_path):
    code, out, err = cli("ps", "--data-dir", str(tmp_path / "nowhere"))
    assert (code, out) == (7, "")
    assert "nowhere" in err and "onefleet up" in err


def test_a_dead_pool_is_exit_7(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("onefleet.wire.client.BACKOFF_S", (0, 0))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pool.json").write_text('{"url": "http://127.0.0.1:9"}')
    (tmp_path / "credentials").write_text("k")
    assert cli("ps")[0] == 7


def test_a_missing_key_is_exit_4(fake, cli, tmp_path):
    (tmp_path / "credentials").unlink()
    assert cli("ps")[0] == 4


def test_the_environments_key_wins(fake, cli, monkeypatch):
    monkeypatch.setenv("ONEFLEET_KEY", "ok-other")
    code, _, err = cli("ps")
    assert code == 4 and "not a key" in err


def test_run_sends_the_folder_that_holds_the_script(fake, cli, tmp_path, monkeypatch):
    code_module = pytest.importorskip("onefleet.registry.code", reason="code packaging")
    assert code_module
    work = tmp_path / "work"
    work.mkdir()
    (work / "train.py").write_text("print(1)\n")
    monkeypatch.chdir(work)
    assert cli("run", "--", "python", "train.py")[0] == 0
    assert [path for _, path, _ in fake.calls] == ["/api/v1/code", "/api/v1/jobs"]
    assert msgspec.json.decode(fake.calls[-1][2])["code"] == "sha256:c0de"
    fake.calls.clear()
    assert cli("run", "--no-code", "--", "python", "train.py")[0] == 0
    assert [path for _, path, _ in fake.calls] == ["/api/v1/jobs"]


@pytest.mark.parametrize(
    "words",
    [
        ("python", "train.py"),
        ("python", "-m", "lab.fit"),
        ("python", "-m", "lab"),
        ("sh", "-c", "python train.py --lr 0.1 | tee log"),
        ("prog", "--config=lab/a.yaml"),
        ("python", "größe und mehr.py"),
    ],
    ids=" ".join,
)
def test_a_command_that_names_a_file_takes_its_folder_along(words, tmp_path):
    (tmp_path / "lab").mkdir()
    for name in ("train.py", "größe und mehr.py", "lab/fit.py", "lab/__main__.py", "lab/a.yaml"):
        (tmp_path / name).write_text("")
    assert code_folder(words, tmp_path) == tmp_path
    assert code_folder(words, tmp_path / "lab") is None


def test_run_says_when_it_sends_no_code_for_a_script(fake, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (("python", "train.py"), ("sh", "-c", "python train.py > log")):
        assert f"none sent, as there is no train.py in {tmp_path}" in cli("run", "--", *words)[2]
    assert cli("run", "--no-code", "--", "prog", "train.py")[2] == ""
    assert cli("run", "--", "prog", "/opt/train.py")[2] == ""


def test_run_says_that_a_job_does_not_get_this_shells_environment(fake, cli, tmp_path, monkeypatch):
    own = tmp_path / "env" / "bin" / "prog"
    own.parent.mkdir(parents=True)
    own.touch(0o755)
    monkeypatch.setenv("PATH", str(own.parent), prepend=os.pathsep)
    assert cli("run", "--", "prog")[2] == ""
    (tmp_path / "env" / "pyvenv.cfg").touch()
    assert f"for this shell's, say {own}\n" in cli("run", "--", "prog")[2]
    assert cli("run", "--", str(own))[2] == ""


def test_run_passes_options_of_the_command_through(fake, cli):
    assert cli("run", "--devices", "1..2", "--env", "A=b=c", "--", "prog", "-o", "--debug")[0] == 0
    body = msgspec.json.decode(fake.calls[-1][2])
    assert body["command"] == ["prog", "-o", "--debug"]
    assert (body["devices_min"], body["devices_max"]) == (1, 2)
    assert body["environment"] == {"A": "b=c"}


@pytest.mark.parametrize("exit_code", [0, 7, 137])
def test_run_watch_returns_the_jobs_own_code(fake, cli, exit_code):
    ended = msgspec.structs.replace(
        fake.views["/api/v1/jobs/job-1"],
        phase="ended",
        outcome="succeeded" if exit_code == 0 else "failed",
        exit_code=exit_code,
        why_ended="it stopped",
    )
    fake.views["/api/v1/jobs/job-1"] = ended
    code, out, err = cli("run", "--watch", "--", "true")
    assert (code, out) == (exit_code, "step 1\nstep 2\n")
    assert err.index("a warning") < err.index("[ended]")
    assert ("failed: it stopped" in err) == (exit_code != 0)


def test_run_watch_tells_that_a_job_runs_before_what_it_printed(fake, cli):
    fake.ended = False
    _, _, err = cli("run", "--watch", "--timeout", "0", "--", "true")
    assert err.index("[running]") < err.index("a warning")


def test_run_watch_with_a_time_limit_leaves_the_job(fake, cli):
    fake.ended = False
    code, _, err = cli("run", "--watch", "--timeout", "0", "--", "true")
    assert code == 124
    assert "onefleet logs -f job-1" in err


def test_run_says_what_a_gang_needs(fake, cli):
    words = (
        "--workers",
        "8",
        "--devices",
        "2..8",
        "--on",
        "V100=0.5",
        "--on",
        "A100",
        "--zone",
        "z1",
    )
    terms = ("--after", "prep", "--deadline", "+2h", "--estimate", "40m", "--checkpoint-every", "0")
    assert cli("run", *words, *terms, "--", "prog")[0] == 0
    body = msgspec.json.decode(fake.calls[-1][2])
    assert (body["workers"], body["devices_min"], body["devices_max"]) == (8, 2, 8)
    assert body["products"] == {"V100": 500, "A100": 1000} and body["zones"] == ["z1"]
    assert (body["after"], body["estimate_ms"]) == (["prep"], 2_400_000)
    assert body["checkpoint_every_ms"] == 0
    assert 7_100_000 < body["deadline"] - time.time() * 1000 < 7_300_000
    assert cli("run", "--workers", "3", "--share", "1", "--", "prog")[0] == 0
    body = msgspec.json.decode(fake.calls[-1][2])
    assert (body["devices_min"], body["devices_max"], body["device_milli"]) == (3, 3, 1000)


def test_run_of_an_array_prints_an_id_a_line(fake, cli):
    view = fake.views["/api/v1/jobs/job-1"]
    fake.made["/api/v1/arrays"] = api.Page((view, msgspec.structs.replace(view, id="job-2")))
    assert cli("run", "--array", "2", "--", "prog") == (0, "job-1\njob-2\n", "")
    assert msgspec.json.decode(fake.calls[-1][2])["size"] == 2


@pytest.mark.parametrize(("verb", "more", "body"), ON_ARRAYS, ids=[v for v, _, _ in ON_ARRAYS])
def test_a_verb_on_an_array_says_what_became_of_each_job(fake, cli, verb, more, body):
    job = fake.views["/api/v1/jobs/job-1"]
    fake.made[f"/api/v1/arrays/sweep/{verb}"] = api.ArrayAnswer(
        name="sweep",
        data=(job, msgspec.structs.replace(job, id="job-2")),
        ended=2,
        refused=(
            api.Refusal(id="job-3", name="sweep-3", what="sweep-3 cannot", why="it is small"),
            api.Refusal(id="job-4", name="sweep-4", what="sweep-4 is busy", why=""),
        ),
    )
    code, out, err = cli(verb, "sweep", *more)
    assert (code, out) == (0, "job-1\njob-2\n")
    assert err == (
        f"sweep: {verb} asked of 2 of 6 jobs; 2 had ended already; 2 cannot:\n"
        "  sweep-3 cannot; it is small\n"
        "  sweep-4 is busy\n"
    )
    assert [sent for _, path, sent in fake.calls if "/arrays/" in path] == [body]
    assert cli(verb, "job-1", "sweep", *more)[1] == "job-1\njob-1\njob-2\n"
    assert cli(verb, "sweep", *more, "-o", "json")[1].count('"id"') == 2
    code, out, err = cli(verb, "nothing", "job-1", *more)
    assert (code, out) == (3, "job-1\n") and f"/api/v1/jobs/nothing/{verb}" in err


def test_a_missing_node_is_told_from_a_missing_array(fake, cli):
    array = errors.NotFound("there is no job", why="that is an array")
    fake.fail["/api/v1/jobs/sweep/migrate"] = array
    fake.fail["/api/v1/arrays/sweep/migrate"] = errors.NotFound("there is no node", param="node")
    code, out, err = cli("migrate", "sweep", "job-1", "--to", "nowhere")
    assert (code, out, err) == (3, "job-1\n", "error: there is no node\n")


def test_one_job_that_cannot_be_asked_keeps_no_other_from_it(fake, cli):
    job = fake.views["/api/v1/jobs/job-1"]
    fake.made["/api/v1/jobs/job-2/cancel"] = msgspec.structs.replace(job, id="job-2")
    fake.fail["/api/v1/jobs/old/cancel"] = errors.Conflict("it has ended already")
    code, out, err = cli("cancel", "job-1", "old", "none", "job-2")
    assert (code, out) == (5, "job-1\njob-2\n")
    said = [line for line in err.splitlines() if line.startswith("error")]
    assert said == ["error: no /api/v1/jobs/none/cancel", "error: it has ended already"]


@pytest.mark.parametrize("verb", ["suspend", "freeze"])
@pytest.mark.parametrize("phase", ["pending", "running"])
def test_a_job_that_has_not_begun_has_nothing_to_be_waited_for(fake, cli, verb, phase):
    job = msgspec.structs.replace(fake.views["/api/v1/jobs/job-1"], phase=phase)
    fake.views["/api/v1/jobs/job-1"] = job
    code = cli(verb, "job-1", "--wait", "--timeout", "0")[0]
    assert code == (0 if phase == "pending" else 124)


def test_scale_and_migrate_say_what_is_wanted(fake, cli):
    assert cli("scale", "job-1", "auto")[0] == 0
    assert msgspec.json.decode(fake.calls[-1][2]) == {"devices": None}
    assert cli("scale", "job-1", "3")[0] == 0
    assert msgspec.json.decode(fake.calls[-1][2]) == {"devices": 3}
    assert cli("migrate", "job-1", "--to", "box", "--wait")[0] == 0
    posted = [body for verb, path, body in fake.calls if path.endswith("/migrate")]
    assert msgspec.json.decode(posted[-1]) == {"node": "box"}


def test_a_checkpoint_that_is_waited_for_is_one_that_is_newer(fake, cli):
    view = fake.views["/api/v1/jobs/job-1"]
    assert cli("checkpoint", "job-1", "--wait", "--timeout", "0")[0] == 124
    fake.views["/api/v1/jobs/job-1"] = msgspec.structs.replace(view, saved_at=view.submitted_at)
    assert cli("checkpoint", "job-1", "--wait", "--timeout", "0")[0] == 0


@pytest.mark.parametrize("verb", ["suspend", "freeze", "resume", "cancel", "checkpoint"])
def test_job_verbs(fake, cli, verb):
    assert cli(verb, "job-1") == (0, "job-1\n", "")
    assert cli(verb, "job-1", "job-1") == (0, "job-1\njob-1\n", "")
    assert fake.calls[-1][:2] == ("POST", f"/api/v1/jobs/job-1/{verb}")
    assert cli(verb, "job-9")[0] == 3


def test_a_wait_that_takes_too_long_is_exit_124(fake, cli):
    code, _, err = cli("suspend", "job-1", "--wait", "--timeout", "0")
    assert code == 124
    assert "train to be suspended; it is running\n" in err


@pytest.mark.parametrize(
    ("want", "phase", "moving_to", "code"),
    [
        ("run", "running", (), 0),
        ("run", "running", ("n2",), 124),
        ("run", "suspended", ("n2",), 124),  # it will run there once there is room
        ("suspend", "suspended", ("n2",), 0),  # it goes on there when it is resumed
        ("suspend", "saving", ("n2",), 124),
        ("freeze", "frozen", ("n2",), 0),
        ("run", "ended", (), 0),
    ],
)
def test_a_move_is_waited_for_where_it_can_happen(fake, cli, want, phase, moving_to, code):
    job = fake.views["/api/v1/jobs/job-1"]
    view = msgspec.structs.replace(job, want=want, phase=phase, moving_to=moving_to)
    fake.views["/api/v1/jobs/job-1"] = fake.made["/api/v1/jobs/job-1/migrate"] = view
    assert cli("migrate", "job-1", "--to", "n2", "--wait", "--timeout", "0")[0] == code


@pytest.mark.parametrize(("node", "code"), [("n1", 1), ("n2", 0)])
def test_a_job_that_came_back_has_not_moved(fake, cli, node, code):
    job = msgspec.structs.replace(fake.views["/api/v1/jobs/job-1"], want="run", phase="running")
    asked = msgspec.structs.replace(job, devices=("n1/0",), moving_to=("n2",))
    fake.made["/api/v1/jobs/job-1/migrate"] = asked
    fake.views["/api/v1/jobs/job-1"] = msgspec.structs.replace(job, devices=(f"{node}/0",))
    found, _, err = cli("migrate", "job-1", "--to", "n2", "--wait")
    assert found == code
    assert ("train did not move to n2\nwhy: it could not go on there, so it runs on n1" in err) is (
        code == 1
    )


def test_a_job_that_takes_too_long_keeps_none_that_is_there_from_being_told(fake, cli):
    job = fake.views["/api/v1/jobs/job-1"]
    for name, phase in (("job-2", "suspended"), ("job-3", "saving")):
        view = msgspec.structs.replace(job, id=name, name=name, phase=phase)
        fake.views[f"/api/v1/jobs/{name}"] = fake.made[f"/api/v1/jobs/{name}/suspend"] = view
    words = ("suspend", "job-1", "job-2", "job-3", "--wait", "--timeout", "0")
    code, out, err = cli(*words)
    assert (code, out) == (124, "job-2\n")
    said = sorted(line for line in err.splitlines() if line.startswith("error"))
    assert [line.split(";")[0] for line in said] == [
        "error: waited 0 s for job-3 to be suspended",
        "error: waited 0 s for train to be suspended",
    ]


def test_the_time_to_wait_runs_once_for_all_jobs(fake):
    job = fake.views["/api/v1/jobs/job-1"]
    looks, now = [], [100.0]

    class Pool:
        """Each look at a job takes a second; `quick` is saved at once, others never."""

        def get(self, path, kind):
            now[0] += 1
            looks.append(path.rpartition("/")[2])
            return views[looks[-1]]

    views = {
        name: msgspec.structs.replace(job, id=name, name=name, phase=phase)
        for name, phase in (("slow", "saving"), ("quick", "suspended"), ("stuck", "saving"))
    }
    done, late = all_reached(
        Pool(), list(views.values()), "suspend", 10.0,
        clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s),
    )  # fmt: skip
    assert [job.id for job in done] == ["quick"]
    assert [error.what.split(" to be ")[0] for error in late] == [
        "waited 10 s for slow",
        "waited 10 s for stuck",
    ]
    assert looks == ["slow"] * 9 + ["quick", "stuck"]


def test_logs_keep_the_streams_apart(fake, cli):
    assert cli("logs", "job-1") == (0, "step 1\nstep 2\n", "a warning\n")
    assert cli("logs", "job-1", "--tail", "1", "--stream", "stdout") == (0, "step 2\n", "")
    body = json.loads(cli("logs", "job-1", "-o", "json")[1])
    assert (body["stdout"], body["stderr"]) == ("step 1\nstep 2\n", "a warning\n")
    lines = [json.loads(line) for line in cli("logs", "job-1", "-o", "jsonl")[1].splitlines()]
    assert lines[0] == {"stream": "stdout", "line": "step 1"}


def test_spares_are_set_by_kind_and_what_cannot_be_kept_is_said(fake, cli):
    code, out, err = cli("spare", "set", "2", "--kind", "gpu")
    assert (code, out, err) == (0, "gpu\n", "two nodes: 1 is kept at most\n")
    assert json.loads(fake.calls[-1][2]) == {"nodes": 2, "device_kind": "gpu"}
    assert cli("spare", "set", "-1")[0] == 2 and cli("spare", "set", "x")[0] == 2


def test_removing_says_the_impact(fake, cli):
    assert cli("undeploy", "smollm2")[2].startswith("ends smollm2: 1 replica, ")
    assert "in use by 1 deployment\n" in cli("model", "remove", "demo:smollm2")[2]
    assert cli("key", "revoke", "key-1")[:2] == (0, "key-1\n")
    assert cli("key", "revoke", "key-9")[0] == 3
    assert "all share them" in cli("reservation", "remove", "res-1")[2]
    deleted = [path for verb, path, _ in fake.calls if verb == "DELETE"]
    assert deleted == [
        "/api/v1/deployments/smollm2",
        "/api/v1/models/demo:smollm2",
        "/api/v1/keys/key-1",
        "/api/v1/reservations/res-1",
    ]


CHUNK = '{"choices":[{"delta":{"content":"%s"},"finish_reason":null}]}'
USAGE = (
    '{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,'
    '"prompt_tokens_details":{"cached_tokens":4}}}'
)


def test_chat_streams_and_prints_its_speed(fake, cli):
    fake.chat = [CHUNK % "Hel", CHUNK % "lo", USAGE, "[DONE]"]
    code, out, err = cli("chat", "smollm2", "say", "hello")
    assert (code, out) == (0, "Hello\n")
    assert "first token" in err and "9 tokens in (4 cached), 2 out" in err
    sent = msgspec.json.decode(fake.calls[-1][2])
    assert sent["messages"] == [{"role": "user", "content": "say hello"}]
    assert json.loads(cli("chat", "smollm2", "x", "-o", "json")[1])["text"] == "Hello"


def test_chat_takes_its_prompt_from_a_pipe(fake, cli, monkeypatch):
    import io

    fake.chat = [CHUNK % "Hi", USAGE, "[DONE]"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe\n"))
    assert cli("chat", "smollm2")[:2] == (0, "Hi\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli("chat", "smollm2")[0] == 2


def test_an_answer_that_breaks_off_is_never_taken_for_whole(fake, cli):
    fake.chat = [CHUNK % "Hel"]
    assert cli("chat", "smollm2", "x")[0] == 1
    fake.chat = [CHUNK % "Hel", '{"error":{"message":"the engine died","code":"upstream_failed"}}']
    code, _, err = cli("chat", "smollm2", "x")
    assert code == 1 and "the engine died" in err


@pytest.mark.parametrize(("code", "exit_code"), [("not_found", 3), ("storage_full", 1), ("x", 1)])
def test_an_error_while_a_model_is_added(fake, cli, code, exit_code):
    from onefleet.wire.api import ErrorDetail

    fake.model_error = ErrorDetail(
        message="no such file", type="caller", param="source", code=code, why="w", hint="h"
    )
    got, out, err = cli("model", "add", "/nowhere.gguf")
    assert (got, out, err) == (exit_code, "", "error: no such file\nwhy: w\ntry: h\n")


def test_a_missing_option_says_what_it_is_for(cli):
    _, _, err = cli("agent", "--name", "box")
    assert err.splitlines()[:2] == [
        "error: Missing option '--data-dir'",
        "why: onefleet agent needs it: Where this node keeps its workers; no other's folder.",
    ]


def test_a_node_that_cannot_save_jobs_is_told_how_to(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("ONEFLEET_CRIU", str(tmp_path / "none"))
    words = ("--name", "box", "--cpus", "4095", "--data-dir", str(tmp_path / "a b"))
    monkeypatch.setenv("ONEFLEET_KEY", "k")
    _, _, err = cli("agent", *words)
    assert f"onefleet doctor --fix --data-dir '{tmp_path}/a b'" in err
    assert "this machine has no cpu 4095" in err


def test_only_a_reservation_that_there_is_is_removed(fake, cli):
    code, out, err = cli("reservation", "remove", "res-9")
    assert (code, out) == (3, "") and 'there is no reservation "res-9"' in err
    assert not [call for call in fake.calls if call[0] == "DELETE"]
    assert "ends the reservation of " in cli("reservation", "remove", "res-1")[2]
