"""Mixtures of domains to try, drawn around the shares that the domains have in a corpus.

Liu et al. 2024 (RegMix), arXiv 2407.01492; where text and code differ, the code is followed.
"""

import random

import numpy as np

STRENGTHS = np.logspace(np.log10(0.1), np.log10(5.0), 15)
"""Of the Dirichlet distributions: from mixtures of hardly more than one domain to such that resemble the prior."""
SMALLEST = 2e-4
"""The least share of a domain, of which every share is a multiple."""
ATTEMPTS = 100
"""How many draws there are for each mixture that is asked for."""


def tempered(prior: np.ndarray) -> np.ndarray:
    """Return ``p^0.5 / sum p^0.5``, by which rare domains are tried more often than the corpus has them."""
    roots = np.sqrt(prior)
    return roots / roots.sum()


def draw_mixtures(prior: np.ndarray, count: int, seed: int = 42, most_epochs: float = 15.0) -> np.ndarray:
    """Return different mixtures to try, ``[count, D]``, drawn around the tempered prior q.

    Each of ``100 count`` times one vector of ``Dirichlet(q s)`` is drawn for every strength s, in rising order, and one
    of them is taken; it is dropped unless ``w_i <= min(most_epochs p_i, 1)`` for all i. Shares below 2e-4 become 0, the rest is
    normalised and rounded to multiples of 2e-4, so that a row may miss 1 by ``D 10^-4``. Of what is left, sorted by the last
    share, then by the one before it and so on, neighbours with an L1 distance of 1e-5 or less count once, and ``count`` are
    drawn without replacement.

    The order of all draws is that of the official code, from a legacy generator of numpy and one of Python with one seed.

    Args:
        prior: p, positive; it is normalised.
        count: n.
        seed: of both generators.
        most_epochs: how often the run on the mixture may go through a domain, had it as many tokens as the corpus.

    Raises:
        ValueError: the prior has a share that is not positive, or too few different mixtures keep the limits.
    """
    if prior.ndim != 1 or not (prior > 0).all():
        raise ValueError(f"the prior has a positive share for each domain, got {prior.tolist()}")
    prior = prior / prior.sum()
    limits = np.minimum(most_epochs * prior, 1.0)
    concentrations = tempered(prior) * STRENGTHS[:, None]
    generator, chance = np.random.RandomState(seed), random.Random(seed)
    gammas = generator.standard_gamma(concentrations, (ATTEMPTS * count, *concentrations.shape))
    gammas = np.stack([chance.choice(each) for each in gammas])
    drawn = gammas * (1 / gammas.cumsum(1)[:, -1:])  # a Dirichlet vector, to the last bit that of the legacy generator
    drawn = drawn[(drawn <= limits).all(1)]
    kept = np.where(drawn < SMALLEST, 0.0, drawn)
    kept = np.round(kept / kept.sum(1, keepdims=True) / SMALLEST) * SMALLEST
    different: list[np.ndarray] = []
    for mixture in kept[np.lexsort(kept.T)]:
        if not different or np.abs(mixture - different[-1]).sum() > 1e-5:
            different.append(mixture)
    if len(different) < count:
        raise ValueError(
            f"of {ATTEMPTS * count} draws {len(different)} different mixtures keep the limits, and {count} are asked for"
        )
    return np.stack(chance.sample(different, count))
