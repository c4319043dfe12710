"""What a supervisor and the process that makes its calls on devices say to each other, as JSON.

Apart from `device_calls`, so that a supervisor need not load what that process needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onefleet.drivers.device_checkpoint import DeviceErrorKind, DeviceState
from onefleet.drivers.device_cut import Answer, Answers, Ask, Verb

#: How long a call may take that copies device memory; as long as criu may take.
COPY_LIMIT_S = 600.0
#: How long any other call may take, besides the limit that it was given.
CALL_LIMIT_S = 15.0


def to_line(ask: Ask) -> dict[str, Any]:
    """An Ask as its line."""
    return {
        "verb": ask.verb,
        "pids": ask.pids,
        "limit_ms": ask.limit_ms,
        "devices": dict(ask.devices),
    }


def from_line(line: Mapping[str, Any]) -> Ask:
    return Ask(Verb(line["verb"]), tuple(line["pids"]), line["limit_ms"], line["devices"])


def told(answers: Answers) -> dict[str, dict[str, str]]:
    """Answers as their line."""
    fields = {pid: answer._asdict() for pid, answer in answers.items()}
    return {str(pid): {k: v for k, v in f.items() if v} for pid, f in fields.items()}


def heard(line: Mapping[str, Mapping[str, str]]) -> dict[int, Answer]:
    """The Answers of a line."""
    return {
        int(pid): Answer(
            DeviceState(said["state"]) if "state" in said else None,
            DeviceErrorKind(said["error"]) if "error" in said else None,
            said.get("text", ""),
        )
        for pid, said in line.items()
    }


def limit_s(ask: Ask) -> float:
    """How long to wait for the calls of an Ask."""
    if ask.verb in (Verb.CHECKPOINT, Verb.RESTORE):
        return COPY_LIMIT_S
    return ask.limit_ms / 1000 + CALL_LIMIT_S
