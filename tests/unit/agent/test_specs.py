"""What a driver is told of a worker that it is to start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onefleet.agent.protocol import WorkerKey
from onefleet.agent.specs import Specs
from onefleet.domain.ids import Generation, WorkId
from onefleet.domain.layout import Layout
from onefleet.registry import code
from onefleet.wire.agent import JobSpec, Order, OrderVerb

KEY = WorkerKey(WorkId("job-1"), 0)


def order(digest: str | None, **changes: Any) -> Order:
    return Order(
        work_id=KEY.work_id,
        rank=0,
        epoch=Generation(1),
        verb=OrderVerb.RUN,
        job=JobSpec(name="j", tenant_id="t", command=("true",), code=digest, **changes),
    )


def test_its_folder_begins_as_its_code_and_where_that_lies_is_said(tmp_path: Path) -> None:
    source, layout = tmp_path / "source", Layout(tmp_path / "data")
    source.mkdir()
    (source / "train.py").write_text("print()")
    package = code.pack(source)
    specs = Specs(layout, ())
    spec = specs.of(KEY, order(code.store(package, layout)), "criu")
    assert (spec.work / "train.py").read_text() == "print()"
    assert spec.origin is not None and spec.origin.read_bytes() == package.data
    (spec.work / "train.py").write_text("changed")
    again = specs.of(KEY, order(package.digest), "criu")  # as for a restore
    assert (again.work / "train.py").read_text() == "changed"
    assert again.origin == spec.origin


def test_a_job_without_code_begins_with_nothing(tmp_path: Path) -> None:
    spec = Specs(Layout(tmp_path), ()).of(KEY, order(None), "criu")
    assert list(spec.work.iterdir()) == []
    assert spec.origin is None


def test_one_worker_meets_itself_where_its_owner_says_else_at_a_place_of_its_own(
    tmp_path: Path,
) -> None:
    def told(**changes: Any) -> dict[str, str]:
        return dict(Specs(Layout(tmp_path), ()).of(KEY, order(None, **changes), "criu").environment)

    alone = told()
    assert (alone["RANK"], alone["WORLD_SIZE"], alone["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")
    assert alone["MASTER_PORT"].isdigit() and "LOCAL_RANK" not in alone
    own = told(environment=(("MASTER_PORT", "1234"),))
    assert own["MASTER_PORT"] == "1234"
    assert told(workers=2)["LOCAL_RANK"] == "0"
