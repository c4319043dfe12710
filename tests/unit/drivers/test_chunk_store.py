"""Images in chunks: put together again bit by bit, or refused; nothing kept that is not needed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from onefleet.domain.errors import NotFound, StorageFull, UpstreamFailed
from onefleet.drivers import chunk_store, image, packs, recipe
from onefleet.drivers.chunk_store import ChunkStore
from onefleet.drivers.packs import FRAME
from onefleet.drivers.recipe import CHUNK

RNG = random.Random(4)


def page(number: int) -> bytes:
    """A page that compresses somewhat and is like no other."""
    return (b"page %d " % number).ljust(CHUNK // 2, b".") + random.Random(number).randbytes(2048)


def pages(*numbers: int) -> bytes:
    return b"".join(page(n) if n else bytes(CHUNK) for n in numbers)


def make(target: Path, **files: bytes) -> Path:
    partial = Path(image.begin(str(target)))
    for name, content in files.items():
        (partial / name).write_bytes(content)
    image.commit(str(target), {"kind": "criu"})
    return target


def fold(store: ChunkStore, target: Path) -> recipe.Recipe:
    """What the agent does with an image once it is saved."""
    names = image.read(str(target))["files"]
    with store.writing() as writer:
        made = writer.fold({name: target / name for name in names})
        assert writer.checksums(made) == checksums(target)
        recipe.write(target / recipe.NAME, made)
    return made


def checksums(target: Path) -> dict[str, str]:
    return {name: entry["xxh3"] for name, entry in image.read(str(target))["files"].items()}


def content(target: Path) -> dict[str, bytes]:
    return {
        f.name: f.read_bytes()
        for f in sorted(target.iterdir())
        if f.is_file() and f.name not in (image.MANIFEST, recipe.NAME)
    }


def put_together(store: ChunkStore, target: Path) -> dict[str, bytes]:
    with image.opened(str(target), str(store.folder)):
        return content(target)


def in_packs(store: ChunkStore) -> int:
    """How many chunks are stored."""
    return sum(packs.Pack(store.folder, n).chunks for n in packs.names_in(store.folder))


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    return ChunkStore(tmp_path / "chunks")


def test_files_come_back_as_they_were(tmp_path: Path, store: ChunkStore) -> None:
    files = {
        "empty": b"",
        "short": b"x",
        "page": page(1),
        "odd": pages(1, 2, 0, 0, 3) + b"tail",
        "zeros": bytes(3 * CHUNK + 7),
        "long": pages(*range(1, 3 * FRAME)),
    }
    target = make(tmp_path / "image", **files)
    made = fold(store, target)
    assert image.drop_raw(str(target))
    assert content(target) == {}
    assert made.size_bytes == sum(map(len, files.values()))
    assert put_together(store, target) == files


def test_equal_pages_are_stored_once_and_zeros_not_at_all(
    tmp_path: Path, store: ChunkStore
) -> None:
    first = make(tmp_path / "1", a=pages(1, 2, 0, 3, 2), b=pages(3, 1))
    fold(store, first)
    assert in_packs(store) == 3
    before = store.size_bytes
    second = make(tmp_path / "2", a=pages(9, 1, 2, 0, 3))  # shifted by a page
    made = fold(store, second)
    assert in_packs(store) == 4
    assert store.size_bytes - before < 2 * CHUNK
    assert len(made.runs) == 4
    twin = make(tmp_path / "3", a=pages(9, 1, 2, 0, 3))
    fold(store, twin)
    assert in_packs(store) == 4
    assert in_packs(ChunkStore(tmp_path / "of-another-work")) == 0
    for target in (first, second, twin):
        whole = content(target)
        image.drop_raw(str(target))
        assert put_together(store, target) == whole


def test_runs_make_a_recipe_small(tmp_path: Path, store: ChunkStore) -> None:
    target = make(tmp_path / "image", a=pages(*range(1, 1000)))
    made = fold(store, target)
    assert len(made.runs) == 1
    assert (target / recipe.NAME).stat().st_size < 500


def test_many_packs_and_batches(
    tmp_path: Path, store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_store, "CHUNKS_MAX", 5)
    files = {"a": pages(*range(1, 18)), "b": pages(*range(10, 30)) + b"end", "c": b"end"}
    target = make(tmp_path / "image", **files)
    made = fold(store, target)
    assert len(made.packs) == 6
    assert in_packs(store) == 30
    image.drop_raw(str(target))
    assert put_together(store, target) == files


def test_what_no_recipe_names_is_removed(tmp_path: Path, store: ChunkStore) -> None:
    one = make(tmp_path / "1", a=pages(*range(1, 100)))
    two = make(tmp_path / "2", a=pages(*range(1, 20), *range(200, 250)))
    for target in (one, two):
        fold(store, target)
    paths = [one / recipe.NAME, two / recipe.NAME]
    with store.writing() as writer:
        assert writer.collect(paths) == 0
    assert in_packs(store) == 149
    whole = content(two)
    image.drop_raw(str(two))
    image.discard(str(one))
    with store.writing() as writer:  # of the first pack 19 of 99 live: it is written anew
        assert writer.collect(paths) > 0
    assert in_packs(store) == 69
    assert put_together(store, two) == whole
    image.discard(str(two))
    with store.writing() as writer:
        writer.collect(paths)
    assert packs.names_in(store.folder) == []
    assert store.size_bytes == 0


def test_a_pack_with_much_that_lives_stays(tmp_path: Path, store: ChunkStore) -> None:
    one = make(tmp_path / "1", a=pages(*range(1, 100)))
    fold(store, one)
    two = make(tmp_path / "2", a=pages(*range(1, 60)))
    made = fold(store, two)
    with store.writing() as writer:
        assert writer.collect([two / recipe.NAME]) == 0
    assert recipe.read(two / recipe.NAME) == made


def test_a_reader_goes_on_while_its_packs_are_cleaned_up(tmp_path: Path, store: ChunkStore) -> None:
    one = make(tmp_path / "1", a=pages(*range(1, 100)))
    fold(store, one)
    two = make(tmp_path / "2", a=pages(*range(1, 20)))
    before = fold(store, two)
    with store.opened(two / recipe.NAME) as (_, opened):
        with store.writing() as writer:
            writer.collect([two / recipe.NAME])
        assert recipe.read(two / recipe.NAME).packs != before.packs
        assert opened[0].frame(0)[:CHUNK] == page(1)


def test_a_reader_that_comes_between_reads_the_recipe_anew(
    tmp_path: Path, store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make(tmp_path / "1", a=pages(1, 2))
    now = fold(store, target)
    old = recipe.Recipe(now.files, ("0" * 32,), now.runs)
    answers = iter([old, now])
    monkeypatch.setattr(chunk_store.recipe, "read", lambda _path: next(answers))
    with store.opened(target / recipe.NAME) as (found, _):
        assert found is now


def test_what_is_damaged_is_refused_with_words(tmp_path: Path, store: ChunkStore) -> None:
    target = make(tmp_path / "image", a=pages(*range(1, 200)))
    fold(store, target)
    image.drop_raw(str(target))
    (pack,) = store.folder.glob("*.pack")
    whole, told = pack.read_bytes(), (target / recipe.NAME).read_bytes()

    def flip(at: int) -> bytes:
        changed = bytearray(whole)
        changed[at] ^= 1
        return bytes(changed)

    damages: list[tuple[Path, bytes | None, str]] = [
        (pack, flip(len(whole) // 2), "frame"),
        (pack, flip(40), "frame"),
        (pack, flip(-1), "does not end as a pack does"),
        (pack, flip(-100), "checksum of its table"),
        (pack, whole[:-1], "does not end as a pack does"),
        (pack, whole[: len(whole) // 2], "does not end as a pack does"),
        (pack, b"", "too short"),
        (pack, None, "is gone"),
        (target / recipe.NAME, told[:-9], "Unterminated"),
        (target / recipe.NAME, told.replace(b'["a"', b'["b"'), "digest or format"),
        (target / recipe.NAME, b"[]", "list indices"),
        (target / recipe.NAME, b"{}", "recipe"),
    ]
    for path, damage, why in damages:
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(UpstreamFailed, match="torn or corrupt") as caught:
            put_together(store, target)
        assert why in caught.value.why, caught.value.why
        assert content(target) == {}, "nothing half done is left"
        path.write_bytes(whole if path == pack else told)
    assert put_together(store, target) == {"a": pages(*range(1, 200))}


def test_a_chunk_that_decays_in_a_frame_that_is_not_compressed_is_seen(
    tmp_path: Path, store: ChunkStore
) -> None:
    target = make(tmp_path / "image", a=RNG.randbytes(CHUNK * 10))
    fold(store, target)
    image.drop_raw(str(target))
    (pack,) = store.folder.glob("*.pack")
    content = bytearray(pack.read_bytes())
    content[5000] ^= 4
    pack.write_bytes(content)
    with pytest.raises(UpstreamFailed, match="torn or corrupt") as caught:
        put_together(store, target)
    assert "a has been changed" in caught.value.why


def test_a_recipe_of_the_first_format_can_be_read(tmp_path: Path) -> None:
    body = {"format": 1, "files": [["x", CHUNK * 3]], "packs": ["p"], "runs": [0, 7, 2, -1, 0, 1]}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path = tmp_path / recipe.NAME
    path.write_text(json.dumps({"recipe": body, "sha256": digest}))
    runs = (recipe.Run(0, 7, 2), recipe.Run(recipe.ZEROS, 0, 1))
    assert recipe.read(path) == recipe.Recipe((("x", CHUNK * 3),), ("p",), runs)
    recipe.write(path, recipe.read(path))
    assert recipe.read(path).runs == runs


def test_a_recipe_of_other_places_makes_no_sense(tmp_path: Path) -> None:
    path = tmp_path / recipe.NAME
    for files, runs in (
        ((("../x", 1),), (recipe.Run(0, 0, 1),)),
        ((("x", 1),), (recipe.Run(0, 0, 2),)),
        ((("", 1),), (recipe.Run(0, 0, 1),)),
    ):
        recipe.write(path, recipe.Recipe(files, ("p",), runs))
        with pytest.raises(UpstreamFailed, match="makes no sense"):
            recipe.read(path)


def test_raw_files_that_decayed_are_replaced_by_the_chunks(
    tmp_path: Path, store: ChunkStore
) -> None:
    target = make(tmp_path / "image", a=pages(1, 2), b=b"b")
    fold(store, target)
    (target / "a").write_bytes(pages(1, 3))
    assert put_together(store, target) == {"a": pages(1, 2), "b": b"b"}
    (target / "b").unlink()
    assert put_together(store, target) == {"a": pages(1, 2), "b": b"b"}


def test_an_image_that_was_never_folded_is_opened_as_it_is(
    tmp_path: Path, store: ChunkStore
) -> None:
    target = make(tmp_path / "image", a=pages(1, 2))
    assert put_together(store, target) == {"a": pages(1, 2)}
    (target / "a").unlink()
    with pytest.raises(UpstreamFailed, match="torn or corrupt"):
        put_together(store, target)
    with pytest.raises(NotFound), image.opened(str(tmp_path / "none"), None):
        pass


def test_files_that_are_needed_are_not_dropped(tmp_path: Path, store: ChunkStore) -> None:
    target = make(tmp_path / "image", a=pages(1, 2))
    fold(store, target)
    with image.opened(str(target), str(store.folder)):
        assert not image.drop_raw(str(target))
        assert content(target) == {"a": pages(1, 2)}
    assert image.drop_raw(str(target))


def test_damage_in_an_old_pack_does_not_spread(tmp_path: Path, store: ChunkStore) -> None:
    """A fold that relies on no chunk that is here is whole whatever happened to these."""
    one = make(tmp_path / "1", a=pages(*range(1, 60)))
    fold(store, one)
    (pack,) = store.folder.glob("*.pack")
    damaged = bytearray(pack.read_bytes())
    damaged[1000] ^= 1
    pack.write_bytes(damaged)
    two = make(tmp_path / "2", a=pages(*range(1, 80)))
    with store.writing() as writer:
        with pytest.raises(UpstreamFailed):
            writer.checksums(writer.fold({"a": two / "a"}))
        recipe.write(two / recipe.NAME, writer.fold({"a": two / "a"}, afresh=True))
    image.drop_raw(str(two))
    assert put_together(store, two) == {"a": pages(*range(1, 80))}
    # A pack with little that lives is not written anew with its damage: it stays as it is.
    three = make(tmp_path / "3", a=pages(*range(1, 5)))
    with store.writing() as writer:
        recipe.write(three / recipe.NAME, recipe.Recipe(
            (("a", 4 * CHUNK),), (pack.name.removesuffix(".pack"),), (recipe.Run(0, 0, 4),)
        ))  # fmt: skip
        writer.collect([two / recipe.NAME, three / recipe.NAME])
    assert pack.exists()


def test_a_pack_whose_table_is_damaged_is_not_relied_on(tmp_path: Path, store: ChunkStore) -> None:
    one = make(tmp_path / "1", a=pages(1, 2, 3))
    fold(store, one)
    (pack,) = store.folder.glob("*.pack")
    pack.write_bytes(pack.read_bytes()[:-3])
    two = make(tmp_path / "2", a=pages(1, 2, 3))
    fold(store, two)  # gets the same name, and with that the damaged one is mended
    image.drop_raw(str(two))
    assert put_together(store, two) == {"a": pages(1, 2, 3)}


def test_a_recipe_that_cannot_be_read_lets_nothing_be_removed(
    tmp_path: Path, store: ChunkStore
) -> None:
    one = make(tmp_path / "1", a=pages(1, 2, 3))
    fold(store, one)
    (one / recipe.NAME).write_text("{")
    with store.writing() as writer, pytest.raises(UpstreamFailed):
        writer.collect([one / recipe.NAME])
    assert in_packs(store) == 3


def full_after(monkeypatch: pytest.MonkeyPatch, calls: int, name: str = "fsync") -> None:
    """The disk is full from the so manieth call on."""
    real: Callable[..., object] = getattr(os, name)
    count = iter(range(1_000_000))

    def fail(*arguments: object) -> object:
        if next(count) >= calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("least", [1, CHUNK, 3 * CHUNK + 7])
def test_what_the_disk_takes_in_parts_is_written_whole(
    tmp_path: Path, store: ChunkStore, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    """Kept pages lie between new ones, so that a stretch of the file comes from two packs."""
    before, after = list(range(1, 200)), [n + 500 * (n % 5 == 0) for n in range(1, 200)]
    for at, numbers in enumerate((before, after)):
        fold(store, make(tmp_path / str(at), a=pages(*numbers)))
    image.drop_raw(str(tmp_path / "1"))
    real = os.pwritev

    def some(descriptor: int, buffers: list[bytes], offset: int) -> int:
        return real(descriptor, [b"".join(buffers)[:least]], offset)

    monkeypatch.setattr(os, "pwritev", some)
    assert put_together(store, tmp_path / "1") == {"a": pages(*after)}


@pytest.mark.parametrize("calls", range(4))
def test_a_full_disk_in_a_fold_leaves_the_image_usable(
    tmp_path: Path, store: ChunkStore, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    target = make(tmp_path / "image", a=pages(*range(1, 100)))
    with monkeypatch.context() as patch:
        full_after(patch, calls)
        with pytest.raises(OSError, match="No space"):
            fold(store, target)
    assert not list(store.folder.glob("*.partial"))
    assert put_together(store, target) == {"a": pages(*range(1, 100))}
    fold(store, target)
    with store.writing() as writer:
        writer.collect([target / recipe.NAME])
    assert in_packs(store) == 99


def test_a_full_disk_in_a_restore_is_told_and_harms_nothing(
    tmp_path: Path, store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make(tmp_path / "image", a=pages(*range(1, 400)))
    fold(store, target)
    image.drop_raw(str(target))
    with monkeypatch.context() as patch:
        full_after(patch, 3, "pwritev")
        with pytest.raises(StorageFull, match="no space left") as caught:
            put_together(store, target)
    assert str(399 * CHUNK) in caught.value.why
    assert content(target) == {}
    assert put_together(store, target) == {"a": pages(*range(1, 400))}


def test_what_is_missing_is_named_once_and_in_order(tmp_path: Path, store: ChunkStore) -> None:
    digests = [hashlib.sha256(page(n) if n else bytes(CHUNK)).digest() for n in range(6)]
    assert store.missing(digests) == digests[1:]
    fold(store, make(tmp_path / "1", a=pages(2, 4)))
    assert store.missing([*digests, digests[5]]) == [digests[1], digests[3], digests[5]]


def test_who_waited_for_a_store_that_was_removed_writes_to_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, waits, target = ChunkStore(tmp_path / "store"), threading.Event(), tmp_path / "image"
    make(target, pages=pages(1, 2))
    flock = fcntl.flock

    def told(lock: IO[str], how: int) -> None:
        waits.set()
        flock(lock, how)

    with ThreadPoolExecutor(1) as pool, store.writing():
        monkeypatch.setattr(fcntl, "flock", told)
        folded = pool.submit(fold, store, target)
        assert waits.wait(60)
        shutil.rmtree(store.folder)
    folded.result(60)
    with store.opened(target / recipe.NAME) as (_, packs):
        assert len(packs) == 1
    assert (store.folder / "lock").exists()
