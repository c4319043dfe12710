"""Imitated traces have the statistics of what they imitate, and are the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest

from onefleet.sim.traces import imitate
from onefleet.sim.traces.requests import prefix_hits


@pytest.fixture(scope="module")
def jobs():
    return imitate.philly(11, 30_000)


def test_run_times_are_heavy_tailed(jobs):
    """Philly: median 1,144 s, p90 11,266 s, p99 254,884 s, mean 13,136 s."""
    run_s = sorted(job.duration_ms / 1000 for job in jobs)
    count = len(run_s)
    assert run_s[count // 2] == pytest.approx(1_144, rel=0.1)
    assert run_s[count * 9 // 10] == pytest.approx(11_266, rel=0.25)
    assert run_s[count * 99 // 100] == pytest.approx(254_884, rel=0.25)
    assert sum(run_s) / count == pytest.approx(13_136, rel=0.25)
    top = sum(run_s[-count // 100 :])
    assert top / sum(run_s) > 0.3  # one job in a hundred runs a third of the time


def test_the_load_is_the_traces(jobs):
    """Philly: 11.9 GPU-hours a job over 108.9 days, so that 512 GPUs are 0.73 busy."""
    device_hours = sum(job.duration_ms * job.devices for job in jobs) / 3_600_000
    assert device_hours / len(jobs) == pytest.approx(11.9, rel=0.35)
    assert jobs[-1].arrived / imitate.DAY_MS == pytest.approx(109, abs=1)


def test_most_gangs_are_one_device_and_a_few_are_large(jobs):
    sizes = Counter(job.devices for job in jobs)
    assert sizes[1] / len(jobs) == pytest.approx(0.93, abs=0.02)
    assert max(sizes) >= 32
    large = sum(job.duration_ms * job.devices for job in jobs if job.devices > 1)
    assert large / sum(job.duration_ms * job.devices for job in jobs) > 0.2


def test_arrivals_come_in_bursts_by_day_hour_and_team(jobs):
    hours = Counter(job.arrived // imitate.HOUR_MS for job in jobs)
    span = jobs[-1].arrived // imitate.HOUR_MS + 1
    mean = len(jobs) / span
    variance = sum((hours[hour] - mean) ** 2 for hour in range(span)) / span
    assert variance / mean > 5  # a Poisson stream has 1
    teams = Counter(job.vc for job in jobs).most_common()
    assert len(teams) >= 11
    assert teams[0][1] / len(jobs) == pytest.approx(0.5, abs=0.05)


def test_openb_is_as_large_and_as_wanted():
    """openb: 6,212 GPUs on 1,523 nodes; pods ask for parts of a GPU more often than not."""
    nodes, pods = imitate.openb_nodes(3), imitate.openb_pods(3)
    assert sum(node.gpus for node in nodes) == pytest.approx(6_212, rel=0.15)
    wanted = sum(pod.gpus * pod.gpu_milli for pod in pods) / 1000
    assert wanted == pytest.approx(6_028, rel=0.1)
    parts = sum(1 for pod in pods if 0 < pod.gpu_milli < 1000)
    assert parts / len(pods) > 0.3


def test_requests_have_the_lengths_and_the_shape_of_their_trace():
    azure, aibrix = imitate.azure(3), imitate.aibrix(3)
    assert sum(r.prompt_tokens for r in azure) / len(azure) == pytest.approx(1_155, rel=0.1)
    minutes = Counter(r.arrived // 60_000 for r in azure)
    assert max(minutes.values()) > 1.6 * min(minutes[m] for m in range(50))
    halves = Counter(r.arrived // 30_000 for r in aibrix)
    assert max(halves, key=lambda half: halves[half]) in (7, 8)
    clients = Counter(r.client for r in imitate.lmsys(3)).most_common()
    assert len(clients) >= 24
    assert clients[0][1] / 1_500 == pytest.approx(0.2, abs=0.05)


def test_prompts_share_beginnings_as_mooncakes_do():
    requests = imitate.mooncake(3)
    hits, blocks = prefix_hits(requests)
    assert hits / blocks == pytest.approx(0.366, abs=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: imitate.philly(seed, 300),
        lambda seed: imitate.gavel(seed, 20, 5),
        lambda seed: imitate.openb_nodes(seed, 100),
        lambda seed: imitate.openb_pods(seed, 100),
        lambda seed: imitate.azure(seed, 100),
        lambda seed: imitate.aibrix(seed, 100),
        lambda seed: imitate.lmsys(seed, 100),
        lambda seed: imitate.mooncake(seed, 100),
    ],
)
def test_a_seed_is_a_trace(make):
    assert make(5) == make(5)
    assert make(5) != make(6)
