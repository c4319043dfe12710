"""Finding criu and making the managed copy: what is used, what is refused, and why."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from onefleet.domain.errors import Unsupported, UpstreamFailed
from onefleet.drivers import criu_setup
from onefleet.drivers.criu_setup import find_criu, minimum, setup_criu, system_mirrors


def script(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'Version: {version}'\n")
    path.chmod(0o755)
    return path


def no_system_criu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criu_setup.shutil, "which", lambda name, path=None: None)


def test_both_formats_of_apts_sources_are_read(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(
        "# deb http://commented.example/debian x main\n"
        "deb [arch=amd64 signed-by=/k] http://one.example/debian bookworm main\n"
        "deb-src http://sources.example/debian bookworm main\n"
    )
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (folder / "a.list").write_text("deb http://two.example/debian bookworm main\n")
    (folder / "b.sources").write_text(
        "Types: deb\n# a remark\nURIs: http://three.example/debian http://one.example/debian\n"
        "Suites: bookworm\n\nEnabled: no\nURIs: http://off.example/debian\n"
    )
    assert system_mirrors(tmp_path) == [
        "http://one.example/debian",
        "http://two.example/debian",
        "http://three.example/debian",
    ]
    assert system_mirrors(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("release", "oldest"),
    [("6.1.0-18-amd64", (4, 1)), ("6.15.9", (4, 1)), ("6.16.0", (4, 2)), ("7.0.1-x", (4, 2))],
)
def test_the_kernel_says_how_new_criu_must_be(
    monkeypatch: pytest.MonkeyPatch, release: str, oldest: tuple[int, ...]
) -> None:
    uname = os.uname_result(("Linux", "n", release, "v", "x86_64"))
    monkeypatch.setattr(criu_setup.os, "uname", lambda: uname)
    assert minimum() == oldest


def test_a_given_criu_comes_first(tmp_path: Path) -> None:
    given = script(tmp_path / "criu", "4.9.1")
    tool = find_criu(tmp_path / "managed", given)
    assert (tool.command, tool.version) == ((str(given),), "4.9.1")


@pytest.mark.parametrize("version", ["3.17.1", "4.0"])
def test_a_given_criu_that_is_too_old_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(Unsupported, match=version):
        find_criu(tmp_path / "managed", script(tmp_path / "criu", version))
    with pytest.raises(Unsupported, match="criu"):  # nothing else is taken in its place
        setup_criu(tmp_path / "managed", tmp_path / "none", lambda _what, _share: None)


def test_a_system_criu_is_used_only_when_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "bin" / "criu"
    monkeypatch.setattr(criu_setup.shutil, "which", lambda name, path=None: str(system))
    script(system, "4.2")
    assert find_criu(tmp_path / "managed", None).command == (str(system),)
    script(system, "3.17.1")
    with pytest.raises(Unsupported) as caught:
        find_criu(tmp_path / "managed", None)
    assert "3.17.1" in caught.value.why
    assert caught.value.hint


def refuse(monkeypatch: pytest.MonkeyPatch, **what: object) -> str:
    """Why the managed copy cannot be made, on a machine that is as said."""
    no_system_criu(monkeypatch)
    programs = what.get("programs", ("apt-get", "dpkg-deb"))
    monkeypatch.setattr(
        criu_setup.shutil, "which", lambda name, path=None: name if name in programs else None
    )
    monkeypatch.setattr(criu_setup, "_distribution", lambda: what.get("name", "debian"))
    monkeypatch.setattr(criu_setup, "system_mirrors", lambda etc: what.get("mirrors", []))
    with pytest.raises(Unsupported) as caught:
        setup_criu(Path("/nowhere/criu"), None, lambda _what, _share: None)
    assert caught.value.hint
    return caught.value.why


def test_where_no_copy_can_be_made_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no apt-get" in refuse(monkeypatch, programs=())
    assert "no release of fedora" in refuse(monkeypatch, name="fedora")
    monkeypatch.setattr(
        criu_setup, "_RELEASES", {"debian": criu_setup._Release("s", "main", "/no/key", "debian")}
    )
    assert "/no/key is missing" in refuse(monkeypatch)
    key = criu_setup._Release("s", "main", "/etc/passwd", "debian")
    monkeypatch.setattr(criu_setup, "_RELEASES", {"debian": key})
    assert "no mirror" in refuse(monkeypatch, mirrors=["http://x.example/other", "cdrom:debian"])


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
@pytest.mark.parametrize("signature", ["none", "foreign"])
def test_an_unsigned_archive_is_refused(tmp_path: Path, signature: str) -> None:
    """A mirror that lies: nothing that the distribution's key did not sign is unpacked."""
    suite = tmp_path / "mirror" / "dists" / "newer"
    (suite / "main" / "binary-amd64").mkdir(parents=True)
    (suite / "main" / "binary-amd64" / "Packages").write_text("")
    (suite / "Release").write_text("Origin: x\nSuite: newer\nComponents: main\n")
    if signature == "foreign":
        (suite / "InRelease").write_text(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: x\n"
            "-----BEGIN PGP SIGNATURE-----\n\niQ==\n-----END PGP SIGNATURE-----\n"
        )
    keyring = tmp_path / "keyring.gpg"
    keyring.write_bytes(b"")
    release = criu_setup._Release("newer", "main", str(keyring), "mirror")
    build = tmp_path / "build"
    build.mkdir()
    with pytest.raises(UpstreamFailed, match="package list of newer"):
        criu_setup._download(build, release, f"file:{tmp_path}/mirror", lambda _what, _share: None)
    assert not list(build.glob("cache/archives/*.deb"))


def test_a_copy_appears_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_system_criu(monkeypatch)
    managed = tmp_path / "data" / "criu"
    origin = criu_setup._Release("newer", "main", "k", "m"), "http://mirror.example"
    monkeypatch.setattr(criu_setup, "_origin", lambda: origin)
    shares: list[float] = []

    def fail(*arguments: object) -> None:
        raise UpstreamFailed("no network")

    monkeypatch.setattr(criu_setup, "_download", fail)
    with pytest.raises(UpstreamFailed, match="no network"):
        setup_criu(managed, None, lambda _what, share: shares.append(share))
    assert list(managed.parent.iterdir()) == []

    def download(build: Path, *more: object) -> None:
        root = build / "root"
        loader = script(root / "usr" / "lib64" / "ld-linux-x86-64.so.2", "4.9")
        script(root / "usr" / "sbin" / "criu", "4.9")
        (root / "usr" / "lib" / "x86_64-linux-gnu").mkdir(parents=True)
        assert loader.exists()

    monkeypatch.setattr(criu_setup, "_download", download)
    tool = setup_criu(managed, None, lambda _what, share: shares.append(share))
    assert tool.version == "4.9"
    assert tool.source == "managed copy from newer"
    assert tool.command[0].startswith(str(managed))
    assert list(managed.parent.iterdir()) == [managed]
    assert shares[-1] == 1.0
    monkeypatch.setattr(criu_setup, "_download", fail)
    assert setup_criu(managed, None, lambda _what, share: None) == tool  # found, not made again
