"""The public control API under ``/api/v1``: what a request carries and what comes back.

Reading routes answer `Page`s of views; a view is flat, its times are milliseconds since the
epoch, and its field names are frozen by tests. Errors have the body of `ErrorBody`. The same
schemas serve the command line, the console and users' scripts.

    GET  /health  /ready
    GET  /api/v1/status
    POST /api/v1/tenants             GET /api/v1/tenants
    POST /api/v1/keys                GET /api/v1/keys             DELETE /api/v1/keys/{id}
    POST /api/v1/models[?progress=true]  GET /api/v1/models[/{id}]  DELETE /api/v1/models/{id}
    POST /api/v1/deployments         GET /api/v1/deployments[/{name}]  DELETE .../{name}
    POST /api/v1/code                (a tar of the code folder; answers its digest)
    POST /api/v1/jobs                GET /api/v1/jobs[/{id or name}]
    POST /api/v1/arrays              (many jobs of one kind)
    POST /api/v1/jobs/{id}/suspend   .../freeze   .../resume   .../cancel   .../checkpoint
    POST /api/v1/jobs/{id}/migrate   .../scale
    POST /api/v1/arrays/{name}/suspend   and all others of the last two lines
    GET  /api/v1/jobs/{id}/ledger    .../receipts
    GET  /api/v1/ledger              (the promise of every job, and how it is kept)
    GET  /api/v1/jobs/{id}/logs?stream=stdout|stderr&offset=N&wait_ms=N
    POST /api/v1/reservations        GET /api/v1/reservations     DELETE /api/v1/reservations/{id}
    POST /api/v1/spares              GET /api/v1/spares           (nodes that are kept empty)
    GET  /api/v1/nodes               GET /api/v1/devices          GET /api/v1/replicas
    POST /api/v1/nodes/{id}/drain    .../undrain
    POST /api/v1/devices/{id}/cordon .../uncordon
    GET  /api/v1/why/{job or deployment}
    GET  /api/v1/utilisation?since=MS
    GET  /api/v1/usage?since=MS
    GET  /api/v1/events?after=N&limit=N&wait_ms=N
    GET  /api/v1/plan                (the last pass: its decisions and step reports)

With ``progress=true`` the answer to adding a model is JSON lines of `ModelLine`, the last of which
holds the model or the error; without it, the model.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from onefleet.domain.tenancy import WITHIN_MS

ViewT = TypeVar("ViewT")


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """The OpenAI error object; `hint` and `why` are ours, extra keys that its clients ignore."""

    message: str
    type: str
    param: str | None
    code: str | None
    why: str = ""
    hint: str = ""


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorDetail


class Page(msgspec.Struct, Generic[ViewT], frozen=True):
    """All matching views, oldest first."""

    data: tuple[ViewT, ...]


# --- what callers send -------------------------------------------------------------------------


class NewTenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """reservations: device kind -> devices that are guaranteed to its premium work. weight: its
    part among its siblings of what nobody reserved, in proportion; 1000 is one part."""

    id: str
    parent: str | None = None
    weight: int = 1_000
    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None
    reservations: dict[str, int] = {}


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tenant: str = "default"
    name: str = ""
    role: str = "member"


class NewModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """source: a path on the control plane's machine, "demo:..." or "hf:org/name"."""

    source: str
    name: str | None = None


class NewDeployment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """context_length 0, slots 0: chosen by the memory plan. engine "": by the model's format.
    tenant null: the key's."""

    model: str
    name: str | None = None
    tenant: str | None = None
    tier: str = "standard"
    kind: str = "paygo"
    replicas_min: int = 1
    replicas_max: int = 1
    engine: str = ""
    devices_per_replica: int = 1
    slots: int = 0
    context_length: int = 0


class SetSpares(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keep so many nodes with this kind of device empty for work that loses its place by a failure;
    0: none."""

    nodes: int
    device_kind: str = "cpu"


class NewReservation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices guaranteed to a tenant's premium work and to that of the tenants below it.

    product: the class of the devices, as in a device's view; "": any of the kind. starts_at,
    ends_at: its window; null: since ever, for ever. within_ms: how soon what is lent is back.
    """

    tenant: str
    devices: int
    device_kind: str = "cpu"
    product: str = ""
    starts_at: int | None = None
    ends_at: int | None = None
    within_ms: int = WITHIN_MS


class NewJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """code: digest that POST /api/v1/code answered; null: an empty working folder.

    workers: processes of a gang, started together, each with its rank; 1: a single one.
    devices_min, devices_max: of the whole job. A gang has devices_max / workers for each worker,
    and with fewer devices its workers take turns; its world size never changes. device_milli: less
    than 1000 for a share of one device. products: classes that it can use, with its speed on each
    in permille; empty: any. network: null: "cell" for a single one, "gang" for a gang.
    after: ids or names of jobs that have to succeed first. deadline: when it shall have ended.
    estimate_ms: its run time on devices_max, as its owner believes. checkpoint_every_ms: null:
    chosen from cost and failures; 0: never.
    """

    command: tuple[str, ...]
    name: str | None = None
    tenant: str | None = None
    tier: str = "standard"
    device_kind: str = "cpu"
    workers: int = 1
    devices_min: int = 1
    devices_max: int = 1
    device_milli: int = 1_000
    products: dict[str, int] = {}
    zones: tuple[str, ...] = ()
    memory_bytes: int = 0
    environment: dict[str, str] = {}
    code: str | None = None
    network: str | None = None
    after: tuple[str, ...] = ()
    deadline: int | None = None
    estimate_ms: int | None = None
    checkpoint_every_ms: int | None = None


class NewArray(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """size jobs like `job`, named NAME-0, NAME-1, ...; each finds its number in
    ONEFLEET_ARRAY_INDEX."""

    job: NewJob
    size: int


class MigrateJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """node: id or name of where the job shall be; null: wherever it fits."""

    node: str | None = None


class ScaleJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """devices: how many the whole job shall have; null: as many as there are for it."""

    devices: int | None = None


class CordonDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    reason: str


# --- what comes back ---------------------------------------------------------------------------


class TenantView(msgspec.Struct, frozen=True, kw_only=True):
    """used: device-milliseconds that it and those below it have had of late, by kind of device and
    tier, each time halved as a day ends. It is what shares inside a tier go by."""

    id: str
    parent: str | None
    tokens_per_minute: int | None
    requests_per_minute: int | None
    reservations: dict[str, int]
    created_at: int
    weight: int = 1_000
    used: dict[str, dict[str, int]] = {}


class SparesView(msgspec.Struct, frozen=True, kw_only=True):
    """So many nodes with a kind of device (id) are kept empty (wanted), and which they are now.

    note: what keeps the pool from keeping so many whatever comes free; empty: nothing does.
    """

    id: str
    wanted: int
    nodes: tuple[str, ...]
    note: str = ""


class ReservationView(msgspec.Struct, frozen=True, kw_only=True):
    """state: open (its window, or none), ahead or over."""

    id: str
    tenant: str
    device_kind: str
    product: str
    devices: int
    starts_at: int | None
    ends_at: int | None
    within_ms: int
    state: str
    created_at: int


class KeyView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """key: the text itself, only in the answer to the POST that made it."""

    id: str
    tenant: str
    name: str
    role: str
    hint: str
    created_at: int
    revoked_at: int | None
    key: str | None = None


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    family: str
    purpose: str
    revision: str
    format: str
    size_bytes: int
    parameters: int
    context_length: int
    source: str
    licence: str
    created_at: int


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a step is. total 0: not known."""

    step: str
    done: int
    total: int


class ModelLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line while a model is added; exactly one field is set."""

    progress: Progress | None = None
    model: ModelView | None = None
    error: ErrorDetail | None = None


class DeploymentView(msgspec.Struct, frozen=True, kw_only=True):
    """state: ready, starting, idle (scaled to zero), blocked or removing; reason says why."""

    id: str
    name: str
    tenant: str
    model: str
    kind: str
    tier: str
    engine: str
    replicas_min: int
    replicas_max: int
    replicas_wanted: int
    replicas_ready: int
    devices_per_replica: int
    slots: int
    context_length: int
    memory_bytes: int
    active: int
    waiting: int
    state: str
    reason: str
    created_at: int


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    deployment: str
    phase: str
    node: str
    devices: tuple[str, ...]
    reason: str
    memory_bytes: int
    created_at: int


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """fraction: its device fraction in the last day that it was there, as in its ledger: the time
    that it ran, narrower stretches in part, over the time that it wanted to. Until it is promised
    anything it has no ledger: of all time since it was submitted.

    checkpoint: how it is saved (criu, cooperative, none); checkpoint_reason: why not criu.
    devices_min, devices_max: of the whole job; width: devices that its owner scaled it to.
    promised_permille: what its tier promises, 0 for nothing or not yet; kept_permille: what it got
    of it over the last day, None before it was promised anything or wanted to run. unsaved_ms: run
    time that a failure now would lose. moving_to: nodes that it is on its way to.
    checkpoint_every_ms: run time between two saves while it runs, as its owner, or its cost and the
    fleet's failures, say; None: it is not saved then. turns: how many jobs take turns on its core,
    it included, or how many of its workers on one GPU; 0: none do.
    """

    id: str
    name: str
    tenant: str
    tier: str
    command: tuple[str, ...]
    want: str
    phase: str
    reason: str
    node: str
    devices: tuple[str, ...]
    devices_min: int
    devices_max: int
    attempts: int
    suspends: int
    lost_ms: int
    ran_ms: int
    fraction: float
    image_bytes: int
    memory_bytes: int
    checkpoint: str
    checkpoint_reason: str
    outcome: str | None
    exit_code: int | None
    why_ended: str
    submitted_at: int
    started_at: int | None
    ended_at: int | None
    workers: int = 1
    width: int | None = None
    moving_to: tuple[str, ...] = ()
    network: str = "cell"
    array: str = ""
    promised_permille: int = 0
    kept_permille: int | None = None
    unsaved_ms: int = 0
    saved_at: int | None = None
    checkpoint_every_ms: int | None = None
    turns: int = 0


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A job of an array to which a verb cannot be done."""

    id: str
    name: str
    what: str
    why: str


class ArrayAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a verb on an array came to. data: the jobs that were asked. ended: how many had ended
    already. refused: those to which it cannot be done."""

    name: str
    data: tuple[JobView, ...]
    ended: int
    refused: tuple[Refusal, ...]


class HourView(msgspec.Struct, frozen=True, kw_only=True):
    """One hour of a ledger: of wanted_ms it ran got_ms, narrow stretches by their share."""

    begins_at: int
    wanted_ms: int
    got_ms: int


class LedgerView(msgspec.Struct, frozen=True, kw_only=True):
    """The promise of a job and how it is kept, over the hours of the last day.

    promised_permille: of its tier, given by now or not. kept_permille: the part of the time that it
    ran, from when the promise was given; None before that, and while it has not wanted to run.
    state: kept, broken, early (below it, in the first minute of wanting to run), none (nothing is
    promised to it) or waiting (its promise does not fit beside the others yet).
    """

    id: str
    name: str
    tenant: str
    tier: str
    promised_permille: int
    kept_permille: int | None
    state: str
    device_ms: int
    hours: tuple[HourView, ...]


class ReceiptView(msgspec.Struct, frozen=True, kw_only=True):
    """That a job had to give way. by: for which work, "" for its owner or an operator. back_at:
    when it ran again; null: not yet."""

    job: str
    at: int
    by: str
    reason: str
    devices: int
    lost_ms: int
    back_at: int | None


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """data_dir: the folder of its agent, on its machine; told to administrators alone."""

    id: str
    name: str
    state: str
    devices: int
    devices_used: int
    memory_bytes: int
    memory_free_bytes: int
    cpu_busy_permille: int
    checkpoint: str
    checkpoint_reason: str
    lease_expires_at: int
    region: str = ""
    zone: str = ""
    devices_cordoned: int = 0
    spare: bool = False  # kept empty for work that loses its place by a failure
    data_dir: str = ""


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    node: str
    kind: str
    product: str
    memory_bytes: int
    simulated: bool
    holder: str  # id of the work that holds it, empty when it is free
    tier: str  # of the holder
    cordoned: str = ""  # why it gets no work; empty when it does


class LogChunk(msgspec.Struct, frozen=True, kw_only=True):
    """text from byte `offset` on; next_offset: where to go on. ended: no more will come."""

    text: str
    offset: int
    next_offset: int
    ended: bool


class BlockerView(msgspec.Struct, frozen=True, kw_only=True):
    """One reason among all. gate: admission, quota, feasibility, contention, data or start."""

    gate: str
    text: str
    holders: tuple[str, ...] = ()


class AlternativeView(msgspec.Struct, frozen=True, kw_only=True):
    """With another tier ("" for its own) or fewer devices (0 for its own) it would start then.

    devices, devices_max: as `NewJob.devices_min` and `devices_max`. pushes_back: works that would
    have to give way, or start later than they would have.
    """

    tier: str
    devices: int
    devices_max: int = 0
    starts_at: int
    pushes_back: tuple[str, ...]


class ForecastView(msgspec.Struct, frozen=True, kw_only=True):
    """When it is expected to run, by the planner run forward from `at`; null: not within days."""

    at: int
    likely_at: int | None
    earliest_at: int | None
    latest_at: int | None
    alternatives: tuple[AlternativeView, ...]


class WhyView(msgspec.Struct, frozen=True, kw_only=True):
    """summary: one line. blockers: every reason that it does not run; empty when it does.

    forecast: of a job that waits for its turn. deadline: what becomes of a job's, if it has one.
    """

    id: str
    name: str
    phase: str
    summary: str
    blockers: tuple[BlockerView, ...]
    history: tuple[str, ...]  # its latest events, newest last
    forecast: ForecastView | None = None
    deadline: str = ""


class UtilisationView(msgspec.Struct, frozen=True, kw_only=True):
    """Device-milliseconds held, by tier and kind of work, since `since`; and the capacity."""

    since: int
    until: int
    capacity_device_ms: int
    held_device_ms: dict[str, int]  # "premium.replica", "standard.job", ...
    suspends: int
    resumes: int


class UsageView(msgspec.Struct, frozen=True, kw_only=True):
    minute: int
    tenant: str
    key: str
    deployment: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    sequence: int
    at: int
    kind: str
    subject: str
    text: str


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    step: str
    text: str


class PlanView(msgspec.Struct, frozen=True, kw_only=True):
    parent: int
    planned_at: int
    took_us: int
    decisions: tuple[str, ...]
    steps: tuple[StepView, ...]


class StatusView(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the whole pool. gateway: seconds since its last report, -1 for never.

    nodes_lost: so far, in nodes_watched_ms (summed over the nodes); node_mttf_ms: in which one node
    is expected to fail once, learnt from that. spares: nodes kept empty now, of spares_wanted.
    """

    version: str
    generation: int
    started_at: int
    nodes_ready: int
    nodes: int
    devices: int
    devices_used: int
    deployments: int
    deployments_ready: int
    jobs_running: int
    jobs_waiting: int
    jobs_suspended: int
    gateway_seen_s: float
    last_pass_at: int
    last_pass_result: str
    nodes_lost: int = 0
    nodes_watched_ms: int = 0
    node_mttf_ms: int = 0
    spares_wanted: int = 0
    spares: int = 0
    jobs_frozen: int = 0


class CodeView(msgspec.Struct, frozen=True, kw_only=True):
    digest: str
    size_bytes: int
    files: int
