"""An ordinary user for tests that run as root: a user id that is nobody's, and all that it needs.

It gets copies of the sources, the tests, the test runner and what the drivers import, because a
checkout or an environment may lie where only root can look.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.checkpoint import criu_home

_ROOT = Path(__file__).resolve().parents[3]
#: Above what distributions give to people and services, below what a container's root may map.
_FIRST_ID, _IDS = 61_200, 3_000
_COPIED = ("src", "tests/checkpoint.py", "tests/small_disk.py", "tests/integration/drivers")
#: What these tests need of the project's own settings: its plugins are not there.
_SETTINGS = """[pytest]
addopts = -q --import-mode=importlib
pythonpath = .
filterwarnings = error
markers = criu
"""
_MODULES = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "py")
_MODULES += ("xxhash", "backports.zstd")
_LIMIT_S = 300.0
_OUTCOME = re.compile(r"^(tests/.*::.*) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)


class NoUser(Exception):
    """There can be no ordinary user here; why."""


class OrdinaryUser:
    """Runs things as the user, in a folder of its own."""

    def __init__(self, home: Path) -> None:
        """home: an empty folder that everybody can reach. Raises NoUser."""
        self.id = _FIRST_ID + os.getpid() % _IDS
        self.home = home
        for name in _COPIED:
            self._copy(_ROOT / name, home / name)
        (home / "pytest.ini").write_text(_SETTINGS, encoding="utf-8")
        (home / "site").mkdir()
        for name in _MODULES:
            found = importlib.import_module(name).__file__
            assert found is not None
            source = Path(found)
            source = source.parent if source.name == "__init__.py" else source
            folder = home / "site" / Path(*name.split(".")[:-1])
            folder.mkdir(exist_ok=True)
            self._copy(source, folder / source.name)
        self._copy(criu_home(), home / "criu")
        (home / "tmp").mkdir()
        self.own(home)
        self.python = self._find_python()

    def own(self, path: Path) -> None:
        """Give the user all that is there."""
        for entry in [path, *path.rglob("*")]:
            os.chown(entry, self.id, self.id, follow_symlinks=False)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the user, with an environment that holds nothing of root's."""
        return subprocess.run(
            command,
            cwd=self.home,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": str(self.home),
                "TMPDIR": str(self.home / "tmp"),
                "PYTHONPATH": f"{self.home}/src:{self.home}/site",
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "ONEFLEET_CRIU_HOME": str(self.home / "criu"),
            },
            user=self.id,
            group=self.id,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
        )

    def test(self, *nodes: str) -> tuple[dict[str, str], str]:
        """Run tests of the copy; how each came out ("PASSED"), and all that pytest said."""
        options = (
            "-vv",
            "--no-header",
            "-p",
            "no:cacheprovider",
            f"--basetemp={self.home}/tmp/pytest",
        )
        done = self.run(self.python, "-m", "pytest", *options, *nodes)
        outcomes = dict(_OUTCOME.findall(done.stdout))
        return outcomes, done.stdout + done.stderr

    def close(self) -> None:
        """End what a broken test left: whatever runs under this id is ours."""
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and entry.stat().st_uid == self.id:
                    os.kill(int(entry.name), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                continue
        shutil.rmtree(self.home)
        # Where supervisors of one user meet, if the system gives the user no folder for that.
        shutil.rmtree(f"/tmp/onefleet-gangs-{self.id}", ignore_errors=True)

    def _copy(self, source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            target.parent.mkdir(exist_ok=True, parents=True)
            shutil.copy2(source, target)

    def _find_python(self) -> str:
        """A Python that the user can execute, new enough for what it is to run."""
        complaint = ""
        for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
            try:
                done = self.run(python, "-c", "import onefleet.drivers.criu, pytest, tomllib")
            except OSError as error:
                complaint = complaint or f"{python}: {error.strerror}"
                continue
            if done.returncode == 0:
                return python
            complaint = f"{python}: {done.stderr.strip().rpartition(chr(10))[2]}"
        raise NoUser(f"no Python that an ordinary user could execute works ({complaint})")
