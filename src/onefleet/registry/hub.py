"""Loads models from a Hugging Face hub over HTTPS: list, choose, download with resume, verify.

Every file is checked against the digest that the hub lists (SHA-256 of large files, git's blob id
of small ones). A download that breaks off goes on where it was. The access token is sent to the
hub's own host only, never along a redirect to another.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlsplit

from onefleet.domain.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    OnefleetError,
    Unreachable,
    UpstreamFailed,
)
from onefleet.registry.blobs import CHUNK_BYTES, Progress

DEFAULT_ENDPOINT = "https://huggingface.co"

#: A connection that says nothing for this long is given up.
SILENCE_S = 30.0

LISTING_BYTES_MAX = 32 << 20
FILES_MAX = 10_000

#: How often a download that broke off goes on by itself.
RESUMES_MAX = 5

#: Which of several GGUF files is taken: the first that is there, by its quantisation.
_PREFERRED = ("q4_k_m", "q8_0", "q5_k_m", "q6_k", "q4_1", "q4_0", "f16", "bf16", "f32")

#: Errors of our own disk, not of the network.
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)

_FOLDER_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "1_Pooling/config.json",
    "README.md",
    "model.safetensors.index.json",
)


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub and the right to use it. token: empty for public models; never logged."""

    endpoint: str = DEFAULT_ENDPOINT
    token: str = ""

    def __repr__(self) -> str:
        return f"Hub(endpoint={self.endpoint!r}, token={'set' if self.token else 'none'})"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a model. sha256: of large files; git_id: of small ones (SHA-1 of a git blob)."""

    name: str
    size_bytes: int
    sha256: str
    git_id: str

    @property
    def digest(self) -> str:
        return self.sha256 or self.git_id


@dataclass(frozen=True, slots=True)
class Listing:
    """What a model has at one commit."""

    repository: str
    commit: str
    licence: str
    files: tuple[HubFile, ...]


class _OwnHostOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and leaves the token behind where the host changes."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            following.remove_header("Authorization")
        return following


_opener = urllib.request.build_opener(_OwnHostOnly)


def list_files(hub: Hub, repository: str) -> Listing:
    """The files of a model. Raises NotFound, Forbidden, Unreachable or UpstreamFailed."""
    url = f"{hub.endpoint}/api/models/{quote(repository)}?blobs=true"
    with _open(hub, url, repository) as answer:
        try:
            text = answer.read(LISTING_BYTES_MAX + 1)
            listing = json.loads(text)
            files = tuple(_file(entry) for entry in listing["siblings"][:FILES_MAX])
            card = listing.get("cardData") or {}
            licence = str(card.get("license") or "")
            return Listing(repository, str(listing["sha"]), licence, files)
        except (ValueError, KeyError, TypeError, HTTPException, OSError) as error:
            raise UpstreamFailed(
                f"the hub's listing of {repository} cannot be read",
                why=str(error)[:200],
                hint=f"is {hub.endpoint} a Hugging Face hub?",
            ) from None


def choose(listing: Listing, wanted: str) -> list[HubFile]:
    """The files to download: one GGUF file, or those of a folder that can be converted.

    wanted: the name of a GGUF file, or empty. Raises NotFound or InvalidRequest.
    """
    by_name = {file.name: file for file in listing.files}
    models = [file for file in listing.files if _is_model(file.name)]
    if wanted:
        if wanted not in by_name or not wanted.endswith(".gguf"):
            raise NotFound(
                f"{listing.repository} has no GGUF file {wanted[:200]}",
                hint=f"it has {_names(models)}" if models else "it has none at all",
            )
        return [by_name[wanted]]
    if len(models) == 1:
        return models
    for quantisation in _PREFERRED:
        pattern = re.compile(rf"[.-]{quantisation}\.gguf", re.IGNORECASE)
        matching = [file for file in models if pattern.search(file.name)]
        if len(matching) == 1:
            return matching
    if models:
        raise InvalidRequest(
            f"{listing.repository} has {len(models)} GGUF files",
            why="none is the obvious one",
            hint=f"name it: hf:{listing.repository}/FILE, of {_names(models)}",
            param="source",
        )
    weights = [file for file in listing.files if re.fullmatch(r"model.*\.safetensors", file.name)]
    if not weights or "config.json" not in by_name:
        raise InvalidRequest(
            f"{listing.repository} has neither a GGUF file nor a folder that can be converted",
            why="a folder has config.json and model*.safetensors",
            hint=f"it has {_names(listing.files)}",
            param="source",
        )
    return [by_name[name] for name in _FOLDER_FILES if name in by_name] + weights


def download(
    hub: Hub, listing: Listing, files: Sequence[HubFile], folder: Path, progress: Progress
) -> None:
    """Download the files into the folder; what is there already and right is kept.

    Raises Unreachable when it breaks off too often (calling again goes on where it was),
    UpstreamFailed when a file is not what the listing says.
    """
    total, done = sum(file.size_bytes for file in files), 0
    for file in files:
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (target.is_file() and _matches(target, file)):
            _download_one(hub, listing, file, target, _Meter(progress, done, total))
        done += file.size_bytes
        progress(done, total)


@dataclass(slots=True)
class _Meter:
    progress: Progress
    before: int
    total: int

    def tell(self, done: int) -> None:
        self.progress(self.before + done, self.total)


def _download_one(hub: Hub, listing: Listing, file: HubFile, target: Path, meter: _Meter) -> None:
    partial = target.with_name(f"{target.name}.{file.digest[:16]}.partial")
    address = f"{quote(listing.repository)}/resolve/{quote(listing.commit)}/{quote(file.name)}"
    for attempt in range(RESUMES_MAX + 1):
        try:
            _append(hub, f"{hub.endpoint}/{address}", listing.repository, partial, file, meter)
            break
        except (HTTPException, OSError) as error:
            if isinstance(error, OSError) and error.errno in _LOCAL:
                raise
            if attempt == RESUMES_MAX:
                raise Unreachable(
                    f"the download of {file.name} broke off {attempt + 1} times",
                    why=str(error)[:200],
                    hint="try again: it goes on where it was",
                ) from None
    if not _matches(partial, file):
        size = partial.stat().st_size
        partial.unlink()
        raise UpstreamFailed(
            f"{file.name} of {listing.repository} is not what the hub lists",
            why=f"{size} of {file.size_bytes} bytes, or another digest",
            hint="try again; if it stays so, the hub or a proxy before it is at fault",
        )
    partial.replace(target)


def _append(
    hub: Hub, url: str, repository: str, partial: Path, file: HubFile, meter: _Meter
) -> None:
    """Get what is missing of a file. Raises HTTPException or OSError when it breaks off."""
    have = partial.stat().st_size if partial.exists() else 0
    if have >= file.size_bytes:
        if have == file.size_bytes:
            return
        partial.unlink()
        have = 0
    with _open(hub, url, repository, f"bytes={have}-" if have else "") as answer:
        mode = "ab" if answer.status == 206 else "wb"
        done = have if mode == "ab" else 0
        with partial.open(mode) as out:
            while done < file.size_bytes:
                chunk = answer.read(min(CHUNK_BYTES, file.size_bytes - done))
                if not chunk:
                    raise HTTPException(f"it ended at byte {done} of {file.size_bytes}")
                out.write(chunk)
                done += len(chunk)
                meter.tell(done)


def _open(hub: Hub, url: str, repository: str, span: str = "") -> HTTPResponse:
    """Ask the hub; its refusals become errors of ours."""
    if urlsplit(url).scheme not in ("https", "http"):
        raise InvalidRequest(f'"{hub.endpoint}" is no hub', why="its address begins with https://")
    request = urllib.request.Request(url, headers={"User-Agent": "onefleet"})  # noqa: S310  # checked
    if hub.token:
        request.add_header("Authorization", f"Bearer {hub.token}")
    if span:
        request.add_header("Range", span)
    try:
        return cast(HTTPResponse, _opener.open(request, timeout=SILENCE_S))
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(hub, repository, error.code) from None
    except (urllib.error.URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise Unreachable(
            f"the hub {hub.endpoint} does not answer",
            why=str(reason)[:200],
            hint="check this machine's network and HTTPS_PROXY, set HF_ENDPOINT to a mirror, "
            "or add a GGUF file by path",
        ) from None


def _refusal(hub: Hub, repository: str, status: int) -> OnefleetError:
    if status in (401, 403):
        what = "the token may not read it" if hub.token else "it is private, gated or not there"
        return Forbidden(
            f"the hub does not give {repository} (HTTP {status})",
            why=what,
            hint=f"accept its terms at {hub.endpoint}/{repository} and set HF_TOKEN",
        )
    if status == 404:
        return NotFound(
            f"the hub has no {repository}",
            why=f"{hub.endpoint} answers 404",
            hint="check the spelling; a private model needs HF_TOKEN",
        )
    return Unreachable(
        f"the hub {hub.endpoint} answers HTTP {status} for {repository}",
        why="it is overloaded or failing",
        hint="try again: a download goes on where it was",
    )


def _file(entry: dict[str, Any]) -> HubFile:
    lfs = entry.get("lfs") or {}
    name = str(entry["rfilename"])
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"a file is named {name[:100]}")
    size = int(lfs.get("size", entry.get("size", 0)))
    return HubFile(name, size, str(lfs.get("sha256", "")), str(entry.get("blobId", "")))


def _is_model(name: str) -> bool:
    """A whole GGUF model: no vision projector, no part of a split one."""
    return (
        name.endswith(".gguf")
        and "mmproj" not in name.lower()
        and not re.search(r"-\d{5}-of-\d{5}\.gguf$", name)
    )


def _matches(path: Path, file: HubFile) -> bool:
    size = path.stat().st_size
    if size != file.size_bytes:
        return False
    if file.sha256:
        digest, wanted = hashlib.sha256(), file.sha256
    else:
        digest, wanted = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), file.git_id
    with path.open("rb") as data:
        while chunk := data.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == wanted


def _names(files: Sequence[HubFile]) -> str:
    names = [file.name for file in files]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more
