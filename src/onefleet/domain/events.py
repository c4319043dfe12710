"""What happened: the append-only record that people and programs read back."""

from __future__ import annotations

from dataclasses import dataclass

from onefleet.domain.ids import Instant


@dataclass(frozen=True, slots=True)
class Event:
    """One fact. subject: the id of what it is about. kind: dotted, as "work.suspended"."""

    sequence: int  # given by the store; rises without gaps
    at: Instant
    kind: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one key used on one deployment in one minute; metered by the gateway."""

    minute: Instant  # the start of the minute
    tenant_id: str
    key_id: str
    deployment_id: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Held:
    """Device time in one minute. label: "standard.job" (tier and kind of the holder), "capacity"
    (what there was to hold), or "suspends" and "resumes", which are counts."""

    minute: Instant  # the start of the minute
    label: str
    amount: int  # device-milliseconds; a count for the last two labels
