"""What the runs of a claim gave: ``results.json`` holds their records and the place of each; all else follows from it.

One line a cell ``[pairs, arm, task, pair, trial, run]`` (``run`` is null where it failed) and one line a record, so that a
change of one run is a change of one line.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.errors import UserError, nearest
from kdbench.files import write_text
from kdbench.metrics.pictures import Shown, picture_of
from kdbench.suite import claims, runs
from kdbench.suite.chain import Stage
from kdbench.suite.claims import OWN, ClaimFile
from kdbench.suite.experiment import Config, Request
from kdbench.suite.expressions import Reference
from kdbench.suite.statistics import Verdict

DIGITS = 9  # significant ones, more than any score has
FILE = "results.json"


@dataclass(frozen=True)
class Cell:
    """One run of a claim: an arm on a task (or its own run), for one pair of a kind of pairs.

    ``trial`` counts the runs of a tuned arm; ``request`` asks for the run on a command line.
    """

    pairs: str
    arm: str
    task: str
    pair: str
    trial: int
    request: Request
    stage: Stage


@dataclass(frozen=True)
class Results:
    """The cells of a claim, each with the name of its run or None, and the records of the runs and of what they are made from."""

    source: str
    seeds: int
    cells: tuple[tuple[str, str, str, str, int, str | None], ...]
    records: Mapping[str, Config]
    items: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of claims whose pairs are ``items:<field>``: pairs -> arm -> task -> item -> metric -> value."""

    def metrics(self, run: str | None) -> claims.Metrics:
        """Return a run's metrics by the names that claims use (``macro_f1@student``, ``val/loss``, ``run/seconds``)."""
        if run is None:
            return {}
        record = self.records[run]
        facts = {f"run/{name}": record[name] for name in ("seconds", "steps", "peak_memory_mb")}
        known = record["metrics"] | record.get("curves", {})
        return {name.removeprefix("test/"): value for name, value in known.items()} | facts

    def kept(self, file: ClaimFile) -> dict[str, Any]:
        """Return the names of the runs by kind of pairs, arm, task and pair; of a tuned arm those that it keeps, the best first."""
        found: dict[str, Any] = {}
        for pairs, arm, task, pair, _, run in self.cells:
            table = found.setdefault(pairs, {}).setdefault(arm, {}).setdefault(task, {})
            table.setdefault(pair, []).append(run)
        for arms in found.values():
            for arm, tasks in arms.items():
                best = file.arms[arm].best
                for table in tasks.values() if best else ():
                    for pair, trials in table.items():
                        table[pair] = [trials[place] for place in best.chosen([self.metrics(run) for run in trials])]
        return found

    def values(self, file: ClaimFile) -> dict[str, Any]:
        """Return all metrics by kind of pairs, arm, task and pair: of one run, or of each that a tuned arm keeps."""
        found = self.kept(file)
        for arms in found.values():
            for arm, tasks in arms.items():
                for table in tasks.values():
                    for pair, kept in table.items():
                        metrics = [self.metrics(run) for run in kept]
                        table[pair] = metrics if file.arms[arm].best else metrics[0]
        return found | dict(self.items)

    def budgets(self) -> dict[str, dict[str, list[float]]]:
        """Return the steps and seconds of each own run of each arm, summed over the runs that its student is made from."""
        found: dict[str, dict[str, list[float]]] = {}
        for _, arm, task, _, _, run in self.cells:
            if task != OWN or run is None:
                continue
            chain = list(self._made_from(run))
            for measure in ("steps", "seconds"):
                total = sum(self.records[each][measure] for each in chain)
                found.setdefault(arm, {}).setdefault(measure, []).append(total)
        return found

    def verdicts(self, file: ClaimFile) -> dict[str, Verdict]:
        """Return the answer to every claim of the file."""
        return claims.judge(file, self.values(file), self.budgets())

    def hours(self) -> float:
        """Return the hours of fitting in the records."""
        return math.fsum(record["seconds"] for record in self.records.values()) / 3600

    def pictures(self) -> list[tuple[str, str, Shown]]:
        """Return the pictures of the arms' own runs, those of the first pair of each, with arm and name."""
        found: dict[tuple[str, str], Shown] = {}
        for _, arm, task, _, _, run in self.cells:
            for name, told in sorted((self.records[run].get("pictures", {}) if task == OWN and run else {}).items()):
                found.setdefault((arm, name), picture_of(told))
        return [(arm, name, picture) for (arm, name), picture in found.items()]

    def _made_from(self, run: str) -> Iterable[str]:
        """Yield a run and those that its student comes from; its teachers cost their own."""
        while run in self.records:
            yield run
            run = self.records[run]["parents"].get("model.student")


def gather(file: ClaimFile, cells: Sequence[Cell], more: Mapping[str, Config] | None = None) -> Results:
    """Return what the finished runs of the cells gave; ``more`` are records by ``<experiment>/<id>`` of runs that lie elsewhere.

    Raises:
        UserError: none is finished.
    """
    rows, records = [], {}

    def record_of(stage: Stage) -> Config | None:
        found = stage.record
        return found if found is not None else (more or {}).get(name_of(stage))

    for cell in cells:
        done = record_of(cell.stage) is not None
        name = name_of(cell.stage) if done else None
        rows.append((cell.pairs, cell.arm, cell.task, cell.pair, cell.trial, name))
        for stage in cell.stage.walk() if done else ():
            if name_of(stage) not in records and (record := record_of(stage)) is not None:
                records[name_of(stage)] = _rounded(record)
    if not records:
        raise UserError("No run is finished: there is nothing to judge.")
    return Results(file.source, file.seeds, tuple(rows), records, _items(file, cells))


def write(folder: Path, results: Results, verdicts: Mapping[str, Verdict]) -> None:
    """Write ``results.json``: cells, records, and what the claims came to."""
    told = {
        name: {"answer": str(verdict.answer), "evidence": verdict.evidence, "notes": list(verdict.notes)}
        for name, verdict in verdicts.items()
    }
    parts = [
        f'"source": {_json(results.source)}',
        f'"seeds": {results.seeds}',
        f'"claims": {_lines(told)}',
        '"cells": [\n  ' + ",\n  ".join(_json(list(cell)) for cell in results.cells) + "\n ]",
        f'"items": {_lines(dict(results.items))}',
        f'"records": {_lines(dict(sorted(results.records.items())))}',
    ]
    write_text(folder / FILE, "{\n " + ",\n ".join(parts) + "\n}\n")


def read(folder: Path) -> Results:
    """Return what ``results.json`` holds, every run of a cell with its record.

    Raises:
        UserError: there is none, or it is damaged.
    """
    file = folder / FILE
    part = (folder.parent / "claim.yaml").exists()
    again = f"'kdbench reproduce {f'{folder.parent.name}/' if part else ''}{folder.name}' makes it"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        cells = tuple((pairs, arm, task, pair, trial, run) for pairs, arm, task, pair, trial, run in told["cells"])
        if lost := {run for *_, run in cells if run is not None} - told["records"].keys():
            raise ValueError(f"there is no record of {min(lost)}")
        return Results(told["source"], told["seeds"], cells, told["records"], told.get("items", {}))
    except FileNotFoundError:
        raise UserError(f"There is no '{file}': {again}.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{file}' is damaged ({error}): {again} anew.") from None


def _items(file: ClaimFile, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return what the claims read of the arms' tables of items, from the first seed of each."""
    found: dict[str, Any] = {}
    for pairs, reference in file.references():
        if not pairs.startswith("items:"):
            continue
        key = pairs.removeprefix("items:")
        cell = next(c for c in cells if (c.arm, c.task, c.pair) == (reference.arm, reference.task or OWN, "0"))
        table = found.setdefault(pairs, {}).setdefault(cell.arm, {}).setdefault(cell.task, {})
        for row in _item_rows(cell.stage.folder / runs.ITEMS, key, reference):
            table.setdefault(row[key], {})[f"{reference.metric}@student"] = float(row[reference.metric])
    return found


def _item_rows(table: Path, key: str, reference: Reference) -> list[dict[str, str]]:
    if not table.exists():  # a failed run, or one whose task says nothing of single rows
        return []
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for column in (key, reference.metric):
        if rows and column not in rows[0]:
            raise UserError(f"'{reference.text}': '{table}' has no column '{column}'.{nearest(column, rows[0])}")
    return rows


def name_of(stage: Stage) -> str:
    """Return the name of a stage's run, ``<experiment>/<id>``."""
    return f"{stage.name}/{stage.folder.name}"


def _rounded(value: Any) -> Any:
    """Return a record without the losses of its last training step, its numbers cut to the digits that are kept."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items() if not str(key).startswith("train/")}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _lines(table: Mapping[str, Any]) -> str:
    return "{\n  " + ",\n  ".join(f"{_json(key)}: {_json(value)}" for key, value in table.items()) + "\n }"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
