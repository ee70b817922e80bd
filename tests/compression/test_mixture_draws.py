import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.compression.mixture_draws import SMALLEST, STRENGTHS, draw_mixtures, tempered

PRIORS = st.lists(st.integers(1, 40), min_size=2, max_size=9).map(lambda told: np.array(told, dtype=float))


def one_by_one(prior, count, seed, most_epochs):
    """The published sampling as it is written: a call of Dirichlet for each strength of each attempt."""
    prior = prior / prior.sum()
    generator, chance = np.random.RandomState(seed), random.Random(seed)
    kept = []
    for _ in range(100 * count):
        drawn = chance.choice([generator.dirichlet(tempered(prior) * each, 1) for each in STRENGTHS])
        if any(share > min(limit * most_epochs, 1.0) for share, limit in zip(drawn[0], prior, strict=True)):
            continue
        drawn = np.where(drawn < SMALLEST, 0.0, drawn)
        kept.append((np.round(drawn / np.sum(drawn, axis=1).reshape(-1, 1) / SMALLEST) * SMALLEST)[0])
    kept = [kept[place] for place in np.lexsort(np.array(kept).T)]
    different = kept[:1]
    for each in kept[1:]:
        if np.sum(np.abs(each - different[-1])) > 1e-5:
            different.append(each)
    return np.stack(chance.sample(different, count))


@pytest.mark.parametrize("most_epochs", [15.0, 2.0])
def test_draws_are_those_of_the_published_loop(most_epochs):
    prior = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    ours = draw_mixtures(prior, 12, seed=3, most_epochs=most_epochs)
    np.testing.assert_array_equal(ours, one_by_one(prior, 12, 3, most_epochs))


@given(PRIORS, st.integers(0, 10**6))
def test_mixtures_keep_what_they_promise(prior, seed):
    mixtures = draw_mixtures(prior, 4, seed)
    assert mixtures.shape == (4, len(prior))
    assert (mixtures >= 0).all()
    np.testing.assert_allclose(mixtures / SMALLEST, np.round(mixtures / SMALLEST), atol=1e-6)
    assert np.abs(mixtures.sum(1) - 1).max() <= len(prior) * SMALLEST / 2 + 1e-9
    limits = np.minimum(15 * prior / prior.sum(), 1)
    lost = len(prior) * SMALLEST  # at most, when small shares become 0 and the others grow
    assert (mixtures <= limits / (1 - lost) + SMALLEST / 2).all()
    assert len({tuple(mixture) for mixture in mixtures}) == 4


@given(PRIORS)
def test_tempering_lifts_rare_domains(prior):
    prior = prior / prior.sum()
    found = tempered(prior)
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found**2 / (found**2).sum(), prior)
    assert found.min() >= prior.min() - 1e-12


def test_the_prior_may_have_any_scale():
    np.testing.assert_array_equal(draw_mixtures(np.array([3.0, 1.0]), 5), draw_mixtures(np.array([0.75, 0.25]), 5))


@pytest.mark.parametrize("prior", [[0.5, 0.0, 0.5], [1.2, -0.2], [[0.5, 0.5]]])
def test_a_prior_has_a_positive_share_for_each_domain(prior):
    with pytest.raises(ValueError, match="a positive share"):
        draw_mixtures(np.array(prior), 4)


def test_limits_may_leave_too_few():
    with pytest.raises(ValueError, match="of 400 draws 0 different mixtures keep the limits, and 4 are asked for"):
        draw_mixtures(np.array([0.5, 0.3, 0.2]), 4, most_epochs=0.1)
