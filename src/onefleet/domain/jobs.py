"""Jobs: any command, with its code folder packaged by content."""

from __future__ import annotations

from dataclasses import dataclass

from onefleet.domain.ids import NO_GENERATION, Digest, Generation, Instant, TenantId, WorkId


@dataclass(frozen=True, slots=True)
class Job:
    """What to run; immutable once submitted. Its scheduling facts are in the Work of this id.

    code: digest of the packaged code folder, unpacked as the job's working folder.
    network: "cell" (loopback of its own), "gang" (its workers and nobody else) or "host".
    array, index: the array that it is an element of, and its number there.
    """

    id: WorkId
    name: str
    tenant_id: TenantId
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    code: Digest | None
    network: str
    submitted_at: Instant
    array: str = ""
    index: int = 0
    generation: Generation = NO_GENERATION
