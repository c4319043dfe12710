"""What an ordinary user is told where it cannot have a cell, and where a save meets a limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from onefleet.drivers.rights import ROOT, USER, limit_in, no_cell


def settings(root: Path, **values: str) -> str:
    for name, value in values.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return str(root)


@pytest.mark.parametrize(
    ("name", "forbids", "allows", "remedy"),
    [
        ("user/max_user_namespaces", "0", "96365", "user.max_user_namespaces=10000"),
        ("kernel/unprivileged_userns_clone", "0", "1", "kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "0",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ],
)
def test_the_setting_that_forbids_a_cell_is_named(
    tmp_path: Path, name: str, forbids: str, allows: str, remedy: str
) -> None:
    key = name.replace("/", "__")
    error = no_cell(USER, "Operation not permitted", settings(tmp_path, **{key: forbids}))
    assert f"{name.replace('/', '.')} is {forbids}" in error.why
    assert "Operation not permitted" in error.why
    assert f"sysctl {remedy}" in error.hint
    error = no_cell(USER, "Operation not permitted", settings(tmp_path, **{key: allows}))
    assert name.replace("/", ".") not in error.why + error.hint


def test_a_hidden_proc_is_named(tmp_path: Path) -> None:
    error = no_cell(USER, "mount proc on /proc/proc: Operation not permitted", str(tmp_path))
    assert "parts of /proc are hidden" in error.why
    assert "/proc" in error.hint


def test_root_is_told_nothing_of_user_namespaces(tmp_path: Path) -> None:
    forbidden = settings(tmp_path, user__max_user_namespaces="0")
    error = no_cell(ROOT, "unshare 0x20000000: No space left on device", forbidden)
    assert "user" not in error.why
    assert "root" in error.hint


def test_a_limit_is_found_in_crius_log() -> None:
    log = (
        "Warn  (criu/x.c:1): inotify is nice\n"
        "Error (criu/proc_parse.c:376): Can't open mapped [/dev/shm/sem.a (deleted)]: No file\n"
    )
    limit = limit_in(USER, log)
    assert limit is not None
    assert "deleted files" in limit.what
    assert limit_in(USER, "Error (criu/proc_parse.c:376): Can't open mapped [/lib/a.so]\n") is None
    assert limit_in(ROOT, log) is None
