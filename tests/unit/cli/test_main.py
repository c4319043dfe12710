"""The entry point: help and version without imports, and the table of commands kept honest."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from onefleet import __version__
from onefleet.cli.main import COMMANDS, help_text

HEAVY = ("click", "rich", "msgspec", "sqlalchemy", "starlette", "jinja2", "asyncio", "http.client")
NAMES = [name for _, commands in COMMANDS for name, _, _ in commands]
#: What the command line promises to have.
PROMISED = (
    *("up", "down", "status", "model", "deploy", "undeploy", "chat", "run", "ps", "logs"),
    *("suspend", "resume", "cancel", "why", "tenant", "key", "node", "device", "top", "doctor"),
    *("tour", "sim"),
)


def loaded_by(*words: str) -> tuple[int, str, set[str]]:
    script = (
        "import sys; from onefleet.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "print(*sorted(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, set(done.stderr.split())


@pytest.mark.parametrize("words", [("--help",), ("--version",), ()], ids=" ".join)
def test_help_and_version_import_nothing_heavy(words):
    code, out, modules = loaded_by(*words)
    assert code == 0 and out
    assert modules.isdisjoint(HEAVY), modules.intersection(HEAVY)


def test_a_commands_help_imports_no_server_and_no_rich():
    code, out, modules = loaded_by("ps", "--help")
    assert code == 0 and "Usage: onefleet ps" in out
    assert modules.isdisjoint(("rich", "sqlalchemy", "starlette", "jinja2", "uvicorn", "psutil"))


def test_version():
    assert loaded_by("--version")[1] == f"onefleet {__version__}\n"


def test_every_promised_command_is_in_the_help():
    assert set(PROMISED) <= set(NAMES)
    for name in NAMES:
        assert f"\n  {name} " in help_text()


@pytest.mark.parametrize("name", NAMES)
def test_every_command_loads_and_takes_the_data_dir(name):
    import click

    from onefleet.cli.boundary import root

    context = click.Context(root, info_name="onefleet")
    found = root.get_command(context, name)
    assert found is not None, name
    leaves = [found]
    if isinstance(found, click.Group):
        leaves = [found.commands[n] for n in sorted(found.commands)]
    for leaf in leaves:
        assert leaf.help, f"{name} {leaf.name} says nothing about itself"
        if name != "sim":
            assert "data_dir" in {p.name for p in leaf.params}, f"{name} {leaf.name}"


def test_a_closed_pipe_is_quiet(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "onefleet.cli.main", "ps", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert done.stderr == ""
