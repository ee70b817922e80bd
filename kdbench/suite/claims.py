"""The claim file of a paper, ``leaderboards/<paper>/claim.yaml``: its table, the arms, what is claimed, and the answers.

The file::

    title: ...                 # also source_of_claim, statement, recipe: prose of the page
    seeds: 5                   # the pairs of most claims
    source: local              # of all data; an arm or a task may have its own
    level: 0.95                # of the interval of each claim (default)
    arms:
      teacher: {experiment: experiments/paper/teacher.yaml, seeds: none}      # fitted once
      student: {experiment: experiments/paper.yaml, set: {trainer.max_steps: 300}, stages: {teacher: {..}}, teachers: [teacher]}
      pipe: {experiment: .., grid: {loss: {ce: {}, mse: {set: {..}}}, data: {few: {stages: {..}}, many: {}}}}   # pipe_ce_few, ...
      tuned: {experiment: .., best: {of: [{model.temperature: 1}, {model.temperature: 4}], by: val.loss, order: lowest, keep: 1}}
    tasks:                     # each arm's network on each of them; default: the arms' own runs alone
      upos: {experiment: experiments/paper/upos.yaml, metric: macro_f1, shown: macro-F1, loyalty: [label_loyalty], arms: [..]}
    stages: {upos: {trainer.max_steps: 80}}                                   # of all arms and tasks, by a file's stem
    over: {mixtures: {data.mixture: [0, 1, 2]}}                               # other pairs: a run for every value of a key
    claims:
      keeps: {says: It keeps 92% of the teacher, expect: student.upos.macro_f1 > 0.92 * teacher.upos.macro_f1}
      exact: {says: .., expect: packed.difference <= 1e-5, judged: every, premise: [keeps]}
      harder: {says: .., expect: attack.correct > uniform.correct, pairs: "items:mixture"}
    report: {gap: {shows: Gap to the teacher, value: teacher.upos.macro_f1 - student.upos.macro_f1}}
    budget: [{equal: steps, arms: [student, plain]}]                          # summed over each arm's own chain
    reported: {source: Table 2, rows: {Theirs: {arm: student, scores: {upos: 98.0}, unverified: [upos]}}}
    equations: [{says: Soft targets, equation: T^2 KL(p || q), code: "kdbench/losses/divergences.py:kl_divergence"}]
    differences: [The code divides by the rows and the paper by the elements; the code is followed.]

``expect`` is written in the notation of :mod:`kdbench.suite.expressions` and judged (:mod:`kdbench.suite.statistics`) on the
``mean`` of the pairs (default), on ``every`` pair, or on ``4 of 5``. Pairs are ``seeds``, ``items:<field>`` (the rows of the
arms' tables of items, named by a field) or a name of ``over``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdbench.errors import UserError, nearest
from kdbench.suite import statistics
from kdbench.suite.experiment import Config
from kdbench.suite.expressions import Comparison, Lookup, Measured, Reference, Value
from kdbench.suite.statistics import Answer, Interval, Share, Verdict

SOURCES = ("embedded", "local", "hub", "run")
SEEDS = ("own", "chain", "none")
OWN = "own"
"""The task of an arm's own run."""
FEW = 5
"""Fewer seeds show almost nothing."""

Metrics = Mapping[str, Measured]
Runs = Mapping[str, Mapping[str, Mapping[str, Metrics | Sequence[Metrics]]]]
"""arm -> task (or ``own``) -> pair -> metrics of its run, or of each run that ``best`` kept; a failed run has none: ``{}``."""
Budgets = Mapping[str, Mapping[str, Sequence[float]]]
"""arm -> measure -> the sum over the own chain of each of its runs."""


@dataclass(frozen=True)
class Best:
    """An arm that is tuned: the best ``keep`` of the runs with the overrides ``of``, by a validation metric."""

    of: tuple[Config, ...]
    by: Value
    order: str = "lowest"
    keep: int = 1

    def chosen(self, trials: Sequence[Metrics]) -> list[int]:
        """Return the places of the kept trials, the best first; a trial without a finite score is the worst."""
        scores = [self.by.of(lambda reference, trial=trial: reference.of(trial)) for trial in trials]
        costs = [score if self.order == "lowest" else -score for score in scores]
        costs = [cost if math.isfinite(cost) else math.inf for cost in costs]
        return sorted(range(len(trials)), key=lambda place: costs[place])[: self.keep]


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: an experiment with overrides.

    ``seeds``: ``own`` seeds its own run and leaves the stages below at seed 0, so that an interval speaks of those teachers
    alone; ``chain`` seeds every stage; ``none`` is one run with seed 0, which stands beside every pair of the other arms.
    """

    experiment: str
    set: Config = field(default_factory=dict)
    stages: Config = field(default_factory=dict)
    seeds: str = "own"
    source: str | None = None
    fit: bool = True
    best: Best | None = None
    teachers: tuple[str, ...] = ()
    says: str = ""
    levels: Mapping[str, str] = field(default_factory=dict)
    """The level of each factor, of an arm that a grid stands for."""


@dataclass(frozen=True)
class Task:
    """An experiment that takes over each arm's network, the metric that the table shows, and loyalties to the teachers."""

    experiment: str
    metric: str
    shown: str
    loyalty: tuple[str, ...] = ()
    set: Config = field(default_factory=dict)
    source: str | None = None
    arms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of the paper's own table; ``arm`` stands beside it here, and ``unverified`` columns are told as such."""

    scores: Mapping[str, float | str]
    arm: str | None = None
    unverified: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reported:
    """The paper's own table and where it stands."""

    source: str
    rows: Mapping[str, Row]


@dataclass(frozen=True)
class Claim:
    """What must hold; ``judged`` is the share of pairs, None for their mean."""

    name: str
    says: str
    expect: Comparison
    judged: Share | None = None
    pairs: str = "seeds"
    premise: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[Reference, ...]:
        """The values that it reads."""
        return self.expect.references


@dataclass(frozen=True)
class Shown:
    """A value that is shown beside the claims and not judged."""

    name: str
    shows: str
    value: Value
    pairs: str = "seeds"

    @property
    def references(self) -> tuple[Reference, ...]:
        """The values that it reads."""
        return self.value.references


@dataclass(frozen=True)
class Budget:
    """Arms whose sums of ``equal`` over their own chains may differ by the share ``within``, at most."""

    equal: str
    arms: tuple[str, ...]
    within: float = 0.0


@dataclass(frozen=True)
class Equation:
    """An equation of the paper; ``code`` names what computes it: ``kdbench/losses/hints.py:cosine_distance``."""

    says: str
    equation: str
    code: str


@dataclass(frozen=True)
class ClaimFile:
    """All of a claim file; see the module."""

    title: str
    source_of_claim: str
    statement: str
    recipe: str
    seeds: int
    source: str
    reported: Reported
    arms: Mapping[str, Arm]
    claims: Mapping[str, Claim]
    level: float = 0.95
    tasks: Mapping[str, Task] = field(default_factory=dict)
    stages: Config = field(default_factory=dict)
    over: Mapping[str, Config] = field(default_factory=dict)
    report: Mapping[str, Shown] = field(default_factory=dict)
    budget: tuple[Budget, ...] = ()
    equations: tuple[Equation, ...] = ()
    differences: tuple[str, ...] = ()

    def references(self) -> Iterator[tuple[str, Reference]]:
        """Yield all that the claims and the shown values read, each with its kind of pairs."""
        for told in (*self.claims.values(), *self.report.values()):
            yield from ((told.pairs, each) for each in told.references)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the page: what is permitted, and weakens what the file claims."""
        found = []
        if self.seeds < FEW and any(claim.pairs == "seeds" for claim in self.claims.values()):
            found.append(f"{self.seeds} seeds show almost nothing: {FEW} or more for what is judged.")
        for claim in self.claims.values():
            sides = dict.fromkeys(each.arm for each in claim.references)
            tuned = [name for name in sides if self.arms[name].best]
            plain = [name for name in sides if not self.arms[name].best and self.arms[name].seeds != "none"]
            if tuned and plain:
                found.append(
                    f"'{claim.name}' compares the tuned {_names(tuned)} with {_names(plain)}, which had one trial."
                )
        return tuple(found)


def judge(file: ClaimFile, values: Mapping[str, Runs], budgets: Budgets) -> dict[str, Verdict]:
    """Return the verdict of every claim by its name, in the order of the file.

    A claim is *void*, whatever its margins, when a claim of its ``premise`` does not hold, or when a budget that two or more
    of its arms must share is not equal.

    Args:
        file: what is claimed.
        values: the runs for each kind of pairs (``seeds``, ``items:<field>``, a name of ``over``).
        budgets: what the runs cost.

    Raises:
        UserError: a claim names a value that no record holds (a line each, with the nearest that they do), or reads of a
            curve what its record does not have.
    """
    faults = unknown_values(file, values)
    if faults:
        raise UserError("\n".join(faults))
    verdicts: dict[str, Verdict] = {}

    def verdict(claim: Claim) -> Verdict:
        if claim.name not in verdicts:
            found = _judge_one(file, claim, values)
            reasons = [
                f"Void: its premise '{name}' is {answer}."
                for name in claim.premise
                if (answer := verdict(file.claims[name]).answer) is not Answer.HOLDS
            ]
            arms = {each.arm for each in claim.references}
            if found.pairs:
                reasons += [f"Void: {fault}." for each in file.budget if (fault := _unequal(each, arms, budgets))]
            if reasons:
                found = replace(found, answer=Answer.VOID, notes=(*reasons, *found.notes))
            verdicts[claim.name] = found
        return verdicts[claim.name]

    return {name: verdict(claim) for name, claim in file.claims.items()}


def measure(file: ClaimFile, shown: Shown, values: Mapping[str, Runs]) -> tuple[Interval | None, tuple[str, ...]]:
    """Return the interval of a value that is shown, None without a finite one, and the pairs in which it is not finite."""
    found = in_pairs(file, shown, values)
    finite = [value for value in found.values() if math.isfinite(value)]
    failed = tuple(pair for pair, value in found.items() if not math.isfinite(value))
    return (statistics.interval(finite, file.level) if finite else None), failed


def in_pairs(file: ClaimFile, told: Claim | Shown, values: Mapping[str, Runs]) -> dict[str, Any]:
    """Return what every pair gives: the value that is shown, or by how much a claim holds there, one number a link."""
    runs = values.get(told.pairs, {})
    read, of = (told.expect, told.expect.margins) if isinstance(told, Claim) else (told.value, told.value.of)
    return {pair: of(_lookup(file, runs, pair)) for pair in _pairs(file, runs, read.references)}


def _judge_one(file: ClaimFile, claim: Claim, values: Mapping[str, Runs]) -> Verdict:
    found = in_pairs(file, claim, values)
    verdict = statistics.judge(found, [link.strict for link in claim.expect.links], claim.judged, file.level)
    if claim.judged is None and 0 < len(found) < FEW:
        note = f"{len(found)} pairs show almost nothing: {FEW} or more are asked for."
        verdict = replace(verdict, notes=(*verdict.notes, note))
    return verdict


def _table(file: ClaimFile, runs: Runs, reference: Reference) -> tuple[Mapping[str, Any], bool]:
    """Return the runs of an arm on a task by pair, and whether its one run stands beside every pair."""
    table = runs.get(reference.arm, {}).get(reference.task or OWN, {})
    return table, file.arms[reference.arm].seeds == "none" and len(table) == 1


def _pairs(file: ClaimFile, runs: Runs, references: Sequence[Reference]) -> list[str]:
    """Return the pairs that one or more of the arms have, numbers in their order."""
    tables = [_table(file, runs, each) for each in references]
    varied = [table for table, alone in tables if not alone] or [table for table, _ in tables]
    names = {pair for table in varied for pair in table}
    return sorted(names, key=lambda pair: (not pair.isdigit(), int(pair) if pair.isdigit() else 0, pair))


def _lookup(file: ClaimFile, runs: Runs, pair: str) -> Lookup:
    def value(reference: Reference) -> float:
        table, alone = _table(file, runs, reference)
        trials = _trials(next(iter(table.values())) if alone else table.get(pair, {}))
        return sum(reference.of(trial) for trial in trials) / len(trials)

    return value


def _trials(run: Metrics | Sequence[Metrics]) -> Sequence[Metrics]:
    return [run] if isinstance(run, Mapping) else run or [{}]


def unknown_values(file: ClaimFile, values: Mapping[str, Runs]) -> list[str]:
    """Return a line for each value that a claim file reads of runs of which none has it, with the nearest that they have."""
    rows = [(f"claims.{name}", each.pairs, each.expect) for name, each in file.claims.items()]
    rows += [(f"report.{name}", each.pairs, each.value) for name, each in file.report.items()]
    faults = []
    for where, pairs, told in rows:
        for reference in told.references:
            table, _ = _table(file, values.get(pairs, {}), reference)
            known = {key for run in table.values() for trial in _trials(run) for key in trial}
            if known and known.isdisjoint(reference.keys()):
                wanted = reference.keys()[-1]
                names = (key.removesuffix("@student") for key in known)
                faults.append(f"{where}: no record of '{reference.text}' has '{wanted}'.{nearest(wanted, names)}")
    return faults


def _unequal(budget: Budget, arms: set[str], budgets: Budgets) -> str | None:
    """Return what is wrong with a budget that two or more of the arms share, None when nothing is."""
    if len(arms.intersection(budget.arms)) < 2:
        return None
    spent = {arm: budgets.get(arm, {}).get(budget.equal, ()) for arm in budget.arms if arm in arms}
    if missing := [arm for arm, numbers in spent.items() if not numbers]:
        return f"the records do not say the {budget.equal} of {_names(missing)}"
    numbers = [number for each in spent.values() for number in each]
    if max(numbers) <= min(numbers) * (1 + budget.within):
        return None
    told = (
        f"{arm} {min(each):g}" + (f" to {max(each):g}" if max(each) > min(each) else "") for arm, each in spent.items()
    )
    return f"the {budget.equal} over the chain are not equal: {', '.join(told)}"


def _names(names: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)
