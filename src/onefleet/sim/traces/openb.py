"""Alibaba's GPU-sharing cluster (gpu-v2023): nodes, and pods that ask for parts of a GPU.

CPU and GPU come in thousandths. A pod with `num_gpu` 1 may ask for less than 1,000 thousandths of
one GPU; with more GPUs, or none, it asks for whole ones. `gpu_spec` names the models that would do,
joined by `|`; empty: any.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from onefleet.sim.traces.lines import BadTrace, read_csv

NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
POD_COLUMNS = (
    "name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec", "qos", "pod_phase",
    "creation_time", "deletion_time", "scheduled_time",
)  # fmt: skip
GPUS_MAX = 64
WHOLE_GPU = 1000

ValueT = TypeVar("ValueT")


class PodPhase(StrEnum):
    RUNNING = "Running"
    PENDING = "Pending"
    FAILED = "Failed"
    SUCCEEDED = "Succeeded"


@dataclass(frozen=True, slots=True)
class OpenbNode:
    """A machine. model: of its GPUs, empty when it has none."""

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str


@dataclass(frozen=True, slots=True)
class OpenbPod:
    """What a pod asked for, and when (seconds since the trace began). scheduled_s: None for never.

    gpu_milli: of each of its `gpus` GPUs; 0 when it wants none. models: any of them; empty: any.
    """

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    gpu_milli: int
    models: tuple[str, ...]
    qos: str
    phase: PodPhase
    created_s: int
    deleted_s: int
    scheduled_s: int | None


def read_openb_nodes(path: Path) -> tuple[OpenbNode, ...]:
    """The nodes in the order of the file."""
    nodes: dict[str, OpenbNode] = {}
    for row in read_csv(path, NODE_COLUMNS):
        gpus = row.whole("gpu", 0, GPUS_MAX)
        model = row.text("model", empty=True)
        if bool(gpus) != bool(model):
            row.line.bad("a GPU model exactly where there are GPUs", f"{gpus} of {model!r}")
        name = row.text("sn")
        if name in nodes:
            row.line.bad("a node that no line above names in column sn", name)
        cpu_milli, memory_mib = row.whole("cpu_milli", 1), row.whole("memory_mib", 1)
        nodes[name] = OpenbNode(name, cpu_milli, memory_mib, gpus, model)
    return _some(tuple(nodes.values()), path)


def read_openb_pods(path: Path) -> tuple[OpenbPod, ...]:
    """The pods in the order of the file."""
    pods: list[OpenbPod] = []
    for row in read_csv(path, POD_COLUMNS):
        gpus = row.whole("num_gpu", 0, GPUS_MAX)
        gpu_milli = row.whole("gpu_milli", 0, WHOLE_GPU)
        if (gpus == 0) != (gpu_milli == 0) or (gpus > 1 and gpu_milli != WHOLE_GPU):
            row.line.bad("a part of one GPU, or whole ones", f"{gpus} GPUs of {gpu_milli}")
        spec = row.text("gpu_spec", empty=True)
        phase = row.text("pod_phase")
        if phase not in tuple(PodPhase):
            row.line.bad(f"one of {', '.join(PodPhase)} in column pod_phase", phase)
        created_s = row.whole("creation_time")
        scheduled = row.text("scheduled_time", empty=True)
        pods.append(
            OpenbPod(
                name=row.text("name"),
                cpu_milli=row.whole("cpu_milli"),
                memory_mib=row.whole("memory_mib"),
                gpus=gpus,
                gpu_milli=gpu_milli,
                models=tuple(spec.split("|")) if spec else (),
                qos=row.text("qos"),
                phase=PodPhase(phase),
                created_s=created_s,
                deleted_s=row.whole("deletion_time", created_s),
                scheduled_s=row.whole("scheduled_time") if scheduled else None,
            )
        )
    return _some(tuple(pods), path)


def _some(values: tuple[ValueT, ...], path: Path) -> tuple[ValueT, ...]:
    if not values:
        raise BadTrace(f"{path.name}:2", "at least one row", "nothing")
    return values
