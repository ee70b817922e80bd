"""Centred kernel alignment: its invariants, the unbiased estimate term by term, batches, and what it refuses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.metrics.similarity import MinibatchCKA, linear_cka, unbiased_hsic

seeds = st.integers(0, 10_000)


def drawn(seed, rows=12, widths=(4, 5)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator, dtype=torch.float64) for width in widths]


def rotation(seed, width):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q


@given(seeds, st.floats(0.01, 100), st.floats(-10, 10))
def test_it_does_not_see_rotation_scale_and_shift(seed, scale, shift):
    x, y = drawn(seed)
    turned = scale * x @ rotation(seed, 4) + shift
    torch.testing.assert_close(linear_cka(x, turned), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(linear_cka(turned, y), linear_cka(x, y))
    assert 0 <= float(linear_cka(x, y)) <= 1
    torch.testing.assert_close(linear_cka(y, x), linear_cka(x, y))


@given(seeds)
def test_of_two_columns_it_is_the_squared_correlation(seed):
    x, y = (each[:, :1] for each in drawn(seed))
    correlation = torch.corrcoef(torch.cat([x, y], 1).T)[0, 1]
    torch.testing.assert_close(linear_cka(x, y), correlation.square())


def test_it_is_the_biased_estimates_ratio():
    """``HSIC = tr(K H L H) / (N - 1)^2``: the kernels in the place of the columns."""
    x, y = drawn(1)
    h = torch.eye(12, dtype=torch.float64) - 1 / 12
    k, m = h @ (x @ x.T) @ h, h @ (y @ y.T) @ h
    torch.testing.assert_close(linear_cka(x, y), (k @ m).trace() / ((k @ k).trace() * (m @ m).trace()).sqrt())


@given(seeds, st.integers(4, 9))
def test_the_unbiased_estimate_is_its_formula(seed, rows):
    x, y = drawn(seed, rows)
    k, m = (x @ x.T).fill_diagonal_(0), (y @ y.T).fill_diagonal_(0)
    one = torch.ones(rows, dtype=torch.float64)
    middle = (one @ k @ one) * (one @ m @ one) / ((rows - 1) * (rows - 2))
    expected = ((k @ m).trace() + middle - 2 * (one @ k @ m @ one) / (rows - 2)) / (rows * (rows - 3))
    torch.testing.assert_close(unbiased_hsic(x, y), expected)


def test_the_unbiased_estimate_has_the_mean_of_all_examples_in_batches_too():
    """Over all 4-element subsets of 7 examples the mean is the estimate from the 7."""
    x, y = drawn(2, rows=7)
    parts = [unbiased_hsic(x[chosen], y[chosen]) for chosen in torch.combinations(torch.arange(7), 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), unbiased_hsic(x, y))


def test_independent_features_have_none():
    x, y = drawn(3, rows=4000)
    metric = MinibatchCKA(1, 1)
    for place in range(0, 4000, 100):
        metric.update([x[place : place + 100]], [y[place : place + 100]])
    assert abs(float(metric.compute())) < 0.01
    assert float(linear_cka(x[:20], y[:20])) > 0.1, "which the biased estimate of few examples cannot tell"


@given(seeds)
def test_in_batches_the_estimates_are_averaged_before_the_ratio(seed):
    first, second = drawn(seed, widths=(4, 6)), drawn(seed + 1, widths=(3, 5, 2))
    metric = MinibatchCKA(2, 3)
    for part in (slice(0, 6), slice(6, 12)):
        metric.update([each[part] for each in first], [each[part] for each in second])

    def mean(x, y):
        return (unbiased_hsic(x[:6], y[:6]) + unbiased_hsic(x[6:], y[6:])) / 2

    found = metric.compute()
    assert found.shape == (2, 3)
    for i, x in enumerate(first):
        for j, y in enumerate(second):
            torch.testing.assert_close(found[i, j], mean(x, y) / (mean(x, x) * mean(y, y)).sqrt(), equal_nan=True)


def test_features_of_any_shape_are_vectors_and_single_precision_is_widened():
    generator = torch.Generator().manual_seed(4)
    maps, tokens = torch.randn(8, 3, 4, 4, generator=generator), torch.randn(8, 5, 6, generator=generator)
    metric = MinibatchCKA(1, 1)
    metric.update([maps], [tokens])
    again = MinibatchCKA(1, 1).to(torch.bfloat16)
    again.update([maps.flatten(1).double()], [tokens.flatten(1).double()])
    assert metric.compute().dtype == again.compute().dtype == torch.float64
    torch.testing.assert_close(metric.compute(), again.compute())


def test_what_does_not_vary_has_no_alignment():
    x, _ = drawn(5)
    assert linear_cka(x, torch.ones(12, 3)).isnan()
    assert MinibatchCKA(1, 1).compute().isnan().all()


def test_what_is_refused():
    x, y = drawn(6)
    with pytest.raises(ValueError, match=r"same examples in all layers, not \[11, 12\]"):
        linear_cka(x, y[:11])
    with pytest.raises(ValueError, match="at least 4 examples, not 3"):
        unbiased_hsic(x[:3], y[:3])
    with pytest.raises(ValueError, match=r"Expected \(1, 2\) layers, not \(1, 1\)"):
        MinibatchCKA(1, 2).update([x], [y])
    with pytest.raises(ValueError, match="at least one layer each"):
        MinibatchCKA(0, 1)
