"""How much CPU `onefleet --help` costs beside a bare Python: ``python -m benchmarks.cli_help``.

The promise is at most 5x. Least of several runs, user and system time of the child, interleaved.
"""

from __future__ import annotations

import resource
import subprocess
import sys

RUNS = 15
BUDGET = 5.0
LINES = {
    "python -c pass": ("-c", "pass"),
    "onefleet --help": ("-m", "onefleet.cli.main", "--help"),
    "onefleet --version": ("-m", "onefleet.cli.main", "--version"),
    "onefleet ps --help": ("-m", "onefleet.cli.main", "ps", "--help"),
}


def cpu_s(arguments: tuple[str, ...]) -> float:
    """CPU seconds of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    least = dict.fromkeys(LINES, float("inf"))
    for _ in range(RUNS):
        for name, arguments in LINES.items():
            least[name] = min(least[name], cpu_s(arguments))
    bare = least["python -c pass"]
    for name, seconds in least.items():
        print(f"{name:<20} {seconds * 1000:6.1f} ms  {seconds / bare:4.1f}x")
    return 0 if least["onefleet --help"] <= BUDGET * bare else 1


if __name__ == "__main__":
    sys.exit(main())
