"""What can be said of a machine's GPUs before anything runs on them; the agent's side."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence

from onefleet.domain.errors import Unsupported, UpstreamFailed
from onefleet.drivers.device_cut import Ask, Verb
from onefleet.drivers.device_lines import to_line
from onefleet.drivers.held_devices import CANNOT, Node, check

_LIMIT_S = 60.0


def look(command: Sequence[str], gpus: Sequence[str]) -> Node:
    """The driver, before anything runs on these GPUs. Raises OnefleetError where it cannot save.

    command: starts a `device_calls`.
    """
    lines = [{"verb": "node"}, to_line(Ask(Verb.STATE, (os.getpid(),)))]
    try:
        said = subprocess.run(
            list(command),
            input="".join(f"{json.dumps(line)}\n" for line in lines),
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        ).stdout.splitlines()
        facts, state = (json.loads(line) for line in said)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise UpstreamFailed(CANNOT, why=f"their driver cannot be asked: {error}") from error
    for answer in (facts, state):
        if failed := answer.get("failed"):
            raise Unsupported(CANNOT, why=str(failed), hint=str(answer.get("hint", "")))
    node = Node(facts)
    check(node, gpus[:1])
    return node
