"""Between two nodes' agents: what one serves of itself over HTTP/1.1, to who has a ticket.

GET  /images/<work>/<rank>/<image>                what there is of the image (`ImageFiles`); of
                                                  one that is being made, its pages so far
GET  /images/<work>/<rank>/<image>/files/<file>   one file; `range: bytes=N-`: the rest of it
GET  /images/<work>/<rank>/<image>/listing        its content (`drivers.transfer.Listing`)
POST /images/<work>/<rank>/<image>/chunks         digests in, a stream of these chunks out
GET  /logs/<work>/<rank>/<stream>                 what the worker printed, `range` as above
"""

from __future__ import annotations

import msgspec

from onefleet.domain.ids import ImageId, WorkId

TICKET_HEADER = "x-onefleet-ticket"


class ImageFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an image."""

    name: str
    size: int


class ImageFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What an image consists of. raw: its files are there as they were saved; else its chunks.
    growing: it is being made, and there will be more of these files, and others; all of them are
    expected to have so many bytes.
    """

    files: tuple[ImageFile, ...]
    raw: bool
    growing: bool = False
    expected: int = 0


def image_path(work_id: WorkId, rank: int, image: ImageId) -> str:
    """Where a worker's image is served."""
    return f"/images/{work_id}/{rank}/{image}"


def log_path(work_id: WorkId, rank: int, stream: str) -> str:
    """Where what a worker printed is served."""
    return f"/logs/{work_id}/{rank}/{stream}"
