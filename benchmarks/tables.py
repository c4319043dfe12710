"""What the tables on traces share: workloads by seed, spreads, Markdown, reports, errors."""

from __future__ import annotations

import argparse
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NoReturn, TypeVar

from onefleet.domain.errors import OnefleetError
from onefleet.sim.traces import imitate
from onefleet.sim.traces.philly import TraceJob, read_philly

HERE = Path(__file__).resolve().parent
#: The part of a trace's jobs that every seed but the first leaves out.
LEFT_OUT = 0.01
#: Philly's jobs, and the days in which they came.
JOBS, DAYS = 82_247, 109

TaskT = TypeVar("TaskT")
FoundT = TypeVar("FoundT")


def count(text: str) -> int:
    """An option's value of at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def above_zero(text: str) -> float:
    """An option's value above zero."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def parser(module: str, seeds: int | None) -> argparse.ArgumentParser:
    """The options that all tables have. seeds: how many, None where there is no chance."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}")
    if seeds is not None:
        parser.add_argument("--seeds", type=count, default=seeds, help="how many, from 0 on")
    parser.add_argument("--workers", type=count, default=2, help="processes that simulate")
    parser.add_argument(
        "--report", action="store_true", help=f"write benchmarks/{module}.md, not only print"
    )
    return parser


def trace_options(parser: argparse.ArgumentParser) -> None:
    """Where the training jobs come from."""
    parser.add_argument("--trace", type=Path, help="philly_jobs_82k.csv.gz; else an imitation")
    parser.add_argument("--jobs", type=count, default=JOBS, help="of the imitation")


@lru_cache(maxsize=2)
def philly(path: Path | None, jobs: int, seed: int) -> tuple[TraceJob, ...]:
    """The training jobs of a seed: of an imitation, or of the trace, of which seed 0 is all."""
    if path is None:  # as dense as the trace
        return imitate.philly(seed, jobs, max(round(DAYS * jobs / JOBS), 1))
    whole = _whole(path)
    if seed == 0:
        return whole
    rng = random.Random(f"{seed}/left out")
    return tuple(job for job in whole if rng.random() >= LEFT_OUT)


@lru_cache(maxsize=1)
def _whole(path: Path) -> tuple[TraceJob, ...]:
    return read_philly(path)


def trace_name(path: Path | None, jobs: int) -> str:
    """The trace as a table names it."""
    if path is None:
        return f"an imitation of Microsoft's Philly trace, {jobs} jobs"
    return f"Microsoft's Philly trace ({path.name}), {len(_whole(path))} jobs"


def seeds_name(path: Path | None, seeds: int) -> str:
    """What the seeds change, as a table names it."""
    if seeds == 1:
        return "seed 0" + (": the whole trace" if path else "")
    if path is None:
        return f"seeds 0 to {seeds - 1}, an imitation each"
    return (
        f"seed 0 is the whole trace, and the figure shown; seeds 1 to {seeds - 1} leave out "
        f"{LEFT_OUT:.0%} of its jobs each, and make the spread in brackets"
    )


def spread(values: Sequence[float], shape: str = "{:.2f}") -> str:
    """The first value, and the least and the greatest of all."""
    first = shape.format(values[0])
    if len(values) == 1:
        return first
    return f"{first} [{shape.format(min(values))}, {shape.format(max(values))}]"


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all columns but the first are numbers."""
    rule = ["---", *("---:" for _ in headers[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headers, rule, *rows))


def run_all(
    tasks: Sequence[TaskT], work: Callable[[TaskT], FoundT], workers: int
) -> Iterator[FoundT]:
    """The results in the order of the tasks, which run side by side."""
    if workers <= 1:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(work, tasks)


def report(module: str, doc: str, command: str, text: str, *, write: bool) -> None:
    """Print what was found, and write it beside the code if that is wanted."""
    print(text)
    if not write:
        return
    title, _, intro = doc.split("\n\n    python")[0].partition("\n")
    stamp = time.strftime("%Y-%m-%d", time.gmtime())
    page = f"# {title.rstrip('.')}\n{intro}\n\nMade {stamp} by `{command}`.\n\n{text}\n"
    (HERE / f"{module}.md").write_text(page, "utf-8")


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Run a table's command; what goes wrong is three lines, and no traceback."""
    try:
        sys.exit(main())
    except OnefleetError as error:
        print(error.lines(), file=sys.stderr)
        sys.exit(error.exit_code)


def command(module: str, arguments: Sequence[str]) -> str:
    """The command that made a page; of a path, only the name."""
    words = [Path(word).name if "/" in word else word for word in arguments if word != "--report"]
    return shlex.join(["python", "-m", f"benchmarks.{module}", *words])
