"""Chunks between two stores: only what is lacking crosses, and only what it says it is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from onefleet.domain.errors import NotFound, UpstreamFailed
from onefleet.drivers import image, recipe, transfer
from onefleet.drivers.chunk_store import ChunkStore

from .test_chunk_store import content, fold, in_packs, make, page, pages

HERE = pages(*range(1, 200), 0, 0) + b"end"
THERE = pages(*range(1, 100))


@pytest.fixture
def here(tmp_path: Path) -> ChunkStore:
    return ChunkStore(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> ChunkStore:
    return ChunkStore(tmp_path / "there")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "image", a=HERE, b=page(7), c=b"")


def files(target: Path) -> dict[str, Path]:
    return {name: target / name for name in image.read(str(target))["files"]}


def brought(there: ChunkStore, listing: transfer.Listing, stream: bytes, target: Path) -> int:
    """What the receiver does; how many chunks were new."""
    target.mkdir()
    with there.writing() as writer:
        count = transfer.receive(writer, io.BytesIO(stream))
        recipe.write(target / recipe.NAME, transfer.adopt(writer, listing))
    there.unfold(target / recipe.NAME, target)
    return count


@pytest.mark.parametrize("folded", [True, False])
def test_only_what_is_lacking_crosses(
    tmp_path: Path, here: ChunkStore, there: ChunkStore, source: Path, folded: bool
) -> None:
    fold(there, make(tmp_path / "old", a=THERE))
    if folded:
        fold(here, source)
        listing = transfer.listing(here, source / recipe.NAME)
        assert listing == transfer.listing_of_files(files(source))
    else:
        listing = transfer.listing_of_files(files(source))
    crossed = transfer.decoded(listing.encoded())
    assert crossed == listing
    missing = there.missing(crossed.digests)
    assert len(missing) == 101
    if folded:
        stream = b"".join(transfer.export(here, missing))
    else:
        stream = b"".join(transfer.export_files(files(source), listing, missing))
    assert len(stream) < 101 * 4096
    assert brought(there, crossed, stream, tmp_path / "new") == 101
    assert content(tmp_path / "new") == content(source)
    assert there.missing(crossed.digests) == []
    assert in_packs(there) == 200


def test_what_is_sent_twice_is_kept_once(
    tmp_path: Path, here: ChunkStore, there: ChunkStore, source: Path
) -> None:
    fold(here, source)
    listing = transfer.listing(here, source / recipe.NAME)
    stream = b"".join(transfer.export(here, listing.digests))
    assert brought(there, listing, stream, tmp_path / "1") == 200
    assert brought(there, listing, stream, tmp_path / "2") == 0
    assert in_packs(there) == 200


def test_a_stream_that_is_broken_off_leaves_nothing(
    here: ChunkStore, there: ChunkStore, source: Path
) -> None:
    fold(here, source)
    listing = transfer.listing(here, source / recipe.NAME)
    stream = b"".join(transfer.export(here, listing.digests))
    for length in (0, 3, 6, 1000, len(stream) - 7, len(stream) - 6, len(stream) - 1):
        with there.writing() as writer, pytest.raises(UpstreamFailed, match="broken off"):
            transfer.receive(writer, io.BytesIO(stream[:length]))
        assert in_packs(there) == 0
        assert not list(there.folder.glob("*.partial"))


def test_nonsense_is_refused(there: ChunkStore) -> None:
    for nonsense in (b"\xff" * 64, b"\1\0\4\0\0\0zstd"):
        with there.writing() as writer, pytest.raises(UpstreamFailed, match="makes no sense"):
            transfer.receive(writer, io.BytesIO(nonsense))
    for listing in (b"", b"[]\nx", b'[["../a", 0]]\n', b'[["a", 1]]\n', b"{}", b"[1]\n"):
        with pytest.raises(UpstreamFailed, match="makes no sense"):
            transfer.decoded(listing if listing != b"{}" else b'{"a": 1}\n')


def test_chunks_are_what_their_bytes_are(
    tmp_path: Path, here: ChunkStore, there: ChunkStore, source: Path
) -> None:
    """A sender that sends something else gives nothing that is taken for what was asked for."""
    fold(here, make(tmp_path / "other", a=pages(500, 501)))
    listing = transfer.listing_of_files(files(source))
    stream = b"".join(transfer.export(here, here_digests(here, tmp_path / "other")))
    with there.writing() as writer:
        assert transfer.receive(writer, io.BytesIO(stream)) == 2
        with pytest.raises(NotFound, match="200 chunks"):
            transfer.adopt(writer, listing)


def test_what_is_not_there_cannot_be_sent(here: ChunkStore, source: Path) -> None:
    fold(here, source)
    with pytest.raises(NotFound, match="1 chunks"):
        list(transfer.export(here, [b"x" * 32]))


def here_digests(store: ChunkStore, target: Path) -> tuple[bytes, ...]:
    return transfer.listing(store, target / recipe.NAME).digests
