"""The learner of AutoDistiller: from a table of past runs to the order in which pipelines are tried on a new task.

A table of records is a plain DataFrame with one row a run:

- ``task``: the name of the task; ``ratio``: the distillation ratio, the student's test score over its teacher's;
- ``pipeline.<key>``: what was chosen, a category (the augmentation, the losses, their arguments);
- ``task.<name>`` and ``model.<name>``: numbers of the task and of the student, NaN where they are not known.

Source: He et al. 2021, arXiv 2109.11105 (their regressor is an ensemble of AutoML; here it is a random forest).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestRegressor

from kdbench.errors import UserError, nearest

TREES = 200
FEWEST = 10  # records below which a forest has nothing to learn from


@dataclass(frozen=True)
class Ranked:
    """A pipeline, its place in the table of candidates, its predicted ratio and the standard deviation between the trees."""

    index: Any
    pipeline: Mapping[str, Any]
    ratio: float
    spread: float


@dataclass(frozen=True)
class Recommender:
    """A random forest from pipeline, task and student to the distillation ratio.

    Attributes:
        forest: the fitted trees.
        levels: the values of each ``pipeline.*`` column that the records hold.
        numbers: the ``task.*`` and ``model.*`` columns.
    """

    forest: RandomForestRegressor
    levels: Mapping[str, Sequence[Any]]
    numbers: Sequence[str]

    def rank(self, candidates: pd.DataFrame, task: Mapping[str, float]) -> list[Ranked]:
        """Return the candidates with their predicted ratios on a task, the best first; equal ones in their own order.

        Args:
            candidates: one row a pipeline, with all the ``pipeline.*`` columns of the records.
            task: the ``task.*`` and ``model.*`` numbers; one that is not told is not known.

        Raises:
            UserError: the candidates lack a column or have a value that no record has, or a number has an unknown name.
        """
        for name in task:
            if name not in self.numbers:
                raise UserError(f"The records have no number '{name}'.{nearest(name, self.numbers)}")
        chosen = candidates.filter(items=list(self.levels))
        told = {name: task.get(name, math.nan) for name in self.numbers}
        values = _encoded(chosen.assign(**told), self.levels, self.numbers)
        trees = np.stack([tree.predict(values) for tree in self.forest.estimators_])
        mean, spread = trees.mean(0), trees.std(0)
        return [
            Ranked(chosen.index[place], chosen.iloc[place].to_dict(), float(mean[place]), float(spread[place]))
            for place in np.argsort(-mean, kind="stable")
        ]


def fit(table: pd.DataFrame, seed: int = 0) -> Recommender:
    """Fit a forest to a table of records.

    Raises:
        UserError: there are fewer than 10 records or than two pipelines, or a ratio is not finite.
    """
    _check_ratios(table)
    pipeline = columns_of(table, "pipeline.")
    different = len(table[pipeline].drop_duplicates()) if pipeline else 0
    if len(table) < FEWEST or different < 2:
        raise UserError(
            f"A recommender needs {FEWEST} records of at least 2 pipelines, and there are {len(table)} of {different}: "
            "run more of the grid first."
        )
    levels = {name: sorted(table[name].unique(), key=str) for name in pipeline}
    numbers = [*columns_of(table, "task."), *columns_of(table, "model.")]
    forest = RandomForestRegressor(TREES, max_features=0.5, random_state=seed)
    forest.fit(_encoded(table, levels, numbers), table["ratio"].to_numpy(dtype=float))
    return Recommender(forest, levels, numbers)


def leave_one_task_out(table: pd.DataFrame, top_n: int = 3, seed: int = 0) -> pd.DataFrame:
    """Compare the ``top_n`` pipelines recommended for each task, learnt from the other tasks, with as many drawn at random.

    The ratio of a pipeline on a task is the mean over its records there (seeds, students). What is said of random search
    is its exact expectation over all draws of ``top_n`` of the M pipelines: a mean rank of ``(M + 1) / 2``, and of the best
    ``sum_k C(k - 1, N - 1) / C(M, N) x_(k)``, ``x_(k)`` the k-th smallest ratio.

    Returns:
        one row a task: ``candidates`` (M), ``rank`` (mean rank of the recommended, 1 the best, ties averaged),
        ``random_rank``, ``best`` (best ratio of the recommended), ``random_best``, ``possible`` (best of all) and ``chance``
        (the probability that the best of a random draw is at least as good).

    Raises:
        UserError: there are fewer than two tasks, too few records without one of them, or a task has fewer pipelines
            than ``top_n``.
    """
    _check_ratios(table)
    pipeline = columns_of(table, "pipeline.")
    tasks = sorted(table["task"].unique())
    if len(tasks) < 2:
        raise UserError(f"To leave a task out there must be two, and the records have {len(tasks)}.")
    rows = []
    for task in tasks:
        held = table[table["task"] == task]
        measured = held.groupby(pipeline, sort=True, as_index=False)["ratio"].mean()
        if not 1 <= top_n <= len(measured):
            raise UserError(f"Of the {len(measured)} pipelines of '{task}' no {top_n} can be recommended.")
        recommender = fit(table[table["task"] != task], seed)
        known = held[list(recommender.numbers)].mean().to_dict()
        chosen = [each.index for each in recommender.rank(measured, known)[:top_n]]
        ratios = measured["ratio"]
        best, ascending, total = ratios[chosen].max(), np.sort(ratios), len(measured)
        draws = math.comb(total, top_n)
        odds = [math.comb(below, top_n - 1) / draws for below in range(total)]
        rows.append(
            {
                "task": task,
                "candidates": total,
                "rank": ratios.rank(ascending=False)[chosen].mean(),
                "random_rank": (total + 1) / 2,
                "best": best,
                "random_best": float(np.dot(odds, ascending)),
                "possible": ascending[-1],
                "chance": 1 - math.comb(int((ascending < best).sum()), top_n) / draws,
            }
        )
    return pd.DataFrame(rows).set_index("task")


def shares(table: pd.DataFrame, factors: Sequence[str]) -> pd.Series:
    """Return what share of the variance of the ratio each factor, and each pair of factors, accounts for.

    Functional analysis of variance on a full grid with equally many records in each cell, where it is exact:
    ``V_a = Var(E[r | a])``, ``V_ab = Var(E[r | a, b]) - V_a - V_b``, each over the total variance.

    Args:
        table: the records.
        factors: the columns of the grid.

    Returns:
        the shares by ``a`` and ``a x b``, then ``higher order`` (three factors and more) and ``within cells`` (seeds, and all
        that is no factor). They sum to 1; all are 0 where the ratio does not vary.

    Raises:
        UserError: there is no such column, or the grid is not full and balanced: what an adaptive search tried says
            little of what it left out.

    Source: Hutter et al. 2014 (functional ANOVA of algorithms); Hooker 2007.
    """
    _check_ratios(table)
    for name in factors:
        if name not in table:
            raise UserError(f"The records have no column '{name}'.{nearest(name, table.columns)}")
    cells = math.prod(table[name].nunique(dropna=False) for name in factors)
    sizes = table.groupby(list(factors), dropna=False).size()
    if len(sizes) < cells or sizes.nunique() != 1:
        raise UserError(
            f"The grid of {', '.join(factors)} has {cells} cells: {len(sizes)} hold records, {sizes.min()} to {sizes.max()} "
            "each; shares of variance need every cell, with equally many."
        )

    def between(*names: str) -> float:
        return float(table.groupby(list(names), dropna=False)["ratio"].mean().var(ddof=0))

    total = float(table["ratio"].var(ddof=0))
    found = {name: between(name) for name in factors}
    pairs = {f"{a} x {b}": between(a, b) - found[a] - found[b] for a, b in itertools.combinations(factors, 2)}
    all_cells = between(*factors)
    found |= pairs | {"higher order": all_cells - sum((found | pairs).values()), "within cells": total - all_cells}
    varies = total > 1e-24 * float((table["ratio"] ** 2).mean())  # else it is rounding
    return pd.Series({name: max(value, 0.0) / total if varies else 0.0 for name, value in found.items()})


def _check_ratios(table: pd.DataFrame) -> None:
    if "ratio" not in table or not np.isfinite(table["ratio"].to_numpy(dtype=float)).all():
        raise UserError("Every record needs a finite 'ratio': leave out the runs that have none.")


def columns_of(table: pd.DataFrame, prefix: str) -> list[str]:
    """Return the columns of one kind."""
    return [name for name in table.columns if name.startswith(prefix)]


def _encoded(table: pd.DataFrame, levels: Mapping[str, Sequence[Any]], numbers: Sequence[str]) -> np.ndarray:
    """Return one column a value of a category, 0 or 1, and one a number."""
    columns = [table[name].to_numpy(dtype=float) for name in numbers]
    for name, known in levels.items():
        if name not in table:
            raise UserError(f"The candidates have no column '{name}'.{nearest(name, table.columns)}")
        if foreign := set(table[name]) - set(known):
            value = min(map(str, foreign))
            raise UserError(f"No record has '{name}' = {value}.{nearest(value, map(str, known))}")
        columns += [(table[name] == value).to_numpy(dtype=float) for value in known]
    return np.column_stack(columns).astype(np.float32)  # what the trees compare
