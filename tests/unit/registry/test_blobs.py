"""What a folder's files take, while somebody works in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from onefleet.registry import blobs


def _fill(folder: Path) -> None:
    for name, size in (("a", 3), ("b/c", 5), ("b/d/e", 7)):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * size)


def test_a_folder_takes_what_its_files_do_at_any_depth(tmp_path: Path) -> None:
    _fill(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert blobs.folder_bytes(tmp_path) == 15 + len(str(tmp_path / "a"))
    assert blobs.folder_bytes(tmp_path / "none") == 0


@pytest.mark.parametrize(("gone", "left"), [("b/c", 10), ("b/d", 8), ("b", 3)])
def test_what_is_removed_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str, left: int
) -> None:
    _fill(tmp_path)
    parent, walked = (tmp_path / gone).parent, os.walk

    def walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for step in walked(root):
            if Path(step[0]) == parent:  # it was listed, and is gone when it is looked at
                place = tmp_path / gone
                shutil.rmtree(place) if place.is_dir() else place.unlink()
            yield step

    monkeypatch.setattr(os, "walk", walk)
    assert blobs.folder_bytes(tmp_path) == left
