"""What a few pairs show: means, intervals, and the answer to a claim.

A *margin* is by how much a claim holds in one pair, positive on the right side. Which interval of their mean:

- fewer than 100 pairs (seeds, mixtures): Student's t. A bootstrap of a handful of values resamples the same few numbers
  and comes out too narrow: with five normal ones its 95% intervals catch the mean about 85 times in 100.
- 100 pairs or more (items, queries): the paired bootstrap, BCa of 10,000 resamples from a fixed seed. Margins of items are
  skewed and often only -1, 0 and 1; BCa corrects the percentile interval for bias and skew, and stays inside their range.

The level, 95% by default, belongs to a claim: a chain of m comparisons has m intervals of level ``1 - (1 - level) / m``,
which hold together at ``level`` (Bonferroni).

Student 1908, "The probable error of a mean"; Efron and Tibshirani 1993, "An introduction to the bootstrap", section 14.3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from kdbench.suite.expressions import satisfied

BOOTSTRAP_FROM = 100
RESAMPLES, SEED = 10_000, 0
_AT_ONCE = 2_000_000  # drawn numbers held in memory together


class Answer(StrEnum):
    """What the runs say about a claim."""

    HOLDS = "holds"
    NOT_SHOWN = "not shown"
    CONTRADICTED = "contradicted"
    VOID = "void"


@dataclass(frozen=True)
class Interval:
    """A mean over pairs with its interval; ``sd`` is None for one pair, whose interval is the whole line."""

    mean: float
    sd: float | None
    low: float
    high: float
    level: float
    method: str
    pairs: int

    def __str__(self) -> str:
        if self.sd is None:
            return f"{self.mean:+.4g} in one pair"
        return (
            f"{self.mean:+.4g} ± {self.sd:.2g}, {self.level:.3g} interval ({self.method}) "
            f"[{self.low:+.4g}, {self.high:+.4g}] over {self.pairs} pairs"
        )


@dataclass(frozen=True)
class Share:
    """How many pairs must satisfy a claim: ``satisfied`` of each ``of``."""

    satisfied: int
    of: int

    def __str__(self) -> str:
        return "every" if self == EVERY else f"{self.satisfied} of {self.of}"


EVERY = Share(1, 1)


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return mean, standard deviation (n - 1) and interval of the mean, by the method that fits the number of values.

    Values that are all equal have an interval of no width: a deterministic result is what it is.

    Raises:
        ValueError: there is no value, one is not finite, or the level is not between 0 and 1.
    """
    sample = np.sort(np.asarray(values, dtype=np.float64))  # sorted: the resamples do not depend on the order of pairs
    if not len(sample) or not np.isfinite(sample).all():
        raise ValueError("An interval needs finite values, one or more.")
    if not 0 < level < 1:
        raise ValueError(f"The level must be between 0 and 1, not {level}.")
    mean = float(sample.mean())
    method = "bootstrap" if len(sample) >= BOOTSTRAP_FROM else "t"
    if len(sample) == 1:
        return Interval(mean, None, -math.inf, math.inf, level, method, 1)
    if sample[0] == sample[-1]:  # the mean of equal values may round off them
        return Interval(float(sample[0]), 0.0, float(sample[0]), float(sample[0]), level, method, len(sample))
    low, high = (bca_bootstrap if method == "bootstrap" else student_t)(sample, level)
    return Interval(mean, float(sample.std(ddof=1)), low, high, level, method, len(sample))


def student_t(values: Sequence[float], level: float) -> tuple[float, float]:
    """Return ``mean -+ t_{n-1, (1 + level) / 2} sd / sqrt(n)``."""
    sample = np.asarray(values, dtype=np.float64)
    reach = float(stdtrit(len(sample) - 1, (1 + level) / 2) * sample.std(ddof=1) / math.sqrt(len(sample)))
    mean = float(sample.mean())
    return mean - reach, mean + reach


def bca_bootstrap(values: Sequence[float], level: float, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the bias-corrected and accelerated interval of the mean.

    The ends are the quantiles ``Phi(z0 + (z0 + z) / (1 - a (z0 + z)))`` of the resampled means, z = Phi^-1((1 -+ level) / 2);
    ``z0 = Phi^-1`` of the share of them below the mean (equal ones count half) and, for a mean, the jackknife's
    acceleration is ``a = sum d^3 / (6 (sum d^2)^1.5)``, d the deviations from the mean.
    """
    sample = np.asarray(values, dtype=np.float64)
    generator = np.random.Generator(np.random.PCG64(SEED))
    rows = max(1, _AT_ONCE // len(sample))
    parts = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    means = np.concatenate([sample[generator.integers(len(sample), size=(n, len(sample)))].mean(1) for n in parts])
    deviations = sample - sample.mean()
    below = ((means < sample.mean()).mean() + (means <= sample.mean()).mean()) / 2
    bias = ndtri(below)
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    tails = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(means, ndtr(bias + tails / (1 - acceleration * tails)))
    return float(low), float(high)


@dataclass(frozen=True)
class Verdict:
    """The answer to one claim and what it rests on.

    ``failed`` names the pairs in which a side is not a number; ``intervals`` are of the margins that are finite, one a link
    of the claim; ``notes`` are sentences for the reader.
    """

    answer: Answer
    judged: Share | None
    pairs: tuple[str, ...]
    satisfied: int
    failed: tuple[str, ...]
    intervals: tuple[Interval, ...]
    notes: tuple[str, ...] = ()

    @property
    def evidence(self) -> str:
        """Return in one phrase what the answer rests on."""
        counted = f"{self.satisfied} of {len(self.pairs)} pairs"
        if self.judged == EVERY:
            return counted
        if self.judged is not None:
            return f"{counted}; a coin does as well in {chance(self.satisfied, len(self.pairs)):.0%} of cases"
        return ", ".join(str(each) for each in self.intervals) or "no pair has a margin"


def judge(
    margins: Mapping[str, Sequence[float]], strict: Sequence[bool], judged: Share | None = None, level: float = 0.95
) -> Verdict:
    """Judge a claim by its margins in every pair, one a link; ``judged`` None takes their mean, else counts pairs."""
    truths = {pair: satisfied(links, strict) for pair, links in margins.items()}
    failed = tuple(pair for pair, truth in truths.items() if truth is None)
    answer, intervals = judge_mean(list(zip(*margins.values(), strict=True)) or [[] for _ in strict], strict, level)
    notes = []
    if not margins:
        notes.append("There is no run yet.")
    if failed:
        named = ", ".join(failed[:5]) + (f" and {len(failed) - 5} more" if len(failed) > 5 else "")
        notes.append(f"Failed, and counted as such: {named}. A value there is missing or not a number.")
    if judged is not None:
        answer = judge_share(list(truths.values()), judged)
    elif any(math.isinf(each) for links in margins.values() for each in links):
        notes.append("A margin is infinite (a height that is never reached) and has no mean: judge pair by pair.")
    return Verdict(answer, judged, tuple(margins), list(truths.values()).count(True), failed, intervals, tuple(notes))


def judge_mean(
    margins: Sequence[Sequence[float]], strict: Sequence[bool], level: float = 0.95
) -> tuple[Answer, tuple[Interval, ...]]:
    """Judge the mean margin of every link of a claim, one inner sequence a link.

    *holds* where each interval lies on the right side of 0, *contradicted* where one lies on the wrong side; 0 itself is on
    the right side unless the link is strict. *not shown* otherwise, and always when a margin is not finite: a mean over the
    other pairs would drop the one that failed. The intervals are then those of the finite margins, for what they tell.
    """
    each_level = 1 - (1 - level) / len(margins)
    finite = [[margin for margin in link if math.isfinite(margin)] for link in margins]
    intervals = tuple(interval(link, each_level) for link in finite if link)
    if any(len(kept) < max(1, len(link)) for kept, link in zip(finite, margins, strict=True)):
        return Answer.NOT_SHOWN, intervals
    sides = list(zip(intervals, strict, strict=True))
    if all(each.low > 0 or (each.low == 0 and not sharp) for each, sharp in sides):
        return Answer.HOLDS, intervals
    if any(each.high < 0 or (each.high == 0 and sharp) for each, sharp in sides):
        return Answer.CONTRADICTED, intervals
    return Answer.NOT_SHOWN, intervals


def judge_share(truths: Sequence[bool | None], share: Share) -> Answer:
    """Judge how many pairs satisfy a claim; None is a pair that failed, which satisfies nothing and speaks against nothing.

    ``every``: *holds* when all pairs satisfy it, *contradicted* by one that does not (a counterexample).
    ``k of n``: *holds* when that share or more of the pairs satisfy it, *contradicted* when that share speaks against it.
    *not shown* otherwise, and with fewer than n pairs.
    """
    pairs, good, bad = len(truths), truths.count(True), truths.count(False)
    if pairs < share.of:
        return Answer.NOT_SHOWN
    if good * share.of >= share.satisfied * pairs:
        return Answer.HOLDS
    against = bad > 0 if share == EVERY else bad * share.of >= share.satisfied * pairs
    return Answer.CONTRADICTED if against else Answer.NOT_SHOWN


def chance(count: int, pairs: int) -> float:
    """Return how probable ``count`` pairs or more are by the toss of a coin: ``sum_{i >= k} C(n, i) / 2^n``."""
    return sum(math.comb(pairs, heads) for heads in range(count, pairs + 1)) / 2**pairs
