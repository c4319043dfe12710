"""What an agent gets from its control plane besides its orders."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, cast

import pytest

from onefleet.agent.link import CODE_PATIENCE_S, Link
from onefleet.domain.errors import NotFound, OnefleetError, Unreachable
from onefleet.domain.layout import Layout
from onefleet.registry import code
from onefleet.registry.blobs import blob_path
from onefleet.wire.client import Client


class Pool:
    """Gives the package once it has failed in these ways; never, where it does so for ever."""

    def __init__(self, data: bytes, *failures: OnefleetError, ever: bool = False) -> None:
        self.data, self.failures, self.ever = data, list(failures), ever
        self.now = 0.0

    def download(self, path: str, file: BinaryIO) -> None:
        if self.failures:
            raise self.failures[0] if self.ever else self.failures.pop(0)
        file.write(self.data)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def package(tmp_path: Path) -> code.CodePackage:
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.py").write_text("print()")
    return code.pack(source)


def get(pool: Pool, package: code.CodePackage, layout: Layout) -> None:
    link = Link(cast(Client, pool), joined=True)
    link.get_code(layout, package.digest, clock=pool.clock, sleep=pool.sleep)


def test_code_is_waited_for_while_the_pool_is_away(
    package: code.CodePackage, tmp_path: Path
) -> None:
    away, layout = Unreachable("nothing answers"), Layout(tmp_path / "data")
    pool = Pool(package.data, away, away)
    get(pool, package, layout)
    assert blob_path(layout, package.digest).read_bytes() == package.data
    assert 0 < pool.now < CODE_PATIENCE_S


def test_it_is_not_waited_for_without_an_end(package: code.CodePackage, tmp_path: Path) -> None:
    pool = Pool(package.data, Unreachable("nothing answers"), ever=True)
    with pytest.raises(Unreachable):
        get(pool, package, Layout(tmp_path / "data"))
    assert pool.now == CODE_PATIENCE_S


def test_what_the_pool_does_not_have_is_asked_for_once(
    package: code.CodePackage, tmp_path: Path
) -> None:
    pool = Pool(package.data, NotFound("no such code"), ever=True)
    with pytest.raises(NotFound):
        get(pool, package, Layout(tmp_path / "data"))
    assert pool.now == 0
    assert list(Layout(tmp_path / "data").downloads.iterdir()) == []
