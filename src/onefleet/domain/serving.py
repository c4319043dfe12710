"""Models, deployments and replicas. Model > Revision (digest) > Deployment > Replica."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from onefleet.domain.ids import (
    NO_GENERATION,
    DeploymentId,
    Digest,
    Generation,
    Instant,
    ModelId,
    TenantId,
    WorkId,
)
from onefleet.domain.tiers import Tier


class Purpose(StrEnum):
    """What a model is for; it decides which /v1 routes it answers."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a memory plan needs to know of a model. Sizes in bytes; lengths in tokens."""

    architecture: str
    parameters: int
    layers: int
    context_length: int
    embedding_length: int
    heads_kv: int
    head_length: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the pool has. The revision is the digest of its weights file."""

    id: ModelId  # the name that people use: "demo:smollm2"
    family: str
    purpose: Purpose
    revision: Digest
    format: str  # "gguf", "huggingface" or "simulated"
    path: str  # where the weights lie, absolute
    size_bytes: int
    shape: ModelShape
    source: str  # where it came from: "demo:smollm2", "/home/me/x.gguf", "hf:org/name"
    licence: str  # SPDX where the file says, else "unknown"
    created_at: Instant
    generation: Generation = NO_GENERATION


class DeploymentKind(StrEnum):
    PROVISIONED = "provisioned"
    PAYGO = "paygo"
    DEDICATED = "dedicated"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A tenant's intent to have a model served. `name` is what clients put into "model".

    replicas_wanted is the autoscaler's last word, within min..max. devices_per_replica counts
    devices of the node's serving kind. context_length is in tokens for each slot.
    """

    id: DeploymentId
    name: str
    tenant_id: TenantId
    model_id: ModelId
    kind: DeploymentKind
    tier: Tier
    engine: str  # "llamacpp" or "simulated"
    replicas_min: int
    replicas_max: int
    replicas_wanted: int
    devices_per_replica: int
    slots: int  # requests that one replica answers at once
    context_length: int
    memory_bytes: int  # of one replica, by the memory plan
    created_at: Instant
    removed_at: Instant | None = None  # set by undeploy; gone when its replicas are
    generation: Generation = NO_GENERATION


@dataclass(frozen=True, slots=True)
class Replica:
    """One running copy of a deployment's model. Its scheduling facts are in the Work of this id."""

    id: WorkId
    deployment_id: DeploymentId
    revision: Digest
    created_at: Instant
    host: str = ""  # where its engine listens; empty until it is ready
    port: int = 0
    generation: Generation = NO_GENERATION
