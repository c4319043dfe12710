"""The entry point of `onefleet`, and the table of its commands.

`--version` and the first page of help are answered here, before click is imported: a person asks
for them most often, and importing click alone costs seven times a bare Python. This module
therefore imports next to nothing.
"""

from __future__ import annotations

import sys

from onefleet import __version__

#: section -> (command, "module:attribute" below onefleet.cli, one line of help)
COMMANDS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "the pool",
        (
            ("up", "up:up", "Start the pool on this machine and keep it running."),
            ("down", "down:down", "Stop the pool that runs on this data folder."),
            ("status", "status:status", "One look at the whole pool."),
            ("top", "top:top", "Devices and what holds them, live."),
            (
                "doctor",
                "doctor:doctor",
                "Prove what this machine can do, and how to mend the rest.",
            ),
            ("tour", "tour:tour", "See it work: chat, train, suspend, resume, in under 3 minutes."),
        ),
    ),
    (
        "serving",
        (
            ("model", "model:model", "Models of the pool: add, list, show, remove."),
            ("deployment", "deployment:deployment", "What is served: list, show."),
            ("deploy", "deploy:deploy", "Serve a model under a name."),
            ("undeploy", "undeploy:undeploy", "Stop serving a deployment."),
            ("chat", "chat:chat", "Talk to a deployment."),
        ),
    ),
    (
        "jobs",
        (
            ("run", "run:run", "Run any command as a job."),
            ("ps", "ps:ps", "Jobs and what they do."),
            ("logs", "logs:logs", "What a job printed."),
            ("suspend", "suspend:suspend", "Save a job's state and free its memory and devices."),
            ("freeze", "freeze:freeze", "Let a job stand still; its memory stays."),
            ("resume", "resume:resume", "Let a suspended or frozen job go on where it was."),
            ("cancel", "cancel:cancel", "End a job."),
            ("migrate", "migrate:migrate", "Move a job to another node, where it goes on."),
            ("scale", "scale:scale", "Give a job more or fewer devices while it runs."),
            ("checkpoint", "checkpoint:checkpoint", "Save a job's state while it runs on."),
            ("why", "why:why", "Why a job or deployment is where it is: every blocker by name."),
            ("ledger", "ledger:ledger", "What jobs were promised, and how it is kept."),
            ("receipts", "receipts:receipts", "When a job had to give way, to whom, at what cost."),
            ("whatif", "whatif:whatif", "The past with another policy, more devices, team walls."),
        ),
    ),
    (
        "people and machines",
        (
            ("tenant", "tenant:tenant", "Tenants of the pool: create, list."),
            ("key", "key:key", "API keys: create, list, revoke."),
            (
                "reservation",
                "reservation:reservation",
                "Devices guaranteed to a tenant: create, list, remove.",
            ),
            ("spare", "spare:spare", "Nodes kept empty for work that fails over: set, list."),
            ("agent", "agent:agent", "Be a further node of a pool, here or on another machine."),
            ("node", "node:node", "Machines of the pool: list, drain, undrain."),
            ("device", "device:device", "Devices and their holders: list, cordon, uncordon."),
        ),
    ),
    (
        "without a pool",
        (("sim", "sim:sim", "Run the same planner against a simulated world."),),
    ),
)

USAGE = "Usage: onefleet [--debug] [--color WHEN] COMMAND [ARGS]..."


def help_text() -> str:
    """The first page: every command by section with its line."""
    width = max(len(name) for _, commands in COMMANDS for name, _, _ in commands) + 2
    lines = [USAGE, "", "  One shared AI pool: serves LLMs and runs jobs on the same devices.", ""]
    for section, commands in COMMANDS:
        lines.append(f"{section.capitalize()}:")
        lines += [f"  {name:<{width}}{line}" for name, _, line in commands]
        lines.append("")
    lines += [
        "Options:",
        "  --version        Print the version.",
        "  --color WHEN     auto (default), always or never.",
        "  --debug          Add the traceback to an error.",
        "  -h, --help       This page; `onefleet COMMAND --help` for a command.",
        "",
        "First steps: onefleet up, then onefleet tour.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run one command line; return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if words == ["--version"]:
        sys.stdout.write(f"onefleet {__version__}\n")
        return 0
    if not words or words[0] in ("--help", "-h", "help"):
        sys.stdout.write(help_text())
        return 0
    from onefleet.cli.boundary import run_command

    return run_command(words)


if __name__ == "__main__":
    sys.exit(main())
