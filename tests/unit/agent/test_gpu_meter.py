"""Who is on GPUs and uses them, by the real bindings and a management library without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests import fake_cuda

from onefleet.agent.gpu_meter import NvidiaMeter, Use

FIRST, SECOND, NONE = (f"GPU-0000000{n}-0000-0000-0000-000000000000" for n in (1, 2, 9))
#: Prints who is there, and what is read twice, the second GPU's being busy at last.
READS = f"""
import os
from onefleet.agent.gpu_meter import NvidiaMeter
meter = NvidiaMeter()
def show(gpu, use):
    print(gpu[11], *(None if found is None else sorted(found) for found in use), flush=True)
held = meter.holders([{FIRST!r}, {SECOND!r}, {NONE!r}])
print(*(None if found is None else sorted(found) for found in held.values()), flush=True)
for busy in range(2):
    if busy:
        from ctypes import CDLL
        CDLL(None).setenv(b"FAKE_CUDA_BUSY", b"1", 1)
    for gpu, use in meter.read([{FIRST!r}, {SECOND!r}, {NONE!r}]).items():
        show(gpu, use)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_cuda.build(tmp_path_factory.mktemp("libcuda"))


def test_holders_and_users_are_told_by_process_where_that_is_counted(library: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", READS],
        env={**os.environ, "LD_LIBRARY_PATH": str(library)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.splitlines() == [
        "[11, 12, 13] [21] None",  # of which the next look hears nothing less
        "1 [11, 12, 13] [11, 12]",
        "2 [21] []",  # it was not used at all
        "9 None None",
        "1 [11, 12, 13] []",  # no sample is newer
        "2 [21] None",  # by somebody
        "9 None None",
    ]


def test_without_a_driver_nobody_can_tell() -> None:
    if (found := NvidiaMeter().read([FIRST])) != {}:
        assert found == {FIRST: Use()}, "a machine with a driver, and without this GPU"
