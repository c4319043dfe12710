"""Set up the environment: a virtual environment that holds exactly what a lock file names.

usage: setup.py VENV LOCK

Runs on the system's Python with the standard library alone. Debian packages are installed only
where this is root and apt-get is there; otherwise it says what is missing and how to get it.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

MINIMUM = (3, 11)
#: What a person told pip of the package index -> what uv, which reads no pip.conf, calls it.
PIP_TO_UV = {
    "cert": "SSL_CERT_FILE",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "index-url": "UV_DEFAULT_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
}
#: By default uv looks at the first index alone that has a package.
ALL_INDEXES = "UV_INDEX_STRATEGY"
ROOT = Path(__file__).resolve().parent.parent


def fail(what: str, why: str, hint: str) -> None:
    sys.exit(f"error: {what}\nwhy: {why}\ntry: {hint}")


def step(
    number: int, total: int, label: str, command: list[str], extra: dict[str, str] | None = None
) -> None:
    """Run one step; on a terminal show a bar of steps with the seconds it has taken.

    extra: added to the environment.
    """
    log = ROOT / ".venv-setup.log"
    done = threading.Event()
    started = time.monotonic()

    def line(mark: str) -> str:
        bar = "━" * (number * 4) + "╌" * ((total - number) * 4)
        return f"{mark} [{bar}] {number}/{total} {label} {time.monotonic() - started:4.0f} s"

    def tick() -> None:
        while not done.wait(0.2):
            print("\r" + line("·"), end="", file=sys.stderr, flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    if sys.stderr.isatty():
        ticker.start()
    with log.open("w") as out:
        code = subprocess.run(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(extra or {})},
            check=False,
        ).returncode
    done.set()
    if ticker.is_alive():
        ticker.join()
        print("\r", end="", file=sys.stderr)
    print(line("✓" if code == 0 else "✗"), file=sys.stderr, flush=True)
    if code != 0:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        fail(
            f"{label} failed (exit {code})",
            tail,
            "is a package index reachable? run the same command again to continue",
        )
    log.unlink()


def debian(package: str) -> None:
    """Install a Debian package, or say why it is not done."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        fail(
            f"{package} is missing",
            "it is installed by itself only where this runs as root and apt-get is there",
            f"sudo apt-get install {package}",
        )
    step(1, 4, "reading the Debian package lists", ["apt-get", "update", "-q"])
    step(
        1,
        4,
        f"installing {package}",
        ["apt-get", "install", "-y", "-q", "--no-install-recommends", package],
    )


def pinned(lock: Path, name: str) -> str:
    """The requirement of one package with its hashes, as the lock file has it."""
    found = re.search(rf"^{name}==.*?(?=^\S|\Z)", lock.read_text(), re.M | re.S)
    if found is None:
        fail(f"{lock} does not name {name}", "the lock file is damaged", "git checkout -- '*.lock'")
        raise AssertionError
    return found.group(0)


def index_settings(python: Path) -> dict[str, str]:
    """The package index that pip is told to use (pip.conf, PIP_*), as environment for uv."""
    asked = [str(python), "-m", "pip", "config", "list"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    # As pip does, look at all indexes: the lock file's hashes say which file is the right one.
    found = {} if ALL_INDEXES in os.environ else {ALL_INDEXES: "unsafe-best-match"}
    for line in listed.splitlines():  # a line is: global.index-url='https://…'
        key, _, value = line.partition("=")
        name = PIP_TO_UV.get(key.rpartition(".")[2])
        if name and value and name not in os.environ:
            words = str(ast.literal_eval(value)).split()
            found[name] = ("," if name == "UV_FIND_LINKS" else " ").join(words)
    return found


def main() -> None:
    venv, lock = Path(sys.argv[1]), Path(sys.argv[2])
    if sys.version_info < MINIMUM:
        fail(
            f"Python {sys.version.split()[0]} is too old",
            f"Onefleet needs {MINIMUM[0]}.{MINIMUM[1]} or newer",
            "make PYTHON=/path/to/python3.12 run",
        )
    if importlib.util.find_spec("ensurepip") is None:
        debian("python3-venv")
    python, uv = venv / "bin" / "python", venv / "bin" / "uv"
    step(1, 4, "making .venv", [sys.executable, "-m", "venv", str(venv)])
    bootstrap = venv / "bootstrap.txt"
    bootstrap.write_text(pinned(lock, "uv"))
    quiet = ["--disable-pip-version-check", "-q", "--require-hashes"]
    step(
        2,
        4,
        "installing the installer",
        [str(python), "-m", "pip", "install", *quiet, "-r", str(bootstrap)],
    )
    count = len(re.findall(r"^\S+==", lock.read_text(), re.M))
    target, index = ["--python", str(python)], index_settings(python)
    step(
        3,
        4,
        f"installing {count} packages",
        [str(uv), "pip", "install", *target, "--require-hashes", "-r", str(lock)],
        index,
    )
    local = ["--no-deps", "--no-build-isolation", "-e", str(ROOT)]
    step(4, 4, "installing onefleet", [str(uv), "pip", "install", *target, *local], index)


if __name__ == "__main__":
    main()
