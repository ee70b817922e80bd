"""The claim file of a paper, ``leaderboards/<paper>/claim.yaml``: its table, the arms, what is claimed, and the answers.

The file::

    title: ...                 # also source_of_claim, statement, recipe: prose of the page
    seeds: 5                   # the pairs of most claims
    source: local              # of all data; an arm or a task may have its own
    level: 0.95                # of the interval of each claim (default)
    arms:
      teacher: {experiment: experiments/paper/teacher.yaml, seeds: none}      # fitted once
      student: {experiment: experiments/paper.yaml, set: {trainer.max_steps: 300}, stages: {teacher: {..}}, teachers: [teacher]}
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

``expect`` is written in the notation of :mod:`kdbench.suite.expressions` and judged (:mod:`kdbench.suite.statistics`) on the
``mean`` of the pairs (default), on ``every`` pair, or on ``4 of 5``. Pairs are ``seeds``, ``items:<field>`` (the rows of the
arms' tables of items, named by a field) or a name of ``over``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kdbench.suite.experiment import Config
from kdbench.suite.expressions import Comparison, Measured, Reference, Value
from kdbench.suite.statistics import Share

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
    by: Reference
    lowest: bool
    keep: int

    def chosen(self, trials: Sequence[Metrics]) -> list[int]:
        """Return the places of the kept trials, the best first; a trial without a finite score is the worst."""
        scores = [self.by.reading.of(self.by.find(trial), self.by.text) for trial in trials]
        costs = [math.inf if not math.isfinite(score) else score if self.lowest else -score for score in scores]
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
class Claim:
    """What must hold; ``judged`` is the share of pairs, None for their mean."""

    name: str
    says: str
    expect: Comparison
    judged: Share | None = None
    pairs: str = "seeds"
    premise: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """A value that is shown beside the claims and not judged."""

    name: str
    shows: str
    value: Value
    pairs: str = "seeds"


@dataclass(frozen=True)
class Budget:
    """Arms whose sums of ``equal`` over their own chains may differ by the share ``within``, at most."""

    equal: str
    arms: tuple[str, ...]
    within: float = 0.0


@dataclass(frozen=True)
class ClaimFile:
    """All of a claim file; see the module."""

    title: str
    source_of_claim: str
    statement: str
    recipe: str
    seeds: int
    source: str
    arms: Mapping[str, Arm]
    claims: Mapping[str, Claim]
    reported_source: str
    reported: Mapping[str, Row]
    level: float = 0.95
    tasks: Mapping[str, Task] = field(default_factory=dict)
    stages: Config = field(default_factory=dict)
    over: Mapping[str, Config] = field(default_factory=dict)
    report: Mapping[str, Shown] = field(default_factory=dict)
    budget: tuple[Budget, ...] = ()
