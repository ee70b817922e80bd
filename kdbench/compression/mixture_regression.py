"""A loss learnt from mixtures of domains that were tried, and the mixture that is predicted to have the lowest.

A mixture is a share for each of D domains. Liu et al. 2024 (RegMix), arXiv 2407.01492; where text and code differ, the code is
followed.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr
from sklearn.ensemble import HistGradientBoostingRegressor

Predict = Callable[[np.ndarray], np.ndarray]
"""Mixtures ``[N, D]`` to losses ``[N]``."""


class Tried(NamedTuple):
    """Mixtures and what models that were trained on them came to."""

    mixtures: np.ndarray
    """``[N, D]``."""
    losses: np.ndarray
    """``[N]``."""


def fit_linear(tried: Tried) -> Predict:
    """Return ``b + sum_i a_i w_i`` with the least squares, and of all that have them, of the smallest norm.

    The shares of a mixture sum to 1, so a constant may go from b to all a_i: the singular value decomposition settles which,
    and no coefficient has a meaning of its own.
    """
    coefficients = np.linalg.lstsq(_with_one(tried.mixtures), tried.losses, rcond=None)[0]
    return lambda mixtures: _with_one(mixtures) @ coefficients


def fit_trees(tried: Tried, seed: int = 0, smallest_leaf: int = 20, held_out: Tried | None = None) -> Predict:
    """Return boosted regression trees for the squared error: 1000 at most, of 31 leaves, each with a weight of 0.01.

    No more are added once three have not lowered the error on mixtures that no tree has seen: a tenth of those that were tried,
    drawn with the seed. In the official code the mixtures that it is tested on decide this, and the trees are LightGBM's, which
    scikit-learn's resemble.

    Args:
        tried: what is learnt.
        seed: of what is held out.
        smallest_leaf: the fewest mixtures in a leaf.
        held_out: what decides in the place of a tenth.
    """
    trees = HistGradientBoostingRegressor(
        learning_rate=0.01,
        max_iter=1000,
        max_leaf_nodes=31,
        min_samples_leaf=smallest_leaf,
        early_stopping=True,
        n_iter_no_change=3,
        random_state=seed,
    )
    unseen, losses = held_out or (None, None)
    return trees.fit(tried.mixtures, tried.losses, X_val=unseen, y_val=losses).predict


def choose_mixture(
    predict: Predict, prior: np.ndarray, draws: int = 100_000, kept: int = 128, seed: int = 42
) -> np.ndarray:
    """Return the mean ``[D]`` of the mixtures with the lowest predicted losses, among draws from ``Dirichlet(p)``.

    The prior is not tempered here. The mean of many is steadier than the very lowest, where the prediction errs the most.

    Args:
        predict: mixtures to losses.
        prior: p, ``[D]``.
        draws: how many mixtures are predicted.
        kept: how many of them are averaged.
        seed: of the draws, from a legacy generator of numpy as in the official code.
    """
    drawn = np.random.RandomState(seed).dirichlet(prior, draws)
    return drawn[np.argsort(predict(drawn), kind="stable")[:kept]].mean(0)


def agreement(predict: Predict, tried: Tried) -> tuple[float, float]:
    """Return the rank correlation and the mean squared error between predictions and losses."""
    predicted = predict(tried.mixtures)
    return rank_correlation(predicted, tried.losses), float(np.square(predicted - tried.losses).mean())


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's correlation ``[-1, 1]``: that of the ranks, equal values sharing theirs; NaN where all are equal."""
    return float(spearmanr(one, other).statistic)


def _with_one(mixtures: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(mixtures)), mixtures])
