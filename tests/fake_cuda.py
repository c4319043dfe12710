"""Builds a CUDA driver and its management library without a GPU, for tests of the real bindings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def build(folder: Path) -> Path:
    """A folder for LD_LIBRARY_PATH; skips with the reason where it cannot be built."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the driver without a GPU")
    built = folder / "libcuda.so.1"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, source], check=True)
    (folder / "libnvidia-ml.so.1").symlink_to(built)
    return folder
