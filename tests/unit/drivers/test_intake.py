"""Files that are read while they grow: the same checksums, whenever they were looked at."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from onefleet.drivers import image, intake
from onefleet.drivers.intake import Intake


def test_what_was_followed_gets_the_same_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_STEP", 5000)
    rng = random.Random(3)
    parts = [rng.randbytes(rng.randrange(20_000)) for _ in range(8)]
    target = tmp_path / "image"
    partial = Path(image.begin(str(target)))
    following = Intake(str(partial), durable=True)
    assert not following.step()
    with open(partial / "pages-1.img", "ab", buffering=0) as pages:
        for part in parts:
            pages.write(part)
            while following.step():
                pass
        (partial / "pages-2.img").write_bytes(b"another process")
        (partial / "core-1.img").write_bytes(b"not followed")
        following.step()
        pages.write(b"and what came last")
    manifest = image.commit(str(target), {"kind": "test"}, following)
    following.close()
    assert following.checksum("core-1.img") is None
    assert image.total_bytes(manifest) == sum(map(len, parts)) + 18 + 15 + 12
    image.verify(str(target))


def test_an_error_in_between_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "image"
    partial = Path(image.begin(str(target)))
    (partial / "pages-1.img").write_bytes(b"pages")
    following = Intake(str(partial), durable=True)

    def fail(_descriptor: int) -> None:
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as patch:
        patch.setattr(intake.linux, "start_writing", fail)
        assert not following.step()
    assert following.checksum("pages-1.img") is None
    image.commit(str(target), {"kind": "test"}, following)
    image.verify(str(target))
