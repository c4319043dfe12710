"""Writes docs/cli.md from the commands themselves: ``python -m onefleet.cli.reference``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from onefleet.cli.boundary import root
from onefleet.cli.main import COMMANDS
from onefleet.cli.options import FORMAT

HEAD = """\
# The command line

Written by `python -m onefleet.cli.reference > docs/cli.md`; a test compares.

Every command takes `--data-dir` and finds the running pool through it (`onefleet agent` keeps its
node there), and `--debug`, which adds the traceback to an error. Commands that show something take
`-o table|wide|json|yaml|jsonl|name`, `-q` (ids only) and `--watch` (a terminal is redrawn, in a
pipe each change is a line of JSON).
Commands that change something print the id, or with `-o json` the object. Data goes to stdout,
everything else to stderr.

Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 permission, 5 conflict or quota, 6 infeasible
(it can never run), 7 unreachable, 124 timeout, 130 interrupted; `run --watch` returns the job's
own code.

Environment: `ONEFLEET_DATA_DIR`, `ONEFLEET_KEY`, `ONEFLEET_CRIU`, `ONEFLEET_IMAGE_SHARE` (a folder
that outlives the machine, for saved images), `XDG_DATA_HOME`, `HF_ENDPOINT`, `HF_TOKEN`,
`NO_COLOR`, `FORCE_COLOR`, `CLICOLOR`, `TERM`, `COLUMNS`.
"""


def reference() -> str:
    """The whole page."""
    lines = [HEAD]
    context = click.Context(root, info_name="onefleet")
    for section, commands in COMMANDS:
        lines.append(f"## {section.capitalize()}\n")
        for name, _, _ in commands:
            command = root.get_command(context, name)
            assert command is not None, name
            for path, leaf in _leaves(f"onefleet {name}", command):
                lines += _section(path, leaf)
    return "\n".join(lines)


def _leaves(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _leaves(f"{path} {name}", command.commands[name])
    else:
        yield path, command


def _section(path: str, command: click.Command) -> list[str]:
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    words = " ".join(p.make_metavar(click.Context(command)) for p in arguments)
    lines = [f"### `{path}{' ' if words else ''}{words}`\n", f"{_text(command.help or '')}\n"]
    shared = ["debug"]
    if any(p.name == "output" and p.type is FORMAT for p in command.params):
        shared += ["output", "quiet"]
    if any(p.name == "quiet" for p in command.params):
        shared.append("watch")
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    for option in sorted(options, key=lambda o: o.opts[-1]):
        if option.name in shared or (option.name == "data_dir" and not option.required):
            continue
        help_ = f": {_text(option.help)}" if option.help else ""
        help_ += " (required)" if option.required else ""
        lines.append(f"* `{_signature(option)}`{help_}{_default(option)}")
    return [*lines, ""]


def _signature(option: click.Option) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    return f"{names} {option.make_metavar(click.Context(click.Command('x')))}"


def _default(option: click.Option) -> str:
    if not option.show_default or option.default is None or option.is_flag:
        return ""
    return f" (default: {option.default})"


def _text(text: str) -> str:
    return " ".join(text.replace("\b", "").split())


if __name__ == "__main__":
    sys.stdout.write(reference())
