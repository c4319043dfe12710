"""The demo models from the package index that this machine uses, for real."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from onefleet.domain.errors import StorageFull, Unreachable
from onefleet.domain.ids import Instant
from onefleet.domain.layout import Layout
from onefleet.domain.serving import Model
from onefleet.registry.demo import DEMOS
from onefleet.registry.models import add_model


def add(source: str, layout: Layout) -> tuple[Model, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    try:
        model = asyncio.run(
            add_model(source, None, layout, Instant(1), lambda a, b: told.append((a, b)))
        )
    except (Unreachable, StorageFull) as error:
        pytest.skip(f"{error.what}: {error.why}")
    return model, told


@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_a_demo_model_is_what_the_table_says(tmp_path: Path, name: str) -> None:
    layout, known = Layout(tmp_path), DEMOS[name]
    model, told = add(f"demo:{name}", layout)
    assert model.shape == known.shape
    assert model.size_bytes == known.size_bytes == Path(model.path).stat().st_size
    assert (model.purpose, model.licence, model.family) == (
        known.purpose,
        known.licence,
        known.family,
    )
    assert told[-1] == (known.download_bytes, known.download_bytes)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert model.revision == f"sha256:{known.sha256}"
    assert add(f"demo:{name}", layout) == (model, []), "nothing is fetched a second time"
    assert [path for path in layout.downloads.iterdir() if path.suffix != ".lock"] == []
