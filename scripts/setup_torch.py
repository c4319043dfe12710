"""Add PyTorch to the environment, for the tests that train with it.

usage: setup_torch.py VENV CONSTRAINTS

Its build for CPUs, which needs nothing of NVIDIA's. It is pinned by version, not by hash: every
platform and index has another build of it. What else it brings keeps to the lock file. Where it
cannot be had, that is said, nothing fails, and those tests are skipped; the exit status is 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from setup import ROOT, index_settings


def main() -> None:
    venv, constraints = Path(sys.argv[1]), sys.argv[2]
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    (wanted,) = groups["torch"]
    python, uv = venv / "bin" / "python", venv / "bin" / "uv"
    install = [str(uv), "pip", "install", "--python", str(python), "-c", constraints]
    environment = {**os.environ, **index_settings(python)}
    complaint = ""
    # An index that has the build for CPUs under its own name; else PyTorch's own index.
    for asked in ([f"{wanted}+cpu"], ["--torch-backend", "cpu", wanted]):
        tried = [*install, *asked]
        done = subprocess.run(tried, capture_output=True, text=True, env=environment, check=False)
        if done.returncode == 0:
            (venv / "ready-torch").touch()
            print(f"✓ {wanted} is there: the tests that train with it run", file=sys.stderr)
            return
        complaint = done.stderr.strip()
    print(f"✗ {wanted} cannot be had: the tests that train with it are skipped", file=sys.stderr)
    print(f"why: {complaint[-600:]}", file=sys.stderr)
    print("try: the same command again once a package index is reachable", file=sys.stderr)


if __name__ == "__main__":
    main()
