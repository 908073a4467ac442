"""`make bench`: measures every figure in one run, l7proxy and its peers, as a table, as JSON and as a chart.

    python -m bench [--only NAME…] [--quick] [--unpinned] [--list]

The table goes to standard output, progress to standard error. Written: bench/results/DATE-COMMIT.json and chart.svg
(with --quick or --only to a temporary directory, because they are not results). A peer that is not installed is named
and skipped. The lab is always removed at the end, also on errors.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench import chart, cores, machine, programs, report
from bench.cores import Cores
from bench.figures import QUICK, THOROUGH, Alone, Effort, Figure, OnStage, Report, registry
from bench.row import Row, not_measured
from bench.stage import PEERS, stage
from l7proxy.errors import L7ProxyError
from l7proxy.lab import userns
from l7proxy.lab.state import Lab

RESULTS = Path(__file__).resolve().parent / "results"
LAB = "bench"


def measure(chosen: Sequence[Figure], effort: Effort, placed: Cores, tell: Report) -> list[Row]:
    """The rows in the table's order. A figure that fails says so in its row; the others continue."""
    rows: list[Row] = []
    on_stage = [one for one in chosen if isinstance(one, OnStage)]
    if on_stage:
        with stage(tell, LAB, cores=placed) as place:
            for each in on_stage:
                rows += _rows(each, partial(each.measure, place, effort, tell), tell)
    for one in chosen:
        if isinstance(one, Alone):
            rows += _rows(one, partial(one.measure, effort, tell), tell)
    return rows


def _rows(one: Figure, take: Callable[[], list[Row]], tell: Report) -> list[Row]:
    tell(f"{one.key}: {one.about}")
    start = time.monotonic()
    try:
        rows = take()
    except SystemExit as failure:
        tell(f"{one.key} failed: {failure}")
        return [not_measured(one.about, "", str(failure).rstrip().rpartition("\n")[2])]
    tell(f"{one.key}: {time.monotonic() - start:.0f} s")
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[one.key for one in registry.FIGURES])
    parser.add_argument("--quick", action="store_true", help="a second each: does it work, not how fast it is")
    parser.add_argument("--unpinned", action="store_true", help="let the scheduler choose the cores")
    parser.add_argument("--list", action="store_true", help="the names of the figures")
    return parser.parse_args()


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM cleans up as Ctrl-C does; Ctrl-C also works if a shell ignores it for background jobs."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> int:
    args = arguments()
    if args.list:
        for one in registry.FIGURES:
            print(f"{one.key:14} {one.about}")
        return 0
    programs.reach()
    chosen = [one for one in registry.FIGURES if not args.only or one.key in args.only]
    progress = Console(stderr=True)
    start = time.monotonic()

    def tell(line: str) -> None:
        progress.print(f"{time.monotonic() - start:6.1f}  {line}", markup=False, highlight=False, soft_wrap=True)

    for peer in PEERS:
        if why := peer.missing():
            tell(f"left out: {why}")
    placed = cores.unpinned() if args.unpinned else cores.pinned()
    resources = machine.resources(placed)
    try:
        with userns.entered(Lab(LAB)), ended_by_signals():
            rows = measure(chosen, QUICK if args.quick else THOROUGH, placed, tell)
    except KeyboardInterrupt:
        return 130
    except L7ProxyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console(width=None if sys.stdout.isatty() else 150).print(report.table(rows))
    keep(rows, resources, quick=args.quick, directory=Path(tempfile.mkdtemp()) if args.quick or args.only else RESULTS)
    return 0


def keep(rows: Sequence[Row], resources: dict[str, object], *, quick: bool, directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    path = directory / f"{today}-{resources['commit']}.json"
    path.write_text(report.document(rows, resources, quick=quick))
    caption = f"{today}, commit {resources['commit']}, {resources['cpu']}, {resources['cores']} cores"
    (directory / "chart.svg").write_text(chart.chart(rows, caption))
    (directory / "table.md").write_text(report.markdown(rows))
    print(f"written: {path}, chart.svg and table.md beside it", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
