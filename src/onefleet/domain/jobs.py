"""Jobs: any command, with its code folder packaged by content."""

from __future__ import annotations

from dataclasses import dataclass

from onefleet.domain.ids import NO_GENERATION, Digest, Generation, Instant, TenantId, WorkId


@dataclass(frozen=True, slots=True)
class Job:
    """What to run; immutable once submitted. Its scheduling facts are in the Work of this id.

    code: digest of the packaged code folder, unpacked as the job's working folder.
    network: "cell" (loopback of its own) or "host".
    """

    id: WorkId
    name: str
    tenant_id: TenantId
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    code: Digest | None
    network: str
    submitted_at: Instant
    generation: Generation = NO_GENERATION
