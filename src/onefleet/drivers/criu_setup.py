"""Finds a criu that works here, or makes a copy of one that the system does not touch.

Older criu do not work on newer kernels: Debian 12's 3.17 fails on every command, and since Linux
6.16 any before 4.2 fails on every TCP socket. Such versions are never used. The managed copy comes
from the distribution's newer release, by its own apt and keyring: signatures are verified, packages
are only unpacked into a private folder, and run by their own loader with their own libraries.
Nothing of the system is changed.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onefleet.domain.errors import InternalError, TimedOut, Unsupported, UpstreamFailed

#: The first release that knows the layout of newer kernels' vdso.
_MINIMUM = (4, 1)
#: From this kernel on, asking an inet socket for SO_PASSCRED is an error; criu 4.2 knows that.
_NEW_SOCKETS_KERNEL, _NEW_SOCKETS_MINIMUM = (6, 16), (4, 2)
#: Called with what is being done and how far it is, from 0 to 1.
Progress = Callable[[str, float], None]

_RECORD = "criu.json"
_VERSION_LIMIT_S = 20.0
_STEP_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class CriuTool:
    """A criu to use: the words that start its command line, its version, where it is from."""

    command: tuple[str, ...]
    version: str
    source: str


@dataclass(frozen=True, slots=True)
class _Release:
    """Where a distribution has a criu that is new enough."""

    suite: str
    components: str
    keyring: str
    mirror_mark: str  # what the path of its mirrors ends in


_RELEASES = {
    "debian": _Release("forky", "main", "/usr/share/keyrings/debian-archive-keyring.gpg", "debian"),
    "ubuntu": _Release(
        "resolute", "main universe", "/usr/share/keyrings/ubuntu-archive-keyring.gpg", "ubuntu"
    ),
}


def minimum() -> tuple[int, ...]:
    """The oldest criu that works on this kernel."""
    new = _numbers(os.uname().release)[:2] >= _NEW_SOCKETS_KERNEL
    return _NEW_SOCKETS_MINIMUM if new else _MINIMUM


def find_criu(managed: Path, given: Path | None) -> CriuTool:
    """The criu to use: the given one, else the system's if new enough, else the managed copy.

    Blocking. Raises Unsupported that says what there is and what to do.
    """
    if given is not None:
        tool = _examine((str(given),), "as configured")
        if tool is None:
            raise Unsupported(
                f"{given} is not a criu that can be used",
                why="it does not run, or does not say its version",
                hint="point ONEFLEET_CRIU to a working criu, or unset it",
            )
        return _new_enough(tool)
    found = shutil.which("criu", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")
    system = _examine((found,), "the system's") if found else None
    if system is not None and _numbers(system.version) >= minimum():
        return system
    copy = _managed(managed)
    if copy is not None and _numbers(copy.version) >= minimum():
        return copy
    has = f"the system's criu is {system.version}" if system else "there is no criu"
    raise Unsupported(
        "jobs cannot be saved transparently",
        why=f"{has}, and kernel {os.uname().release} needs {_text(minimum())} or newer",
        hint="onefleet doctor --fix makes a private copy (apt-get needed)",
    )


def setup_criu(managed: Path, given: Path | None, progress: Progress) -> CriuTool:
    """Find a criu; make the managed copy when there is none. Blocking; safe to call again.

    Takes some 10 s and 30 MB. Raises Unsupported, UpstreamFailed, TimedOut.
    """
    try:
        return find_criu(managed, given)
    except Unsupported:
        if given is not None:
            raise
    release, mirror = _origin()
    managed.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=managed.parent, prefix=".criu-") as name:
        build = Path(name)
        _download(build, release, mirror, progress)
        root = build / "root"
        packages = sorted(glob.glob(f"{build}/cache/archives/*.deb"))
        for number, package in enumerate(packages):
            progress("unpacking criu", 0.8 + 0.2 * number / len(packages))
            _run(["dpkg-deb", "-x", package, str(root)], "criu could not be unpacked")
        source = f"managed copy from {release.suite}"
        record = {"source": source, "packages": [os.path.basename(p) for p in packages]}
        (root / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        _replace(root, managed)
    progress("criu is ready", 1.0)
    tool = _managed(managed)
    if tool is None:
        raise InternalError("the managed copy of criu does not run", why=f"see {managed}")
    return _new_enough(tool)


def check(tool: CriuTool) -> None:
    """`criu check`. Blocking. Raises Unsupported with criu's own words."""
    done = _output([*tool.command, "check"])
    if done is None or done.returncode != 0:
        said = "it does not run" if done is None else _last_line(done.stderr or done.stdout)
        raise Unsupported(
            f"criu {tool.version} does not work on kernel {os.uname().release}",
            why=said,
            hint="use a kernel with CONFIG_CHECKPOINT_RESTORE, or a newer criu",
        )


def _managed(root: Path) -> CriuTool | None:
    """The managed copy, started by its own loader: no wrapper script, which would take a file
    descriptor that criu is to inherit."""
    loaders = sorted(glob.glob(f"{root}/usr/lib*/ld-linux-*.so.*"))
    loaders += sorted(glob.glob(f"{root}/usr/lib/*-linux-gnu*/ld-linux-*.so.*"))
    libraries = sorted(glob.glob(f"{root}/usr/lib/*-linux-gnu*"))
    program = root / "usr" / "sbin" / "criu"
    if not loaders or not libraries or not program.exists():
        return None
    command = (loaders[0], "--library-path", libraries[0], str(program))
    source = "managed copy"
    with contextlib.suppress(OSError, ValueError, KeyError):
        source = str(json.loads((root / _RECORD).read_text(encoding="utf-8"))["source"])
    return _examine(command, source)


def _origin() -> tuple[_Release, str]:
    """The distribution's newer release, and the mirror that the system itself uses."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise _cannot(f"there is no {program}", f"install criu >= {_text(minimum())} yourself")
    name = _distribution()
    if name not in _RELEASES:
        raise _cannot(
            f"no release of {name or 'this system'} with a new criu is known",
            f"install criu >= {_text(minimum())} yourself",
        )
    release = _RELEASES[name]
    if not os.path.exists(release.keyring):
        raise _cannot(f"{release.keyring} is missing", f"apt-get install {name}-archive-keyring")
    mirrors = [m for m in system_mirrors(Path("/etc/apt")) if _serves(m, release.mirror_mark)]
    if not mirrors:
        raise _cannot("apt's sources name no mirror of it", "add the distribution to apt's sources")
    return release, mirrors[0]


def system_mirrors(etc: Path) -> list[str]:
    """Addresses that apt's own sources name, in their order; both formats of source files."""
    found: list[str] = []
    lists = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]
    for path in lists:
        if path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            found += re.findall(r"^\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)", text, re.MULTILINE)
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for stanza in re.split(r"\n\s*\n", text):
            fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
            if fields.get("Enabled", "yes").strip() != "no":
                found += fields.get("URIs", "").split()
    return list(dict.fromkeys(found))


def _download(build: Path, release: _Release, mirror: str, progress: Progress) -> None:
    """criu and all that it needs, in a world of apt's own that knows no installed package."""
    for folder in ("state/lists/partial", "cache/archives/partial", "parts", "root"):
        (build / folder).mkdir(parents=True)
    (build / "status").touch()
    line = f"deb [signed-by={release.keyring}] {mirror} {release.suite} {release.components}\n"
    (build / "sources.list").write_text(line, encoding="utf-8")
    options = {
        "Dir::Etc::sourcelist": build / "sources.list",
        "Dir::Etc::sourceparts": build / "parts",
        "Dir::Etc::preferencesparts": build / "parts",
        "Dir::Etc::preferences": build / "none",
        "Dir::State": build / "state",
        "Dir::State::status": build / "status",
        "Dir::Cache": build / "cache",
        "APT::Sandbox::User": "root",
        "APT::Get::AllowUnauthenticated": "false",
        "Acquire::Retries": "2",
        "Acquire::Languages": "none",
    }
    apt = ["apt-get", "-q"] + [word for k, v in options.items() for word in ("-o", f"{k}={v}")]
    progress(f"reading the package list of {release.suite}", 0.05)
    failed = f"the package list of {release.suite} could not be had from {mirror}"
    # Without the next option apt calls an unreachable mirror a warning.
    _run([*apt, "-o", "APT::Update::Error-Mode=any", "update"], failed)
    progress("downloading criu (8 MB)", 0.4)
    wanted = ["install", "-y", "--no-install-recommends", "--download-only", "criu"]
    _run([*apt, *wanted], f"criu could not be downloaded from {mirror}")


def _replace(new: Path, place: Path) -> None:
    """Put the folder in its place as a whole; another process may have been faster."""
    old = _managed(place)
    if place.exists() and (old is None or _numbers(old.version) < minimum()):
        shutil.rmtree(place)
    with contextlib.suppress(OSError):
        os.rename(new, place)


def _run(command: list[str], what: str) -> None:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/"}
    environment["DEBIAN_FRONTEND"] = "noninteractive"
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_STEP_LIMIT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimedOut(what, why=f"{command[0]} took over {_STEP_LIMIT_S:.0f} s") from error
    if done.returncode != 0:
        raise UpstreamFailed(
            what, why=_last_line(done.stderr or done.stdout), hint="check the network, try again"
        )


def _examine(command: tuple[str, ...], source: str) -> CriuTool | None:
    done = _output([*command, "--version"])
    match = re.search(r"Version: (\d[\w.]*)", done.stdout) if done else None
    return CriuTool(command, match[1], source) if match else None


def _output(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _new_enough(tool: CriuTool) -> CriuTool:
    if _numbers(tool.version) >= minimum():
        return tool
    raise Unsupported(
        f"{tool.command[0]} is criu {tool.version}",
        why=f"kernel {os.uname().release} needs {_text(minimum())} or newer",
        hint="unset ONEFLEET_CRIU to use a managed copy",
    )


def _cannot(why: str, hint: str) -> Unsupported:
    return Unsupported("a private copy of criu cannot be made here", why=why, hint=hint)


def _distribution() -> str:
    with contextlib.suppress(OSError):
        text = Path("/etc/os-release").read_text(encoding="utf-8")
        if match := re.search(r'^ID="?([a-z]+)', text, re.MULTILINE):
            return match[1]
    return ""


def _serves(mirror: str, mark: str) -> bool:
    return mirror.startswith(("http://", "https://")) and mirror.rstrip("/").endswith(mark)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _text(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("E:", "Err", "Error"))]
    return (telling or lines or ["it said nothing"])[-1]
