"""Whatever is saved, folded, forgotten and cleaned up: what is kept comes back bit by bit."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from onefleet.drivers import packs, recipe
from onefleet.drivers.chunk_store import ChunkStore
from onefleet.drivers.recipe import CHUNK

#: A file as a list of page numbers (0: zeros) and the bytes of a last page that is not full.
FILE = st.tuples(st.lists(st.integers(0, 12), max_size=40), st.binary(max_size=9))
IMAGE = st.dictionaries(st.sampled_from("abc"), FILE, min_size=1, max_size=3)
#: Save an image of that name (and forget an older one of it), or forget one.
STEP = st.tuples(st.integers(0, 3), st.none() | IMAGE)


def written(folder: Path, contents: dict[str, tuple[list[int], bytes]]) -> dict[str, Path]:
    folder.mkdir()
    files = {}
    for name, (numbers, tail) in contents.items():
        files[name] = folder / name
        files[name].write_bytes(b"".join(bytes([n]) * CHUNK for n in numbers) + tail)
    return files


@settings(max_examples=40, deadline=None)
@given(st.lists(STEP, max_size=8))
def test_kept_images_come_back_and_nothing_else_is_kept(steps: list) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        store = ChunkStore(root / "chunks")
        kept: dict[Path, dict[str, bytes]] = {}
        for number, (name, contents) in enumerate(steps):
            path = root / f"{name}.json"
            with store.writing() as writer:
                kept.pop(path, None)
                path.unlink(missing_ok=True)
                if contents is not None:
                    files = written(root / f"raw{number}", contents)
                    recipe.write(path, writer.fold(files))
                    kept[path] = {name: file.read_bytes() for name, file in files.items()}
                writer.collect(sorted(kept))
            for at, whole in enumerate(kept.values()):
                target = root / f"out{number}-{at}"
                target.mkdir()
                store.unfold(list(kept)[at], target)
                assert {f.name: f.read_bytes() for f in target.iterdir()} == whole
        live = {
            packs.digest_of(page.ljust(CHUNK, b"\0"))
            for whole in kept.values()
            for file in whole.values()
            for page in (file[at : at + CHUNK] for at in range(0, len(file), CHUNK))
        } - {packs.digest_of(bytes(CHUNK))}
        stored = [
            digest
            for name in packs.names_in(store.folder)
            for digest in packs.digests_in(packs.Pack(store.folder, name).digests)
        ]
        assert live <= set(stored)
        assert len(stored) == len(set(stored)), "nothing is stored twice"
        assert len(stored) <= 2 * len(live), "less than half of a pack lives: it is written anew"
        assert store.missing(sorted(live)) == []
