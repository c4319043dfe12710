"""What the gateway counts, and how /metrics shows it.

The hot path adds to plain integers; the Prometheus text is made from them when it is asked for.
Names and buckets of gen_ai.server.* are OpenTelemetry's semantic conventions for generative AI
(status: development), with `_` for `.` and the unit at the end, as its Prometheus mapping says.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from onefleet import __version__

_DURATION = tuple(0.01 * 2**n for n in range(14))
_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)

_PROVIDER = "onefleet"


class Histogram:
    """Counts by upper bound, inclusive; the last is for what is over all bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts, as Prometheus wants them."""
        rows, running = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            rows.append((bound, float(running)))
        return rows


class Series:
    """One operation on one deployment. Times in seconds."""

    __slots__ = (
        "cached_tokens",
        "completion_tokens",
        "duration",
        "first_token",
        "per_token",
        "prompt_tokens",
    )

    def __init__(self) -> None:
        self.duration = Histogram(_DURATION)
        self.first_token = Histogram(_FIRST_TOKEN)
        self.per_token = Histogram(_PER_TOKEN)
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0


class Metrics(Collector):
    """All of one gateway process."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], Series] = {}  # (operation, deployment name)
        self.answers: dict[int, int] = {}  # by status
        self.errors: dict[str, int] = {}  # by code
        self.left = 0  # clients that left before their answer was whole
        self.cut = 0  # streams that ended by an error event
        self.retries = 0
        self.refused: dict[str, int] = {}  # by quota: "requests", "tokens"
        self.gauges: dict[str, int] = {}
        self.demand: list[tuple[str, int, int]] = []  # deployment name, active, waiting
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def of(self, operation: str, deployment: str) -> Series:
        """The series of an operation on a deployment; made when it is first asked for."""
        key = (operation, deployment)
        series = self.series.get(key)
        if series is None:
            series = self.series[key] = Series()
        return series

    def answered(self, status: int) -> None:
        self.answers[status] = self.answers.get(status, 0) + 1

    def failed(self, status: int, code: str) -> None:
        self.answered(status)
        self.errors[code] = self.errors.get(code, 0) + 1

    def text(self) -> bytes:
        """The Prometheus text exposition format 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        labels = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"]
        for name, text, attribute in (
            ("request_duration", "Time to answer a request", "duration"),
            ("time_to_first_token", "Queue and prefill until the first token", "first_token"),
            ("time_per_output_token", "Time a token after the first", "per_token"),
        ):
            family = HistogramMetricFamily(f"gen_ai_server_{name}_seconds", text, labels=labels)
            for (operation, deployment), series in sorted(self.series.items()):
                histogram: Histogram = getattr(series, attribute)
                family.add_metric(
                    [operation, _PROVIDER, deployment], histogram.buckets(), histogram.total
                )
            yield family
        tokens = CounterMetricFamily(
            "onefleet_gateway_tokens", "Tokens metered", labels=["deployment", "operation", "kind"]
        )
        for (operation, deployment), series in sorted(self.series.items()):
            tokens.add_metric([deployment, operation, "prompt"], series.prompt_tokens)
            tokens.add_metric([deployment, operation, "cached"], series.cached_tokens)
            tokens.add_metric([deployment, operation, "completion"], series.completion_tokens)
        yield tokens
        yield from self._counters()
        yield from self._levels()

    def _counters(self) -> Iterable[Metric]:
        by_status = {str(status): count for status, count in sorted(self.answers.items())}
        yield _counter("answers", "Answers begun, by status", "status", by_status)
        yield _counter(
            "errors", "Error answers, by code", "code", dict(sorted(self.errors.items()))
        )
        yield _counter(
            "refusals", "Requests over a quota", "quota", dict(sorted(self.refused.items()))
        )
        for name, text, value in (
            ("clients_left", "Clients that left before their answer was whole", self.left),
            ("streams_cut", "Streams ended by an error event", self.cut),
            ("retries", "Requests asked of another replica", self.retries),
        ):
            yield CounterMetricFamily(f"onefleet_gateway_{name}", text, value=value)

    def _levels(self) -> Iterable[Metric]:
        active = GaugeMetricFamily(
            "onefleet_gateway_active", "Requests that an engine answers", labels=["deployment"]
        )
        waiting = GaugeMetricFamily(
            "onefleet_gateway_waiting", "Requests held for a replica", labels=["deployment"]
        )
        for name, running, held in self.demand:
            active.add_metric([name], running)
            waiting.add_metric([name], held)
        yield active
        yield waiting
        for name, value in sorted(self.gauges.items()):
            yield GaugeMetricFamily(f"onefleet_gateway_{name}", name.replace("_", " "), value=value)
        build = GaugeMetricFamily("onefleet_gateway_build", "Always 1", labels=["version"])
        build.add_metric([__version__], 1)
        yield build


def _counter(name: str, text: str, label: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"onefleet_gateway_{name}", text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family
