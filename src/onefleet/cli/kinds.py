"""How each view of the API looks as a table: its columns, and what else it says about itself."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from datetime import datetime

from onefleet.cli.output import Column, Kind, pairs
from onefleet.domain import quantities
from onefleet.domain.quantities import counted, duration, percent, size, span
from onefleet.wire.api import (
    DeploymentView,
    DeviceView,
    ForecastView,
    JobView,
    KeyView,
    LedgerView,
    ModelView,
    NodeView,
    ReceiptView,
    ReservationView,
    SparesView,
    StatusView,
    TenantView,
    WhyView,
)

#: What would start a job sooner, in lines.
ALTERNATIVES_SHOWN = 4


def _holds(devices: Sequence[str]) -> str:
    return ",".join(d.rpartition("/")[2] for d in devices) or "-"


def age(at_ms: int | None) -> str:
    """How long ago, on this machine's clock."""
    return quantities.age(at_ms, int(time.time() * 1000))


def _limit(count: int | None) -> str:
    return "unlimited" if count is None else str(count)


def _device_hours(used: Mapping[str, Mapping[str, int]]) -> str:
    hours = {kind: sum(tiers.values()) / 3_600_000 for kind, tiers in used.items()}
    return ",".join(f"{n:,.1f} {kind}-h" for kind, n in sorted(hours.items()) if n) or "-"


def _phase(job: JobView) -> str:
    return job.outcome or job.phase


def _every(job: JobView) -> str:
    return "-" if job.checkpoint_every_ms is None else duration(job.checkpoint_every_ms)


def _ended(job: JobView) -> str:
    return "-" if job.exit_code is None else str(job.exit_code)


def moment(at_ms: int | None) -> str:
    """A point of time on this machine's clock; a dash for none."""
    if at_ms is None:
        return "-"
    return datetime.fromtimestamp(at_ms / 1000).isoformat(" ", "minutes")


def _permille(value: int | None) -> str:
    return "-" if value is None else f"{value / 10:.0f} %"


def _promised(entry: LedgerView) -> str:
    given = entry.promised_permille if entry.state in ("kept", "broken", "early") else None
    return _permille(given)


def _promise(entry: LedgerView) -> str:
    if entry.state == "early":
        return "too early to say"
    if entry.state != "waiting":
        return entry.state
    return f"waiting: {_permille(entry.promised_permille)} cannot be promised yet"


def _hours(entry: LedgerView) -> str:
    """Its fraction in each of the hours, oldest first."""
    return " ".join(f"{100 * h.got_ms // max(h.wanted_ms, 1)}" for h in entry.hours) or "-"


def _holder(device: DeviceView) -> str:
    """What holds it. A cordoned one may still be held: by what finds no other place."""
    cordoned = f"cordoned: {device.cordoned}" if device.cordoned else ""
    if not device.holder:
        return cordoned or "free"
    return f"{device.holder} ({cordoned})" if cordoned else device.holder


def _missing(spares: SparesView) -> str:
    return "the next node that is empty is kept" if len(spares.nodes) < spares.wanted else "-"


def _back_after(receipt: ReceiptView) -> str:
    return "not yet" if receipt.back_at is None else duration(receipt.back_at - receipt.at)


JOB: Kind[JobView] = Kind(
    "Job",
    lambda j: j.id,
    (
        Column("ID", lambda j: j.id),
        Column("NAME", lambda j: j.name),
        Column("TENANT", lambda j: j.tenant, wide=True),
        Column("TIER", lambda j: j.tier),
        Column("STATE", _phase),
        Column("EXIT", _ended, right=True),
        Column("DEVICES", lambda j: _holds(j.devices)),
        Column("MEMORY", lambda j: size(j.memory_bytes) if j.memory_bytes else "-", right=True),
        Column("RAN", lambda j: duration(j.ran_ms), right=True),
        Column("FRACTION", lambda j: f"{j.fraction:.2f}", right=True),
        Column("UNSAVED", lambda j: duration(j.unsaved_ms), right=True, wide=True),
        Column("SAVED EVERY", _every, right=True, wide=True),
        Column("SUSPENDS", lambda j: str(j.suspends), right=True),
        Column("IMAGE", lambda j: size(j.image_bytes) if j.image_bytes else "-", wide=True),
        Column("SAVED BY", lambda j: j.checkpoint, wide=True),
        Column("NODE", lambda j: j.node or "-", wide=True),
        Column("AGE", lambda j: age(j.submitted_at), right=True),
        Column("COMMAND", lambda j: shlex.join(j.command), wide=True),
        Column("REASON", lambda j: j.why_ended or j.reason),
    ),
    empty="no jobs; onefleet run -- CMD starts one",
)

MODEL: Kind[ModelView] = Kind(
    "Model",
    lambda m: m.id,
    (
        Column("ID", lambda m: m.id),
        Column("FAMILY", lambda m: m.family),
        Column("PURPOSE", lambda m: m.purpose),
        Column("FORMAT", lambda m: m.format),
        Column("SIZE", lambda m: size(m.size_bytes), right=True),
        Column("PARAMETERS", lambda m: f"{m.parameters / 1e6:.1f}M", right=True),
        Column("CONTEXT", lambda m: str(m.context_length), right=True),
        Column("LICENCE", lambda m: m.licence),
        Column("SOURCE", lambda m: m.source, wide=True),
        Column("REVISION", lambda m: m.revision, wide=True),
        Column("AGE", lambda m: age(m.created_at), right=True),
    ),
    empty="no models; onefleet model add demo:smollm2 brings one",
)

DEPLOYMENT: Kind[DeploymentView] = Kind(
    "Deployment",
    lambda d: d.id,
    (
        Column("NAME", lambda d: d.name),
        Column("ID", lambda d: d.id, wide=True),
        Column("TENANT", lambda d: d.tenant),
        Column("MODEL", lambda d: d.model),
        Column("TIER", lambda d: d.tier),
        Column("STATE", lambda d: d.state),
        Column("READY", lambda d: f"{d.replicas_ready}/{d.replicas_wanted}", right=True),
        Column("REPLICAS", lambda d: span(d.replicas_min, d.replicas_max), right=True),
        Column("ACTIVE", lambda d: str(d.active), right=True),
        Column("WAITING", lambda d: str(d.waiting), right=True),
        Column("SLOTS", lambda d: str(d.slots), wide=True, right=True),
        Column("CONTEXT", lambda d: str(d.context_length), wide=True, right=True),
        Column("MEMORY", lambda d: size(d.memory_bytes), wide=True, right=True),
        Column("ENGINE", lambda d: d.engine, wide=True),
        Column("KIND", lambda d: d.kind, wide=True),
        Column("AGE", lambda d: age(d.created_at), right=True),
        Column("REASON", lambda d: d.reason),
    ),
    empty="no deployments; onefleet deploy MODEL makes one",
)

TENANT: Kind[TenantView] = Kind(
    "Tenant",
    lambda t: t.id,
    (
        Column("ID", lambda t: t.id),
        Column("PARENT", lambda t: t.parent or "-"),
        Column("TOKENS/MIN", lambda t: _limit(t.tokens_per_minute), right=True),
        Column("REQUESTS/MIN", lambda t: _limit(t.requests_per_minute), right=True),
        Column(
            "RESERVED",
            lambda t: ",".join(f"{k}={n}" for k, n in sorted(t.reservations.items())) or "-",
        ),
        Column("WEIGHT", lambda t: f"{t.weight / 1000:g}", right=True),
        Column("USED", lambda t: _device_hours(t.used), right=True),
        Column("AGE", lambda t: age(t.created_at), right=True),
    ),
)

RESERVATION: Kind[ReservationView] = Kind(
    "Reservation",
    lambda r: r.id,
    (
        Column("ID", lambda r: r.id),
        Column("TENANT", lambda r: r.tenant),
        Column("DEVICES", lambda r: f"{r.devices} {r.device_kind}", right=True),
        Column("PRODUCT", lambda r: r.product or "any"),
        Column("FROM", lambda r: moment(r.starts_at)),
        Column("UNTIL", lambda r: moment(r.ends_at)),
        Column("BACK IN", lambda r: duration(r.within_ms), right=True),
        Column("STATE", lambda r: r.state),
    ),
    empty="no reservations; onefleet reservation create TENANT N makes one",
)

SPARES: Kind[SparesView] = Kind(
    "Spares",
    lambda s: s.id,
    (
        Column("KIND", lambda s: s.id),
        Column("WANTED", lambda s: str(s.wanted), right=True),
        Column("KEPT", lambda s: str(len(s.nodes)), right=True),
        Column("NODES", lambda s: ",".join(s.nodes) or "-"),
        Column("NOTE", lambda s: s.note or _missing(s)),
    ),
    empty="no spares; onefleet spare set N keeps N nodes empty for work that loses its place",
)

LEDGER: Kind[LedgerView] = Kind(
    "Ledger",
    lambda entry: entry.id,
    (
        Column("ID", lambda e: e.id),
        Column("NAME", lambda e: e.name),
        Column("TENANT", lambda e: e.tenant, wide=True),
        Column("TIER", lambda e: e.tier),
        Column("PROMISED", _promised, right=True),
        Column("GOT", lambda e: _permille(e.kept_permille), right=True),
        Column("PROMISE", _promise),
        Column("DEVICE TIME", lambda e: duration(e.device_ms), right=True),
        Column("HOURS", lambda e: _hours(e), wide=True),
    ),
    empty="no jobs in the last day; onefleet run -- CMD starts one",
)

RECEIPT: Kind[ReceiptView] = Kind(
    "Receipt",
    lambda r: r.job,
    (
        Column("AGO", lambda r: age(r.at), right=True),
        Column("FOR", lambda r: r.by or "-"),
        Column("WHY", lambda r: r.reason),
        Column("DEVICES", lambda r: str(r.devices), right=True),
        Column("LOST", lambda r: duration(r.lost_ms), right=True),
        Column("BACK AFTER", _back_after, right=True),
    ),
    empty="it never had to give way",
)

KEY: Kind[KeyView] = Kind(
    "Key",
    lambda k: k.id,
    (
        Column("ID", lambda k: k.id),
        Column("NAME", lambda k: k.name or "-"),
        Column("TENANT", lambda k: k.tenant),
        Column("ROLE", lambda k: k.role),
        Column("KEY", lambda k: f"…{k.hint}"),
        Column("STATE", lambda k: "revoked" if k.revoked_at else "active"),
        Column("AGE", lambda k: age(k.created_at), right=True),
    ),
)

NODE: Kind[NodeView] = Kind(
    "Node",
    lambda n: n.id,
    (
        Column("ID", lambda n: n.id),
        Column("NAME", lambda n: n.name),
        Column("STATE", lambda n: "spare" if n.spare else n.state),
        Column("ZONE", lambda n: n.zone or "-", wide=True),
        Column("CORDONED", lambda n: str(n.devices_cordoned), right=True, wide=True),
        Column("DEVICES", lambda n: f"{n.devices_used}/{n.devices}", right=True),
        Column("MEMORY FREE", lambda n: f"{size(n.memory_free_bytes)} of {size(n.memory_bytes)}"),
        Column("CPU", lambda n: f"{n.cpu_busy_permille / 10:.0f} %", right=True),
        Column("SAVES JOBS BY", lambda n: n.checkpoint),
        Column("WHY", lambda n: n.checkpoint_reason, wide=True),
    ),
    empty="no nodes: the agent has not reported yet",
)

DEVICE: Kind[DeviceView] = Kind(
    "Device",
    lambda d: d.id,
    (
        Column("ID", lambda d: d.id),
        Column("KIND", lambda d: f"{d.kind} (simulated)" if d.simulated else d.kind),
        Column("PRODUCT", lambda d: d.product),
        Column("MEMORY", lambda d: size(d.memory_bytes), right=True),
        Column("TIER", lambda d: d.tier or "-"),
        Column("HOLDER", _holder),
        Column("NODE", lambda d: d.node, wide=True),
    ),
    empty="no devices: the agent has not reported yet",
)


def _failures(status: StatusView) -> str:
    lost = counted(status.nodes_lost, "node") if status.nodes_lost else "no node"
    seen = f"{lost} lost in {duration(status.nodes_watched_ms)} of work"
    return f"{seen}; a node is expected to fail every {duration(status.node_mttf_ms)}"


def _spares(status: StatusView) -> str:
    return f"{status.spares} of {status.spares_wanted} nodes are kept empty"


def jobs_told(status: StatusView) -> str:
    """How many jobs are in which state."""
    told = f"{status.jobs_running} running, {status.jobs_waiting} waiting"
    told += f", {status.jobs_suspended} suspended"
    return told + (f", {status.jobs_frozen} frozen" if status.jobs_frozen else "")


def _status_text(status: StatusView) -> str:
    seen = "never seen" if status.gateway_seen_s < 0 else f"seen {status.gateway_seen_s:.0f}s ago"
    return pairs(
        (
            ("version", status.version),
            ("up for", age(status.started_at)),
            ("nodes", f"{status.nodes_ready} of {status.nodes} ready"),
            *((("spares", _spares(status)),) if status.spares_wanted else ()),
            ("failures", _failures(status)),
            (
                "devices",
                f"{status.devices_used} of {status.devices} held "
                f"({percent(status.devices_used, status.devices)})",
            ),
            ("deployments", f"{status.deployments_ready} of {status.deployments} ready"),
            ("jobs", jobs_told(status)),
            ("gateway", seen),
            ("last pass", f"{age(status.last_pass_at)} ago: {status.last_pass_result}"),
            ("generation", str(status.generation)),
        )
    )


STATUS: Kind[StatusView] = Kind("Status", lambda s: "pool", text=_status_text)


def _why_text(why: WhyView) -> str:
    lines = [f"{why.name or why.id}  {why.phase}", f"  {why.summary}"]
    if why.blockers:
        width = max(len(b.gate) for b in why.blockers)
        lines += ["", "blockers:"]
        for blocker in why.blockers:
            unnamed = [h for h in blocker.holders if h not in blocker.text]
            held = f"  (held by {', '.join(unnamed)})" if unnamed else ""
            lines.append(f"  {blocker.gate:<{width}}  {blocker.text}{held}")
    if why.deadline:
        lines += ["", f"deadline  {why.deadline}"]
    if why.forecast is not None:
        lines += ["", *_forecast_lines(why.forecast)]
    if why.history:
        lines += ["", "history:", *(f"  {line}" for line in why.history)]
    return "\n".join(lines)


def _forecast_lines(found: ForecastView) -> list[str]:
    lines = [f"expected to run  {_start(found)}"]
    for other in found.alternatives[:ALTERNATIVES_SHOWN]:
        devices = span(other.devices, max(other.devices, other.devices_max))
        how = f"as {other.tier}" if other.tier else f"with --devices {devices}"
        pushed = f", pushing back {', '.join(other.pushes_back)}" if other.pushes_back else ""
        lines.append(f"  starts {_when(found.at, other.starts_at)} {how}{pushed}")
    return lines


def _start(found: ForecastView) -> str:
    if found.earliest_at is None:
        return "not within 14 days, as things are"
    if found.likely_at is None:
        return f"perhaps {_when(found.at, found.earliest_at)}, more likely not within 14 days"
    if found.earliest_at == found.latest_at:
        return _when(found.at, found.likely_at)
    bar = f"{_ahead(found.at, found.earliest_at)} to {_ahead(found.at, found.latest_at)}"
    return f"{_when(found.at, found.likely_at)} ({bar}, as run times are guessed)"


def _when(now_ms: int, at_ms: int) -> str:
    return "now" if at_ms <= now_ms else f"in {duration(at_ms - now_ms)}"


def _ahead(now_ms: int, at_ms: int | None) -> str:
    if at_ms is None:
        return "over 14 days"
    return "now" if at_ms <= now_ms else duration(at_ms - now_ms)


WHY: Kind[WhyView] = Kind("Why", lambda w: w.id, text=_why_text)
