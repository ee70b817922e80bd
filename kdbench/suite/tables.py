"""The tables of a paper's pages: what its runs gave, every number with the runs that it is made of."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.errors import UserError
from kdbench.suite import claims
from kdbench.suite.claims import OWN, Claim, ClaimFile, Metrics, Shown
from kdbench.suite.expressions import Reading, Reference
from kdbench.suite.results import Results

NONE = "-"
PERCENT = (
    *("accuracy", "macro_f1", "micro_f1", "precision", "recall", "pearson", "spearman", "one_minus_mae"),
    *("mrr", "ndcg", "loyalty", "retention", "within"),
)
"""Words in the names of metrics that are shown times 100."""
SIZES = ("accuracy", "perplexity", "parameters", "megabytes", "run.seconds", "run.steps")
"""What every arm's row of sizes tells already."""


@dataclass(frozen=True)
class Number:
    """Mean and standard deviation over pairs of a value ``key`` of runs, times ``scale``.

    Several runs of one pair are the trials that a tuned arm keeps: the pair has their mean.
    """

    key: str
    scale: float
    runs: tuple[tuple[str, str, float], ...]
    """Pair, run and scaled value."""
    asked: int = 0
    """How many pairs have runs; those of them that have no finite value are told of."""

    @property
    def pairs(self) -> list[float]:
        """The value of every pair."""
        found: dict[str, list[float]] = {}
        for pair, _, value in self.runs:
            found.setdefault(pair, []).append(value)
        return [statistics.fmean(values) for values in found.values()]

    @property
    def mean(self) -> float:
        """The mean over pairs, NaN without one."""
        return statistics.fmean(self.pairs) if self.runs else math.nan

    @property
    def sd(self) -> float | None:
        """The standard deviation over pairs (n - 1), None for fewer than two."""
        return statistics.stdev(self.pairs) if len(self.pairs) > 1 else None

    @property
    def parts(self) -> tuple[str, str]:
        """The mean and what follows it as they are shown: the deviation, but where all pairs are the same by their nature."""
        if not self.runs:
            return NONE, ""
        form = _form(self.mean)
        exact = self.sd is None or (self.sd == 0 and self.key.partition("@")[0] in ("parameters", "megabytes"))
        few = f"({len(self.pairs)} of {self.asked})" if len(self.pairs) < self.asked else ""
        return format(self.mean, form), " ".join(filter(None, ["" if exact else f"± {self.sd:{form}}", few]))

    def __str__(self) -> str:
        return " ".join(self.parts).strip()


@dataclass(frozen=True)
class Reported:
    """A number of the paper's own table."""

    text: str
    unverified: bool = False

    def __str__(self) -> str:
        return f"{self.text}{' (unverified)' if self.unverified else ''}"


Cell = tuple[Number | Reported, ...]


@dataclass(frozen=True)
class Row:
    """The cells of one arm, or of one row of the paper's table, whose ``arm`` is what stands beside it here."""

    label: str
    cells: tuple[Cell, ...]
    arm: str | None = None
    says: str = ""


@dataclass(frozen=True)
class Table:
    """A title, what the columns are, the rows."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Evidence:
    """What one pair says of a claim or of a value that is shown, and the runs behind it."""

    pair: str
    values: tuple[float, ...]
    runs: tuple[str, ...]


class Tables:
    """The tables of one claim file and its results."""

    def __init__(self, file: ClaimFile, results: Results) -> None:
        self.file, self.results = file, results
        self.kept: Mapping[str, Any] = results.kept(file)
        self.values = results.values(file)
        self.arms: Mapping[str, Mapping[str, Mapping[str, Sequence[str | None]]]] = self.kept.get("seeds", {})
        self.columns = tuple(f"{task} ({told.shown})" for task, told in file.tasks.items())

    def number(self, arm: str, task: str, key: str, scale: float = 1.0) -> Number:
        """Return a value of an arm on a task over its pairs."""
        return self._number(arm, task, key, lambda metrics: scale * last(metrics.get(key)), scale)

    def score(self, arm: str, task: str) -> Number:
        """Return the metric that a task shows, times its factor."""
        metric = self.file.tasks[task].metric
        return self.number(arm, task, f"{metric}@student", factor(metric))

    def measured(self) -> Table | None:
        """Return the scores of all arms on all tasks."""
        rows = [
            Row(arm, tuple((self.score(arm, task),) for task in self.file.tasks), arm, self.file.arms[arm].says)
            for arm in self.arms
            if self.arms[arm].keys() & self.file.tasks.keys()
        ]
        over = f"Mean ± standard deviation over {self.results.seeds} seeds"
        note = f"{over}{times(each.metric for each in self.file.tasks.values())}; source `{self.results.source}`."
        return Table("Measured here", note, self.columns, tuple(rows)) if rows else None

    def loyalty(self) -> Table | None:
        """Return how far each student predicts as its teachers do."""
        rows = [
            Row(f"{name} to {teacher}", self._loyalties(name, teacher), name)
            for name, arm in self.file.arms.items()
            for teacher in arm.teachers
        ]
        rows = [row for row in rows if any(number.runs for cell in row.cells for number in cell)]
        note = (
            "The student's predictions against its teacher's on the test inputs, no label involved. Tagging and "
            "classification: label\nloyalty / probability loyalty (1 - Jensen-Shannon distance, base e); similarity: Pearson. "
            "Times 100."
        )
        return Table("Loyalty to the teachers", note, self.columns, tuple(rows)) if rows and self.columns else None

    def own(self) -> tuple[Table, ...]:
        """Return what claims and shown values read of the arms' own runs: a table for arms that have values in common.

        Where there are more values than arms, a row is a value.
        """
        told = (*self.file.claims.values(), *self.file.report.values())
        read = [each for one in told if one.pairs == "seeds" for each in one.references if each.task is None]
        values: dict[tuple[str, Reading], Reference] = {}
        for each in read:  # which may name the student or not
            values.setdefault((each.keys()[0], each.reading), each)
        names = {each.text.removeprefix(f"{each.arm}."): each for each in values.values()}
        groups: list[tuple[set[str], dict[str, dict[str, Number]]]] = []
        for arm in self.arms:
            numbers = {name: self._read(arm, each) for name, each in names.items() if name not in SIZES}
            filled = {name for name, number in numbers.items() if number.runs}
            if not filled:
                continue
            akin = next((group for group in groups if group[0] & filled), None)
            if akin is None:
                groups.append((filled, {arm: numbers}))
            else:
                akin[0].update(filled)
                akin[1][arm] = numbers
        return tuple(self._own([name for name in names if name in filled], arms) for filled, arms in groups)

    def sizes(self) -> Table | None:
        """Return size, own task, speed and cost of every arm; columns that no arm fills are left out."""
        arms = [arm for arm in self.arms if OWN in self.arms[arm]]
        steps = {arm: told["steps"] for arm, told in self.results.budgets().items()}
        columns: dict[str, list[Cell]] = {
            "parameters, M": [(self.number(arm, OWN, "parameters@student", 1e-6),) for arm in arms],
            "MB": [(self.number(arm, OWN, "megabytes@student"),) for arm in arms],
            "accuracy": [(self.number(arm, OWN, "accuracy@student", 100),) for arm in arms],
            "perplexity": [(self.number(arm, OWN, "perplexity@student"),) for arm in arms],
        }
        against = {key.partition("@")[2] for arm in arms for key in self._keys(arm) if key.startswith("speed_ratio@")}
        for teacher in sorted(against):
            columns[f"times as fast as {teacher}"] = [
                (self.number(arm, OWN, f"speed_ratio@{teacher}"),) for arm in arms
            ]
        columns["seconds of the fit"] = [(self.number(arm, OWN, "run/seconds"),) for arm in arms]
        columns["steps with its chain"] = [(Reported(_range(steps.get(arm, ()))),) for arm in arms]
        kept = {head: cells for head, cells in columns.items() if any(str(cell[0]) != NONE for cell in cells)}
        notes = {
            "accuracy": "Accuracy (times 100) and perplexity are of each arm's own test; perplexities of different vocabularies "
            "do not compare.",
            "times": "Speed: forward pass of the encoder, the teacher's seconds over the student's in one run.",
        }
        note = "\n".join(note for word, note in notes.items() if any(head.startswith(word) for head in kept))
        rows = [Row(arm, tuple(cells[place] for cells in kept.values()), arm) for place, arm in enumerate(arms)]
        return Table("Size, own task, speed", note, tuple(kept), tuple(rows)) if rows and kept else None

    def evidence(self, told: Claim | Shown) -> list[Evidence]:
        """Return what every pair says, with the runs that it is computed from."""
        items = told.pairs.startswith("items:")  # rows of the first seed's tables
        found = []
        for pair, value in claims.in_pairs(self.file, told, self.values).items():
            runs: list[str | None] = []
            for each in told.references:
                kind, place = ("seeds", "0") if items else (told.pairs, pair)
                table = self.kept.get(kind, {}).get(each.arm, {}).get(each.task or OWN, {})
                alone = self.file.arms[each.arm].seeds == "none" and len(table) == 1
                runs += next(iter(table.values())) if alone else table.get(place, [])
            names = tuple(dict.fromkeys(run for run in runs if run))
            found.append(Evidence(pair, value if isinstance(value, tuple) else (value,), names))
        return found

    def _own(self, names: Sequence[str], arms: Mapping[str, Mapping[str, Number]]) -> Table:
        over = f"Mean ± standard deviation over {self.results.seeds} seeds"
        note = f"What the claims read of each arm's own run. {over}; source `{self.results.source}`."
        if len(arms) < len(names):
            rows = [Row(name, tuple((numbers[name],) for numbers in arms.values())) for name in names]
            return Table("The arms' own tests", note, tuple(arms), tuple(rows))
        rows = [
            Row(arm, tuple((numbers[name],) for name in names), arm, self.file.arms[arm].says)
            for arm, numbers in arms.items()
        ]
        return Table("The arms' own tests", note, tuple(names), tuple(rows))

    def _read(self, arm: str, reference: Reference) -> Number:
        """Return what a claim reads of an arm's own runs; nothing where an arm has no such curve."""

        def of(metrics: Metrics) -> float:
            try:
                return reference.of(metrics)
            except UserError:
                return math.nan

        return self._number(arm, OWN, reference.keys()[0], of)

    def _number(self, arm: str, task: str, key: str, of: Callable[[Metrics], float], scale: float = 1.0) -> Number:
        runs = self.arms.get(arm, {}).get(task, {})
        found = ((pair, run, of(self.results.metrics(run))) for pair, kept in runs.items() for run in kept)
        kept = tuple((pair, run, value) for pair, run, value in found if run and math.isfinite(value))
        return Number(key, scale, kept, len(runs))

    def _loyalties(self, arm: str, teacher: str) -> tuple[tuple[Number, ...], ...]:
        return tuple(
            tuple(self.number(arm, task, f"{metric}@{teacher}", 100) for metric in told.loyalty)
            for task, told in self.file.tasks.items()
        )

    def _keys(self, arm: str) -> Iterable[str]:
        return (key for runs in self.arms[arm][OWN].values() for run in runs for key in self.results.metrics(run))


def factor(metric: str) -> int:
    """Return the number by which a metric is multiplied where it is shown: 100, or 1 for what is no share."""
    return 100 if any(word in metric for word in PERCENT) else 1


def times(metrics: Iterable[str]) -> str:
    """Return the words ", times 100" where the metrics are shown so."""
    return ", times 100" if any(factor(metric) == 100 for metric in metrics) else ""


def reported(file: ClaimFile) -> Table:
    """Return the paper's own table."""
    names = list(dict.fromkeys(name for row in file.reported.rows.values() for name in row.scores))
    head = tuple(f"{name} ({file.tasks[name].shown})" if name in file.tasks else name for name in names)
    rows = [
        Row(name, tuple((reported_cell(row, each),) for each in names), row.arm)
        for name, row in file.reported.rows.items()
    ]
    return Table("Reported by the paper", file.reported.source.strip(), head, tuple(rows))


def reported_cell(row: claims.Row, name: str) -> Reported:
    """Return what a row of the paper's table says in a column."""
    score = row.scores.get(name, "")
    digits = max(2, len(repr(score).partition(".")[2]))  # YAML reads 98.00 as 98.0
    return Reported(f"{score:.{digits}f}" if isinstance(score, float) else str(score), name in row.unverified)


def last(value: Any) -> float:
    """Return a metric, of a curve its last height; NaN where there is none."""
    if isinstance(value, Mapping):
        value = value["values"][-1] if value["values"] else None
    return math.nan if value is None else float(value)


def _form(mean: float) -> str:
    """Return the format of a number and of its deviation: two decimals, more where they are not three digits."""
    if abs(mean) >= 1000:
        return ",.0f"
    digits = 2 if mean == 0 else max(2, 2 - math.floor(math.log10(abs(mean))))
    return f".{digits}f" if digits < 7 else ".2e"


def _range(numbers: Sequence[float]) -> str:
    if not numbers:
        return NONE
    low, high = min(numbers), max(numbers)
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
