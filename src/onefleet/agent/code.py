"""Unpacks a job's packaged code folder into the folder that it runs in."""

from __future__ import annotations

import tarfile
from pathlib import Path

from onefleet.domain.errors import InvalidRequest, NotFound
from onefleet.domain.layout import Layout


def unpack(layout: Layout, digest: str, folder: Path) -> None:
    """Unpack the tar with this digest. Nothing is written outside the folder, and no device.

    Raises NotFound when the pool does not have it, InvalidRequest when it is no such tar.
    """
    blob = layout.blobs / digest.removeprefix("sha256:")
    try:
        with tarfile.open(blob, "r:*") as archive:
            archive.extractall(folder, filter="data")
    except FileNotFoundError as error:
        raise NotFound(
            f"the job's code {digest} is not in {layout.blobs}", hint="submit the job again"
        ) from error
    except (tarfile.TarError, EOFError) as error:
        raise InvalidRequest(
            f"the job's code {digest} cannot be unpacked", why=str(error)
        ) from error
