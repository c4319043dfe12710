"""Records with every field set to something that tells it from its neighbours."""

from __future__ import annotations

from onefleet.domain.fleet import CheckpointMode, Device, DeviceKind, Node, NodeState
from onefleet.domain.ids import (
    DeploymentId,
    DeviceId,
    Digest,
    Generation,
    ImageId,
    Instant,
    KeyId,
    ModelId,
    NodeId,
    ReservationId,
    TenantId,
    WorkId,
)
from onefleet.domain.jobs import Job
from onefleet.domain.serving import (
    Deployment,
    DeploymentKind,
    Model,
    ModelShape,
    Purpose,
    Replica,
)
from onefleet.domain.tenancy import ApiKey, Reservation, Role, Tenant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Demand, Image, Outcome, Phase, Slot, Want, Work, WorkKind
from onefleet.store.base import Record


def tenant(name: str = "default") -> Tenant:
    return Tenant(TenantId(name), TenantId("parent"), 1_000, None, Instant(7))


def image(name: str, ran_ms: int) -> Image:
    return Image(ImageId(name), (NodeId("node-1"), NodeId("node-2")), 5_000, Instant(60), ran_ms)


def work(name: str = "job-1") -> Work:
    return Work(
        id=WorkId(name),
        kind=WorkKind.JOB,
        tenant_id=TenantId("default"),
        tier=Tier.BASIC,
        demand=Demand(DeviceKind.GPU, 1, 2, 2, 1 << 40),
        want=Want.SUSPEND,
        phase=Phase.ENDED,
        submitted_at=Instant(10),
        phase_since=Instant(11),
        suspendable=True,
        epoch=Generation(3),
        placement=(Slot(NodeId("node-1"), (DeviceId("node-1/gpu0"), DeviceId("node-1/gpu1"))),),
        image=image("job-1.3", 12),
        attempts=2,
        suspends=4,
        ran_ms=100,
        lost_ms=20,
        reason='quotes " and \\ and ünïcode ☃',
        outcome=Outcome.FAILED,
        exit_code=137,
        why_ended="killed",
        started_at=Instant(12),
        ended_at=Instant(13),
        image_before=image("job-1.2", 6),
        failures=1,
        not_before=Instant(99),
    )


def node(name: str = "node-1") -> Node:
    device = Device(DeviceId(f"{name}/cpu0"), DeviceKind.CPU, 0, "AMD EPYC", 1 << 33, True)
    return Node(
        NodeId(name),
        "host",
        NodeState.DRAINING,
        (device,),
        1 << 34,
        CheckpointMode.COOPERATIVE,
        "no criu",
        Instant(50),
        Instant(40),
    )


def one_of_each() -> tuple[Record, ...]:
    """A record of every type that a store keeps."""
    shape = ModelShape("llama", 135_000_000, 30, 8192, 576, 3, 64)
    digest = Digest("sha256:" + "ab" * 32)
    return (
        tenant(),
        Reservation(ReservationId("res-1"), TenantId("default"), DeviceKind.FPGA, 3, Instant(8)),
        ApiKey(
            KeyId("key-1"),
            TenantId("default"),
            "laptop",
            Role.CALLER,
            digest,
            "abcd",
            Instant(9),
            Instant(10),
        ),
        node(),
        Model(
            ModelId("demo:tiny"),
            "llama",
            Purpose.EMBEDDING,
            digest,
            "gguf",
            "/models/tiny.gguf",
            123,
            shape,
            "demo:tiny",
            "Apache-2.0",
            Instant(11),
        ),
        Deployment(
            DeploymentId("dep-1"),
            "tiny",
            TenantId("default"),
            ModelId("demo:tiny"),
            DeploymentKind.DEDICATED,
            Tier.PREMIUM,
            "llamacpp",
            0,
            3,
            1,
            2,
            4,
            4096,
            1 << 30,
            Instant(12),
            Instant(13),
        ),
        Replica(WorkId("rep-1"), DeploymentId("dep-1"), digest, Instant(14), "127.0.0.1", 4321),
        Job(
            WorkId("job-1"),
            "train",
            TenantId("default"),
            ("python", "train.py", ""),
            (("A", "1"), ("B", "")),
            digest,
            "cell",
            Instant(15),
        ),
        work(),
    )
