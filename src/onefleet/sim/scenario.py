"""What a scenario file may say, and nothing else. Durations end in their unit.

A range is written as a two-element list, [least, most], and drawn evenly; one number is itself.
Unknown keys, wrong types and names of nothing are refused with the path of the key.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from onefleet.core.policy import DEFAULT_POLICY, Policy
from onefleet.domain.errors import InvalidRequest, NotFound
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.tiers import Tier

#: The largest scenario file, and the longest simulated time.
SCENARIO_BYTES_MAX = 1 << 20
HORIZON_S_MAX = 30 * 24 * 3600

Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Permille = Annotated[int, msgspec.Meta(ge=0, le=900)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=HORIZON_S_MAX)]
_Bound = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Range = tuple[_Bound, _Bound]  # least and most


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No key that is not known."""


class Fleet(_Strict, frozen=True, kw_only=True):
    """Equal nodes and how fast they are."""

    nodes: Annotated[int, msgspec.Meta(ge=1, le=10_000)]
    devices: Annotated[int, msgspec.Meta(ge=1, le=1_024)]
    kind: DeviceKind = DeviceKind.CPU
    memory_gib: Positive = 64
    spares: Count = 0  # nodes that are kept empty
    start_ms: Count = 200
    stop_ms: Count = 100
    save_fixed_ms: Count = 150
    restore_fixed_ms: Count = 100
    disk_mib_per_s: Positive = 500
    fetch_mib_per_s: Positive = 1_000
    network_ms: Count = 2


class TenantSpec(_Strict, frozen=True, kw_only=True):
    """reserved: devices of the fleet's kind."""

    id: str
    reserved: Count = 0


class JobsSpec(_Strict, frozen=True, kw_only=True):
    """`count` jobs that are submitted at times drawn from submit_s and run for run_s at their
    least width. workers > 1: a gang."""

    name: str
    tenant: str = "default"
    tier: Tier = Tier.STANDARD
    count: Positive = 1
    devices: Positive = 1
    devices_max: Count = 0  # 0: as devices
    workers: Positive = 1
    run_s: Range
    submit_s: Range = (0.0, 0.0)
    state_mib: Range = (100.0, 100.0)
    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    suspendable: bool = True


class LoadSpec(_Strict, frozen=True, kw_only=True):
    """Requests that arrive by chance (Poisson) at so many a minute, each served in service_ms."""

    from_s: Seconds
    to_s: Seconds
    per_minute: Annotated[float, msgspec.Meta(gt=0)]
    service_ms: Range


class DeploymentSpec(_Strict, frozen=True, kw_only=True):
    name: str
    tenant: str = "default"
    tier: Tier = Tier.STANDARD
    replicas_min: Count = 1
    replicas_max: Positive = 1
    devices: Positive = 1
    slots: Positive = 4
    load_ms: Count = 1_500
    load: tuple[LoadSpec, ...] = ()


class FaultSpec(_Strict, frozen=True, kw_only=True):
    """node_loss: its power goes, files stay. partition: it runs on, unheard. engine_crash: its
    engines die. save_fails: no save works there. agent_restart: its agent is killed, and starts
    again after for_s. control_restart: the same for the control plane, wherever it is."""

    kind: Literal[
        "node_loss", "partition", "engine_crash", "save_fails", "agent_restart", "control_restart"
    ]
    at_s: Seconds
    node: Positive = 1  # the first
    for_s: Seconds = 0


class ReportsSpec(_Strict, frozen=True, kw_only=True):
    """What happens to calls between agents and control plane, until until_s."""

    lost_permille: Permille = 0
    duplicated_permille: Permille = 0
    delayed_permille: Permille = 0
    delay_ms: Count = 500
    until_s: Seconds = HORIZON_S_MAX


class Expect(_Strict, frozen=True, kw_only=True):
    """What must come out, beside the checkers' rules. None: not looked at."""

    suspends_min: int | None = None
    jobs_failed_max: int | None = None
    lost_ms_max: int | None = None
    requests_waiting_ms_max: int | None = None
    node_losses_min: int | None = None
    failover_ms_max: int | None = None


class Scenario(_Strict, frozen=True, kw_only=True):
    """A whole scenario. horizon_s: by then everything must have come to its end."""

    name: str
    about: str
    seed: int
    horizon_s: Annotated[float, msgspec.Meta(gt=0, le=HORIZON_S_MAX)]
    fleet: Fleet
    policy: dict[str, Annotated[int, msgspec.Meta(ge=0, le=10**12)]] = {}
    tenants: tuple[TenantSpec, ...] = ()
    jobs: tuple[JobsSpec, ...] = ()
    deployments: tuple[DeploymentSpec, ...] = ()
    faults: tuple[FaultSpec, ...] = ()
    reports: ReportsSpec = ReportsSpec()
    expect: Expect = Expect()

    def planner_policy(self) -> Policy:
        """The policy with what the scenario changes of it."""
        fleet = self.fleet
        spares = ((fleet.kind, fleet.spares),) if fleet.spares else ()
        return replace(DEFAULT_POLICY, **self.policy, spares=spares)


def shipped() -> tuple[str, ...]:
    """The names of the scenarios that come with the package."""
    folder = resources.files("onefleet.sim") / "scenarios"
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def load(source: str) -> Scenario:
    """Read a scenario by path, or a shipped one by its short name.

    Raises NotFound when there is no such file, InvalidRequest when it is not a scenario.
    """
    if source in shipped():
        path = resources.files("onefleet.sim") / "scenarios" / f"{source}.toml"
        return parse(path.read_text(encoding="utf-8"), f"{source}.toml")
    file = Path(source)
    if not file.is_file():
        raise NotFound(
            f'there is no scenario "{source}"',
            why="it is neither a file nor the name of a shipped scenario",
            hint=f"one of {', '.join(shipped())}, or the path of a .toml file",
        )
    if file.stat().st_size > SCENARIO_BYTES_MAX:
        raise InvalidRequest(f"{source} is larger than {SCENARIO_BYTES_MAX} bytes")
    try:
        return parse(file.read_text(encoding="utf-8"), source)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{source} is not UTF-8 text", why=str(error)) from error


def parse(text: str, name: str) -> Scenario:
    """Read a scenario from TOML. Raises InvalidRequest with the line or the path at fault."""
    try:
        scenario = msgspec.convert(tomllib.loads(text), Scenario)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"{name} is not TOML", why=str(error)) from error
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{name} is not a scenario", why=str(error)) from error
    faults = tuple(_faults_of(scenario))
    if faults:
        raise InvalidRequest(f"{name} is not a sound scenario", why="; ".join(faults))
    return scenario


def _faults_of(scenario: Scenario) -> list[str]:
    """What types cannot say, each with its path."""
    found = [
        f"no policy is called {key!r} - at `$.policy`"
        for key in scenario.policy
        if not isinstance(getattr(DEFAULT_POLICY, key, None), int)
    ]
    known = {"default", *(tenant.id for tenant in scenario.tenants)}
    named = [(f"jobs[{i}]", job.tenant) for i, job in enumerate(scenario.jobs)]
    named += [(f"deployments[{i}]", d.tenant) for i, d in enumerate(scenario.deployments)]
    for where, tenant in named:
        if tenant not in known:
            found.append(f"no tenant is called {tenant!r} - at `$.{where}`")
    for index, job in enumerate(scenario.jobs):
        where = f"at `$.jobs[{index}]`"
        if job.devices_max and job.devices_max < job.devices:
            found.append(f"devices_max is less than devices - {where}")
        for key in ("run_s", "submit_s", "state_mib"):
            least, most = getattr(job, key)
            if least > most:
                found.append(f"{key} is [{least}, {most}], least first - {where}")
    for index, deployment in enumerate(scenario.deployments):
        if deployment.replicas_min > deployment.replicas_max:
            found.append(f"replicas_min is over replicas_max - at `$.deployments[{index}]`")
        for number, part in enumerate(deployment.load):
            if part.from_s >= part.to_s:
                path = f"$.deployments[{index}].load[{number}]"
                found.append(f"from_s is not before to_s - at `{path}`")
    for index, fault in enumerate(scenario.faults):
        if fault.node > scenario.fleet.nodes:
            nodes = scenario.fleet.nodes
            found.append(f"there are {nodes} nodes, not {fault.node} - at `$.faults[{index}]`")
    return found
