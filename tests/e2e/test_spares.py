"""A spare node takes over, at once, what ran on a node that lost its power; nobody else gets it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from onefleet.domain.layout import Layout
from tests.e2e.harness import LOCAL, Node, Pool, copies, two_nodes, until

pytestmark = pytest.mark.e2e

#: A lease, the grace after it, and a restore, on a slow machine.
LOSS_S = 180.0


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Pool, Node]]:
    with two_nodes(tmp_path) as both:
        yield both


def phase_and_node(it: Pool, job: str) -> tuple[str, str]:
    found = it.job(job)
    return str(found["phase"]), str(found["node"])


def spares(it: Pool) -> list[str]:
    (row,) = it.json("spare", "list")
    return list(row["nodes"])


def test_it_goes_on_on_the_spare_and_what_waits_does_not(
    two: tuple[Pool, Node], undisturbed: str
) -> None:
    it, n2 = two
    first = it.submit("--checkpoint-every", "10s", name="first")
    until("it runs", lambda: it.job(first)["phase"] == "running")
    if phase_and_node(it, first) != ("running", n2.id):
        it.run("migrate", first, "--to", n2.id, "--wait")
    here = Layout(it.folder).worker(first, 0) / "images"
    before, moved_as = copies(here), it.job(first)["saved_at"]
    it.run("spare", "set", "1")
    until("the empty node is the spare", lambda: spares(it) == ["local"])
    waits = it.submit(name="waits")
    assert "kept as a spare" in it.run("why", waits)

    until("it is saved as it runs", lambda: it.job(first)["saved_at"] != moved_as)
    saved_at = it.job(first)["saved_at"]
    until("a copy is here", lambda: copies(here) - before)
    n2.die()
    until("the spare has it", lambda: phase_and_node(it, first) == ("running", LOCAL), LOSS_S)
    assert it.job(first)["saved_at"] >= saved_at and it.job(waits)["phase"] == "pending"
    assert spares(it) == []

    n2.start()
    until("the node is the spare now", lambda: spares(it) == [n2.name])
    assert it.job(waits)["phase"] == "pending"
    it.run("spare", "set", "0")
    until("what waited runs", lambda: phase_and_node(it, waits) == ("running", n2.id))
    for job in (first, waits):
        it.finished(job)
        assert it.printed_once(job) and it.digest(job) == undisturbed
