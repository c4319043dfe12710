"""scripts/setup.py: what it hands to the installer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "setup.py"


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("onefleet_setup", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in module.PIP_TO_UV.values():
        monkeypatch.delenv(name, raising=False)
    return module


def _pip(folder: Path, listed: str) -> Path:
    """A stand-in for a Python whose `-m pip config list` prints this."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}\nEND\n")
    python.chmod(0o755)
    return python


def test_the_installer_uses_the_index_that_pip_is_told_to_use(
    setup: ModuleType, tmp_path: Path
) -> None:
    python = _pip(
        tmp_path,
        "global.cert='/etc/ssl/own.pem'\n"
        "global.index-url='https://index.invalid/simple'\n"
        "global.timeout='60'\n"
        "user.find-links='/wheels https://index.invalid/wheels'",
    )
    assert setup.index_settings(python) == {
        "SSL_CERT_FILE": "/etc/ssl/own.pem",
        "UV_DEFAULT_INDEX": "https://index.invalid/simple",
        "UV_FIND_LINKS": "/wheels,https://index.invalid/wheels",
        "UV_INDEX_STRATEGY": "unsafe-best-match",  # all indexes, as pip does
    }


def test_what_a_person_told_the_installer_itself_stands(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mine.invalid/simple")
    monkeypatch.setenv("UV_INDEX_STRATEGY", "first-index")
    python = _pip(tmp_path, "global.index-url='https://index.invalid/simple'")
    assert setup.index_settings(python) == {}


def test_the_lock_file_names_the_installer_with_its_digests(setup: ModuleType) -> None:
    found = setup.pinned(SCRIPT.parents[1] / "requirements.lock", "uv")
    assert found.startswith("uv==") and "--hash=sha256:" in found
