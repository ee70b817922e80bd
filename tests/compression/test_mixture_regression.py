import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from kdbench.compression.mixture_regression import (
    Tried,
    agreement,
    choose_mixture,
    fit_linear,
    fit_trees,
    rank_correlation,
)

PRIOR = np.array([0.5, 0.3, 0.2])


def tried(count=200, domains=4, seed=0, noise=0.1):
    generator = np.random.default_rng(seed)
    mixtures = generator.dirichlet(np.ones(domains), count)
    losses = mixtures @ np.arange(domains) - np.log(0.1 + mixtures[:, 0]) + noise * generator.standard_normal(count)
    return Tried(mixtures, losses)


@given(st.integers(2, 6), st.integers(0, 1000))
def test_the_linear_model_is_that_of_any_parametrisation(domains, seed):
    """Shares sum to 1, so without an intercept, or without one of the domains, the same can be said."""
    seen, asked = tried(60, domains, seed), tried(20, domains, seed + 1).mixtures
    found = fit_linear(seen)(asked)
    bare = LinearRegression(fit_intercept=False).fit(*seen).predict(asked)
    short = LinearRegression().fit(seen.mixtures[:, 1:], seen.losses).predict(asked[:, 1:])
    np.testing.assert_allclose(found, bare, atol=1e-8)
    np.testing.assert_allclose(found, short, atol=1e-8)


def test_a_linear_loss_is_found_exactly():
    mixtures = tried().mixtures
    predict = fit_linear(Tried(mixtures, mixtures @ np.array([3.0, 1.0, 4.0, 1.0]) + 5))
    np.testing.assert_allclose(predict(np.eye(4)), [8, 6, 9, 6])


def test_trees_learn_what_is_not_linear_and_stop_by_the_seed():
    seen, unseen = tried(300), tried(100, seed=1)
    trees = fit_trees(seen, 0)
    ranks, error = agreement(trees, unseen)
    linear, linear_error = agreement(fit_linear(seen), unseen)
    assert ranks > linear
    assert error < linear_error
    np.testing.assert_array_equal(trees(unseen.mixtures), fit_trees(seen, 0)(unseen.mixtures))
    assert not np.array_equal(trees(unseen.mixtures), fit_trees(seen, 1)(unseen.mixtures))
    held = fit_trees(seen, 0, held_out=unseen)(unseen.mixtures)
    np.testing.assert_array_equal(held, fit_trees(seen, 1, held_out=unseen)(unseen.mixtures))


def test_a_leaf_may_be_too_large_for_few_mixtures():
    few, asked = tried(20), tried(5, seed=1).mixtures
    assert len(set(fit_trees(few)(asked))) == 1
    assert len(set(fit_trees(few, smallest_leaf=3)(asked))) > 1


def test_the_mixture_is_the_mean_of_the_best_draws():
    drawn = np.random.RandomState(42).dirichlet(PRIOR, 500)
    best = np.sort(drawn[:, 0])[:7]
    found = choose_mixture(lambda mixtures: mixtures[:, 0], PRIOR, draws=500, kept=7)
    assert found.sum() == pytest.approx(1)
    assert found[0] == pytest.approx(best.mean())
    one = choose_mixture(lambda mixtures: mixtures[:, 0], PRIOR, draws=500, kept=1)
    np.testing.assert_array_equal(one, drawn[drawn[:, 0].argmin()])


def test_draws_are_around_the_prior_itself():
    whole = choose_mixture(lambda mixtures: np.zeros(len(mixtures)), PRIOR, draws=20_000, kept=20_000)
    np.testing.assert_allclose(whole, PRIOR, atol=0.01)


def test_ranks():
    assert rank_correlation(np.array([1, 2, 3]), np.array([10, 20, 25])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 2]), np.array([3, 1, 1])) == pytest.approx(-1)
    ranks, error = agreement(lambda mixtures: mixtures[:, 0] + 1, Tried(np.array([[0.0], [2.0]]), np.array([0.0, 2.0])))
    assert (ranks, error) == (pytest.approx(1), 1)
