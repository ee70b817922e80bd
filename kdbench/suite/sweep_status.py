"""What has become of a sweep's runs, and what they measured. A run is done when it has a record; nothing else is believed."""

import statistics
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from kdbench.suite import locks, report, runs, slurm
from kdbench.suite.experiment import Config
from kdbench.suite.plan_file import Entry

METRICS = 4  # columns of the table of results


class State(StrEnum):
    """What has become of an entry."""

    DONE = "done"
    RUNNING = "running"
    WAITING = "waiting"
    FAILED = "failed"
    MISSING = "missing"


def states(folder: Path, plan: Sequence[Entry]) -> list[tuple[Entry, State, str]]:
    """Return for each entry what has become of it, and for one that failed the last line of its log."""
    queue = slurm.queued(folder)
    logs: dict[int, Path] = {}
    for log in sorted(folder.glob("*_*.log"), key=lambda file: file.stat().st_mtime_ns):
        if (index := log.stem.rpartition("_")[2]).isdigit():
            logs[int(index)] = log
    return [(each, *_state(each, queue.get(each.index), logs.get(each.index))) for each in plan]


def show_status(folder: Path, found: Sequence[tuple[Entry, State, str]]) -> None:
    """Print how many entries are done, running, waiting, failed and missing, and those that are not done."""
    out = report.console()
    counts = ", ".join(f"{sum(state is each for _, state, _ in found)} {each}" for each in State)
    out.print(f"{folder}: {len(found)} entries: {counts}", highlight=False, soft_wrap=True)
    table = Table("index", "label", "state", "", box=SIMPLE)
    for one, state, why in found:
        if state is not State.DONE:
            table.add_row(str(one.index), escape(one.label), state, escape(why))
    if table.row_count:
        out.print(table)


def show_results(plan: Sequence[Entry]) -> None:
    """Print the student's scores of each setting: mean and standard deviation over its seeds."""
    scores: dict[str, list[Config]] = {}
    for one in plan:
        if one.stage is None and (record := runs.read_record(Path(one.folder))) is not None:
            scores.setdefault(one.label.rpartition("seed=")[0].strip() or one.experiment, []).append(record["metrics"])
    if not scores:
        return
    names = _common_metrics([each for every in scores.values() for each in every])
    table = Table("", "runs", *names, box=SIMPLE)
    for label, every in scores.items():
        cells = [_mean(name, [each[f"test/{name}@student"] for each in every]) for name in names]
        table.add_row(escape(label), str(len(every)), *cells)
    report.console().print(table)


def _common_metrics(every: Sequence[Config]) -> list[str]:
    """Return the student's scores that all runs have, those that people look at first."""
    found = [
        name.removeprefix("test/").removesuffix("@student")
        for name in every[0]
        if name.startswith("test/") and name.endswith("@student") and all(each.get(name) is not None for each in every)
    ]
    order = list(report.ROWS)
    return sorted(found, key=lambda name: order.index(name) if name in order else len(order))[:METRICS]


def _mean(name: str, values: Sequence[float]) -> str:
    mean = report.shown(name, statistics.fmean(values))
    return f"{mean} ± {report.shown(name, statistics.stdev(values))}" if len(values) > 1 else mean


def _state(one: Entry, queued: slurm.Queued | None, log: Path | None) -> tuple[State, str]:
    if one.done:
        return State.DONE, ""
    if queued is not None and queued.state == "PENDING":
        return State.WAITING, "in the queue"
    if queued is not None or _at_work(Path(one.folder)):
        return State.RUNNING, "" if queued is None else queued.state.lower()
    if log is None:
        return State.MISSING, ""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return State.FAILED, lines[-1] if lines else f"'{log}' is empty"


def _at_work(folder: Path) -> bool:
    """Tell whether the owner of a run's lock has given a sign of life of late."""
    try:
        return any(time.time() - file.stat().st_mtime < locks.STALE for file in (folder / ".lock").iterdir())
    except OSError:
        return False
