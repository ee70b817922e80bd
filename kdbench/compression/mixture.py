"""What the merges of a byte-pair tokenizer tell of the text that it was trained on: the share of each category.

At each step of its training the most frequent pair of neighbours in the mixed text was merged. The counts of all pairs in
each category, before each merge, so turn a list of merges into linear inequalities of the shares. Hayase et al. 2024, arXiv
2407.16607.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from highspy import Highs, HighsModelStatus, kHighsInf

Pair = tuple[str, str]
Words = Mapping[tuple[str, ...], int]
MILLION = 1e6


class PairHistory(NamedTuple):
    """How often each pair of neighbours occurs in a text while merges are applied to it: only the changes are kept."""

    total: int
    """How many pairs there are before the first merge."""
    pairs: list[Pair]
    pair: np.ndarray
    """The number of the pair of each entry, ascending; int64 ``[K]``."""
    step: np.ndarray
    """From which step on the entry holds, ascending within a pair: 0 is before the first merge, t after t merges."""
    count: np.ndarray
    """The count from there on, int64 ``[K]``."""


def pair_history(words: Words, merges: Sequence[Pair]) -> PairHistory:
    """Return the counts of all pairs before each merge, and after the last.

    Args:
        words: how often each word occurs, a word being its symbols; no merge crosses the border of a word.
        merges: in their order; each replaces its pair from left to right in every word.

    Of ``a a a`` the pair ``(a, a)`` counts twice, as every pair of neighbours does.

    Raises:
        ValueError: there is no pair at all.
    """
    states = [list(word) for word in words]
    weights = list(words.values())
    counts: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for place, (state, weight) in enumerate(zip(states, weights, strict=True)):
        for pair in pairwise(state):
            counts[pair] += weight
            places[pair].add(place)
    total = counts.total()
    if not total:
        raise ValueError("a text whose words are single symbols has no pairs: there is nothing to count")
    entries: dict[Pair, list[tuple[int, int]]] = {pair: [(0, count)] for pair, count in counts.items()}
    for step, merge in enumerate(merges, 1):
        changed: set[Pair] = set()
        for place in places.pop(merge, ()):
            before, weight = states[place], weights[place]
            after = states[place] = _merged(before, merge)
            for pair in pairwise(before):
                counts[pair] -= weight
                changed.add(pair)
            for pair in pairwise(after):
                counts[pair] += weight
                places[pair].add(place)
                changed.add(pair)
        for pair in changed:
            history = entries.setdefault(pair, [(0, 0)])
            if history[-1][1] != counts[pair]:
                history.append((step, counts[pair]))
    names = list(entries)
    rows = [(number, *entry) for number, name in enumerate(names) for entry in entries[name]]
    pair, step, count = np.array(rows, dtype=np.int64).T
    return PairHistory(total, names, pair, step, count)


class Shares(NamedTuple):
    """What a list of merges tells of the mixture."""

    pairs: np.ndarray
    """The share of each category among the pairs, float64 ``[n]``, summing to 1."""
    slack: float
    """How far the merges are from what any mixture explains, in shares of all pairs: the least value of the program."""
    rows: int
    """How many inequalities the program had."""
    missing: list[int]
    """The steps, from 0, whose pair occurs in no category at any step: nothing follows from them."""


def mixture_shares(
    histories: Sequence[PairHistory],
    merges: Sequence[Pair],
    rows_per_round: int | None = 300,
    tolerance: float = 1e-6,
    settled: float | None = None,
) -> Shares:
    """Return the shares of the categories that explain the merges with the least slack: a linear program.

    ``min sum_t v_t + sum_p u_p`` over ``a, v, u >= 0`` with ``sum_i a_i = 1`` and, for every step t and every pair p other
    than the merge m_t, ``sum_i a_i c_i^t(m_t) / N_i + v_t + u_p >= sum_i a_i c_i^t(p) / N_i``: c the counts before the
    merge, N_i the pairs of the category. v forgives a step, u a pair at all steps, such as one that the tokenizer never
    makes. The rows are found as they are needed: each round goes on from the last solution with those that it breaks most.
    Where none is broken, the solution is one of the whole program; there may be several. Long before that the shares stand
    still and the slack of rare pairs alone grows, row by row.

    Args:
        histories: of each category, all with these merges.
        merges: of the tokenizer, in their order.
        rows_per_round: how many rows a round adds at most; None: all rows at once.
        tolerance: by how much a row may be broken, in shares of all pairs.
        settled: end where no share has moved by more than this while the rows doubled, and there are two rows a merge or more;
            the slack is a lower bound then. None: go on until no row is broken.

    Raises:
        ValueError: there is no category, or no merge that occurs in one.
    """
    program = _Program(histories, merges)
    if rows_per_round is None:
        return program.solve(*program.all_rows())
    rows, rounds = np.empty((2, 0), dtype=np.int64), []
    while True:
        rounds.append(program.solve(*rows))
        rows = program.broken(rows_per_round, tolerance)
        if not len(rows[0]) or (settled is not None and _stand_still(rounds, 2 * len(merges), settled)):
            return rounds[-1]


def _stand_still(rounds: Sequence[Shares], rows: int, within: float) -> bool:
    """Return whether the shares have moved by ``within`` at most since there were half as many rows as now."""
    now = rounds[-1]
    since = [each.pairs for each in rounds if 2 * each.rows >= now.rows]
    return now.rows >= rows and float(np.ptp(since, axis=0).max()) <= within


def byte_shares(pairs: np.ndarray, bytes_per_pair: Sequence[float]) -> np.ndarray:
    """Return shares of bytes, ``a_i r_i / sum_j a_j r_j``, of shares of pairs, r being the bytes of a category over its pairs."""
    weighted = np.asarray(pairs, dtype=np.float64) * np.asarray(bytes_per_pair, dtype=np.float64)
    return weighted / weighted.sum()


class _Program:
    """The linear program of a mixture: its coefficients, the rows that were asked for, and their solution.

    A row is a step and a *place*: an entry (pair, first step, end) of the table in which no category's count changes.
    """

    def __init__(self, histories: Sequence[PairHistory], merges: Sequence[Pair]) -> None:
        if not histories:
            raise ValueError("a mixture has at least one category")
        self.merges = len(merges)
        number = {pair: place for place, pair in enumerate(dict.fromkeys(p for each in histories for p in each.pairs))}
        keys, values = [], []
        for history in histories:
            own = np.array([number[pair] for pair in history.pairs], dtype=np.int64)[history.pair]
            order = np.lexsort((history.step, own))
            keys.append((own * (self.merges + 1) + history.step)[order])
            values.append((history.count / history.total)[order])
        key = np.unique(np.concatenate(keys))
        self.pair, self.start = np.divmod(key, self.merges + 1)
        same = np.append(self.pair[1:] == self.pair[:-1], False)
        self.end = np.where(same, np.append(self.start[1:], 0), self.merges)
        self.shares_of = np.zeros((len(histories), len(key)))  # of all pairs of each category
        for row, own, value in zip(self.shares_of, keys, values, strict=True):
            last = np.searchsorted(own, key, side="right") - 1
            known = (last >= 0) & (own[last] // (self.merges + 1) == self.pair)
            row[known] = value[last[known]]
        merged = np.array([number.get(pair, -1) for pair in merges], dtype=np.int64)
        steps = np.arange(self.merges)
        self.chosen = np.searchsorted(key, merged * (self.merges + 1) + steps, side="right") - 1
        self.seen = merged >= 0
        self.missing = steps[~self.seen].tolist()
        if len(self.missing) == self.merges:
            raise ValueError(
                "none of the merges occurs in a category: are the texts cut into words as the tokenizer does?"
            )
        self.solver = Highs()
        self.solver.silent()
        self._add_variables(len(histories), cost=0.0)
        one, places = np.ones(1), np.arange(len(histories), dtype=np.int32)
        self.solver.addRows(1, one, one, len(places), np.zeros(1, dtype=np.int32), places, np.ones(len(places)))
        self.step_variable = np.full(self.merges, -1)
        self.pair_variable = np.full(len(number), -1)
        self.rows = 0

    def all_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return steps and places of all rows whose pair occurs at that step."""
        lengths = self.end - self.start
        places = np.repeat(np.arange(len(self.pair)), lengths)
        steps = np.arange(len(places)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + self.start[places]
        kept = self.seen[steps] & (self.chosen[steps] != places) & self.shares_of[:, places].any(0)
        return steps[kept], places[kept]

    def broken(self, most: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that the last solution breaks most: of each place the step at which it breaks it most."""
        mixed = self.shares @ self.shares_of
        bound = np.where(self.seen, mixed[self.chosen] + self.step_slack, np.inf)
        whole = self.end > self.start
        step = np.zeros(len(self.pair), dtype=np.int64)
        step[whole] = _lowest(bound, self.start[whole], self.end[whole])
        excess = np.where(whole, mixed - self.pair_slack[self.pair] - bound[step], -np.inf)
        worst = np.argsort(-excess, kind="stable")[:most]
        worst = worst[excess[worst] > tolerance]
        return step[worst], worst

    def solve(self, steps: np.ndarray, places: np.ndarray) -> Shares:
        """Return the solution of the program with these rows too, and keep it."""
        for variables, asked in ((self.step_variable, steps), (self.pair_variable, self.pair[places])):
            new = np.unique(asked[variables[asked] < 0])
            variables[new] = self._add_variables(len(new), cost=1.0)
        self._add_rows(steps, places)
        self.solver.run()
        if (status := self.solver.getModelStatus()) != HighsModelStatus.kOptimal:  # it has a solution, always
            raise ArithmeticError(f"the solver of the linear program stopped: {status.name}")
        values = np.array(self.solver.getSolution().col_value)
        self.shares = values[: len(self.shares_of)] / values[: len(self.shares_of)].sum()
        self.step_slack, self.pair_slack = (
            np.where(variables < 0, 0.0, values[variables]) / MILLION
            for variables in (self.step_variable, self.pair_variable)
        )
        slack = self.solver.getInfo().objective_function_value / MILLION
        return Shares(self.shares, slack, self.rows, self.missing)

    def _add_variables(self, count: int, cost: float) -> np.ndarray:
        """Return the numbers of new variables, each at least 0."""
        first, none = self.solver.getNumCol(), np.empty(0, dtype=np.int32)
        bounds = np.zeros(count), np.full(count, kHighsInf)
        self.solver.addCols(count, np.full(count, cost), *bounds, 0, np.zeros(count, dtype=np.int32), none, np.empty(0))
        return first + np.arange(count)

    def _add_rows(self, steps: np.ndarray, places: np.ndarray) -> None:
        """Add ``sum_i a_i (share_i(p) - share_i(m_t)) - v_t - u_p <= 0``.

        Shares of single pairs are small beside the solver's tolerance of 1e-7: all slacks are counted in millionths.
        """
        count, categories = len(steps), len(self.shares_of)
        difference = (self.shares_of[:, places] - self.shares_of[:, self.chosen[steps]]).T * MILLION
        values = np.concatenate([difference, np.full((count, 2), -1.0)], 1)
        shares = np.tile(np.arange(categories), (count, 1))
        slacks = np.stack([self.step_variable[steps], self.pair_variable[self.pair[places]]], 1)
        variables = np.concatenate([shares, slacks], 1).astype(np.int32)
        starts = np.arange(0, values.size, values.shape[1], dtype=np.int32)
        bounds = np.full(count, -kHighsInf), np.zeros(count)
        self.solver.addRows(count, *bounds, values.size, starts, variables.ravel(), values.ravel())
        self.rows += count


def _merged(word: list[str], merge: Pair) -> list[str]:
    """Return a word with every occurrence of a pair, from left to right, as one symbol."""
    found, at = [], 0
    while at < len(word):
        if at + 1 < len(word) and (word[at], word[at + 1]) == merge:
            found.append(word[at] + word[at + 1])
            at += 2
        else:
            found.append(word[at])
            at += 1
    return found


def _lowest(values: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the place of the lowest value in each range ``start <= place < end``, the first of equals."""
    level = [np.arange(len(values))]
    while (width := 2 ** len(level)) <= len(values):
        before = level[-1]
        left, right = before[: len(values) - width + 1], before[width // 2 : len(values) - width // 2 + 1]
        level.append(np.where(values[right] < values[left], right, left))
    depth = np.log2(end - start).astype(np.int64)
    found = np.empty(len(start), dtype=np.int64)
    for each in np.unique(depth):
        asked = depth == each
        left, right = level[each][start[asked]], level[each][end[asked] - 2**each]
        found[asked] = np.where(values[right] < values[left], right, left)
    return found
