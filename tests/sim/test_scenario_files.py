"""A scenario file says only what it may say; each mistake is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from onefleet.domain.errors import InvalidRequest, NotFound
from onefleet.sim.scenario import SCENARIO_BYTES_MAX, load, parse, shipped

HEAD = 'name = "x"\nabout = ""\nseed = 1\nhorizon_s = 5\n'
FLEET = "[fleet]\nnodes = 1\ndevices = 2\n"
JOB = '[[jobs]]\nname = "j"\nrun_s = [1, 2]\n'


def test_the_shipped_ones_are_sound() -> None:
    assert shipped() == ("burst", "node_loss", "spares", "steady")
    for name in shipped():
        assert load(name).name == name and load(name).about


def test_a_file_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + FLEET + JOB)
    assert load(str(path)).jobs[0].run_s == (1.0, 2.0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a =", "Invalid value"),
        ("a = 1\n[[[", "line 2"),
        (HEAD, "missing required field `fleet`"),
        (HEAD + "[fleet]\nnodes = 1\ndevice = 2", "unknown field `device` - at `$.fleet`"),
        (HEAD + "[fleet]\nnodes = 0\ndevices = 2", ">= 1 - at `$.fleet.nodes`"),
        (HEAD + FLEET + '[[jobs]]\nname = "j"\nrun_s = [1, "2"]', "at `$.jobs[0].run_s[1]`"),
        (HEAD + FLEET + JOB + 'tier = "gold"', "Invalid enum value 'gold' - at `$.jobs[0].tier`"),
        (HEAD + FLEET + JOB + 'tenant = "q"', "no tenant is called 'q' - at `$.jobs[0]`"),
        (HEAD + FLEET + JOB + "devices = 2\ndevices_max = 1", "devices_max is less than devices"),
        (HEAD + FLEET + JOB + "submit_s = [3, 1]", "submit_s is [3.0, 1.0], least first"),
        (HEAD + FLEET + "[policy]\nluck = 7", "no policy is called 'luck' - at `$.policy`"),
        (HEAD + FLEET + '[[faults]]\nkind = "rain"\nat_s = 1', "at `$.faults[0].kind`"),
        (
            HEAD + FLEET + '[[faults]]\nkind = "partition"\nat_s = 1\nnode = 2',
            "there are 1 nodes, not 2 - at `$.faults[0]`",
        ),
        (
            HEAD + FLEET + '[[deployments]]\nname = "d"\nreplicas_min = 2',
            "replicas_min is over replicas_max - at `$.deployments[0]`",
        ),
        (
            HEAD
            + FLEET
            + '[[deployments]]\nname = "d"\n[[deployments.load]]\nfrom_s = 2\nto_s = 2\n'
            + "per_minute = 1\nservice_ms = [1, 1]",
            "from_s is not before to_s - at `$.deployments[0].load[0]`",
        ),
        (HEAD.replace("5", "nan") + FLEET, "at `$.horizon_s`"),
        (HEAD.replace("5", "inf") + FLEET, "at `$.horizon_s`"),
    ],
)
def test_each_mistake_is_named_with_its_place(text: str, why: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(text, "mine.toml")
    assert "mine.toml" in raised.value.what
    assert why in raised.value.why


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nope"):
        load("nope")
    large = tmp_path / "large.toml"
    large.write_text("#" * (SCENARIO_BYTES_MAX + 1))
    with pytest.raises(InvalidRequest, match="larger than"):
        load(str(large))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="UTF-8"):
        load(str(binary))
