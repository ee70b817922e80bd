"""Distances of distributions and diversity against scipy, loops and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import pdist
from scipy.stats import wasserstein_distance
from sklearn.metrics.pairwise import rbf_kernel

from kdbench.metrics.densities import (
    FrechetDistance,
    MaximumMeanDiscrepancy,
    ModeCoverage,
    SampleDiversity,
    SlicedWasserstein,
    frechet_distance,
    maximum_mean_discrepancy,
    mean_pairwise_distance,
    sliced_wasserstein,
    vendi_score,
)

seeds, counts = st.integers(0, 10_000), st.integers(2, 30)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- sliced Wasserstein ----


@given(seeds, counts, counts)
def test_in_one_dimension_it_is_that_of_scipy(seed, made, real):
    first, second = normal(seed, made), 1 + 2 * normal(seed + 1, real)
    expected = wasserstein_distance(first, second)
    assert float(sliced_wasserstein(first, second)) == pytest.approx(expected, rel=1e-9)


@given(seeds, counts, st.integers(2, 5))
def test_of_sets_of_one_size_it_compares_sorted_projections(seed, count, size):
    first, second = normal(seed, count, size), normal(seed + 1, count, size)
    drawn = torch.randn(64, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = drawn / drawn.norm(dim=1, keepdim=True)
    expected = ((first @ unit.T).sort(0).values - (second @ unit.T).sort(0).values).abs().mean()
    assert float(sliced_wasserstein(first, second)) == pytest.approx(float(expected), rel=1e-9)


@given(seeds, counts, counts, st.integers(1, 4))
def test_it_is_a_distance_of_sets(seed, made, real, size):
    first, second = normal(seed, made, size), normal(seed + 1, real, size)
    value = sliced_wasserstein(first, second)
    assert float(sliced_wasserstein(second, first)) == pytest.approx(float(value))
    assert float(sliced_wasserstein(first.flip(0).repeat(2, 1), first)) == pytest.approx(0, abs=1e-12)
    assert float(sliced_wasserstein(3 * first, 3 * second)) == pytest.approx(3 * float(value))
    moved = sliced_wasserstein(first + 0.7, first)
    assert 0 < float(moved) <= 0.7 * math.sqrt(size) + 1e-9


# ---- MMD ----


@given(seeds, counts, counts, st.floats(0.3, 3.0))
def test_mmd_is_the_mean_over_pairs(seed, made, real, width):
    first, second = normal(seed, made, 3), 0.5 + normal(seed + 1, real, 3)
    gamma = 1 / (2 * width**2)
    kernels = [rbf_kernel(a, b, gamma) for a, b in ((first, first), (second, second), (first, second))]
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernels[:2]]
    expected = sum(within) - 2 * kernels[2].mean()
    assert float(maximum_mean_discrepancy(first, second, width)) == pytest.approx(expected, abs=1e-10)


def test_mmd_has_the_median_bandwidth_of_the_real_rows():
    first, second = normal(0, 30, 2), normal(1, 40, 2)
    width = float(torch.tensor(pdist(second.numpy())).median())
    assert maximum_mean_discrepancy(first, second) == maximum_mean_discrepancy(first, second, width)


def test_mmd_of_many_rows_is_taken_in_parts():
    first, second = normal(0, 2500, 2), 0.3 + normal(1, 1100, 2)
    gamma, n, m = 0.5, 2500, 1100
    within = [(rbf_kernel(a, a, gamma).sum() - len(a)) / (len(a) * (len(a) - 1)) for a in (first, second)]
    expected = sum(within) - 2 * rbf_kernel(first, second, gamma).sum() / (n * m)
    assert float(maximum_mean_discrepancy(first, second, 1.0)) == pytest.approx(expected, abs=1e-12)


# ---- Frechet ----


@given(seeds, st.integers(1, 6))
def test_frechet_is_that_of_scipys_root(seed, size):
    first, second = normal(seed, 40, size), 0.5 + normal(seed + 1, 30, size) @ normal(seed + 2, size, size)
    metric = FrechetDistance(size)
    metric.update(first[:10], second[:25])
    metric.update(first[10:], second[25:])
    means = [each.mean(0).numpy() for each in (first, second)]
    covariances = [np.cov(each.numpy().T).reshape(size, size) for each in (first, second)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(means[0] - means[1]).sum() + np.trace(sum(covariances) - 2 * root)
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@given(seeds)
def test_frechet_of_gaussians_along_the_axes(seed):
    """``sum (m - m')^2 + (s - s')^2`` where both covariances are diagonal."""
    first, second = normal(seed, 5).abs() + 0.1, normal(seed + 1, 5).abs() + 0.1
    means = normal(seed + 2, 2, 5)
    found = frechet_distance(means, [first.square().diag(), second.square().diag()])
    expected = (means[0] - means[1]).square().sum() + (first - second).square().sum()
    torch.testing.assert_close(found, expected)


def test_frechet_of_equal_and_of_flat_sets():
    rows = normal(0, 50, 4)
    rows[:, 3] = 1.0  # a feature that never moves
    metric = FrechetDistance(4)
    metric.update(rows, rows)
    assert float(metric.compute()) == pytest.approx(0, abs=1e-6)
    metric.reset()
    metric.update(rows[:1], rows)
    assert math.isnan(metric.compute())
    with pytest.raises(ValueError, match=r"rows have 4 features, got \[4, 3\]"):
        metric.update(rows, rows[:, :3])


# ---- modes ----

RING = [[math.cos(math.pi * k / 4), math.sin(math.pi * k / 4)] for k in range(8)]


def test_modes_are_covered_from_a_quarter_of_their_share():
    modes = torch.tensor(RING, dtype=torch.float64)
    metric = ModeCoverage(RING, std=0.08)
    metric.update(modes.repeat(10, 1))
    assert {key: float(value) for key, value in metric.compute().items()} == {"modes": 8, "within": 1}
    metric.reset()
    few = torch.cat([modes[:1].repeat(2, 1), modes[1:2].repeat(3, 1), modes[2:].repeat(12, 1), torch.zeros(3, 2)])
    metric.update(few[:40])
    metric.update(few[40:])
    assert len(few) == 80 and {key: float(value) for key, value in metric.compute().items()} == {
        "modes": 7,
        "within": pytest.approx(77 / 80),
    }


@given(seeds, st.floats(0.01, 0.3), st.floats(1.0, 4.0))
def test_samples_are_at_a_mode_within_so_many_deviations(seed, std, within):
    samples = 1.2 * normal(seed, 60, 2)
    metric = ModeCoverage(RING, std, [1 / 8] * 8, share=0.5, within=within)
    metric.update(samples)
    counted = [0] * 8
    for point in samples.tolist():
        distances = [math.dist(point, mode) for mode in RING]
        if min(distances) <= within * std:
            counted[distances.index(min(distances))] += 1
    found = metric.compute()
    assert float(found["within"]) == pytest.approx(sum(counted) / 60)
    assert int(found["modes"]) == sum(count / 60 >= 0.5 / 8 for count in counted)


def test_weights_of_modes_are_their_promise():
    metric = ModeCoverage([[0.0], [10.0]], 1.0, [0.9, 0.1])
    metric.update(torch.tensor([[0.0]] * 97 + [[10.0]] * 3))
    assert int(metric.compute()["modes"]) == 2
    metric.reset()
    metric.update(torch.tensor([[0.0]] * 98 + [[10.0]] * 2))
    assert int(metric.compute()["modes"]) == 1


# ---- diversity ----


@given(seeds, counts, st.integers(1, 40))
def test_diversity_is_a_mean_over_pairs_and_an_entropy(seed, count, size):
    rows = normal(seed, count, size)
    for ours, theirs in (("cosine", "cosine"), ("euclidean", "euclidean")):
        expected = pdist(rows.numpy(), theirs).mean()
        assert float(mean_pairwise_distance(rows, ours)) == pytest.approx(expected, abs=1e-9)
    unit = rows / rows.norm(dim=1, keepdim=True)
    values = np.linalg.eigvalsh((unit @ unit.T / count).numpy())
    values = values[values > 1e-12]
    assert float(vendi_score(rows)) == pytest.approx(np.exp(-(values * np.log(values)).sum()), rel=1e-6)


@given(seeds, st.integers(2, 9))
def test_the_ends_of_diversity(seed, count):
    alike, apart = normal(seed, 1, 12).repeat(count, 1), torch.eye(12, dtype=torch.float64)[:count]
    assert float(mean_pairwise_distance(alike)) == pytest.approx(0, abs=1e-12)
    assert float(vendi_score(alike)) == pytest.approx(1.0)
    assert float(mean_pairwise_distance(3 * apart)) == pytest.approx(1.0)
    assert float(vendi_score(3 * apart)) == pytest.approx(count)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_diversity_is_the_mean_over_classes(distance):
    rows, classes = normal(0, 30, 1, 4, 4), torch.arange(30) % 4
    metric = SampleDiversity(distance)
    metric.update(rows[:11], classes[:11])
    metric.update(rows[11:], classes[11:])
    groups = [rows[classes == each].flatten(1) for each in range(4)]
    found = metric.compute()
    pairs = sum(float(mean_pairwise_distance(group, distance)) for group in groups) / 4
    assert float(found["pairwise"]) == pytest.approx(pairs)
    assert float(found["vendi"]) == pytest.approx(sum(float(vendi_score(group)) for group in groups) / 4)
    metric.update(rows[:1], torch.tensor([9]))
    assert metric.compute()["pairwise"] == found["pairwise"], "a class of one sample has no pairs"
    metric.reset()
    metric.update(rows)
    assert float(metric.compute()["pairwise"]) == pytest.approx(float(mean_pairwise_distance(rows, distance)))


def test_what_has_no_diversity():
    metric = SampleDiversity()
    metric.update(torch.ones(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="a class with two samples"):
        metric.compute()
    with pytest.raises(ValueError, match="'cosine' or 'euclidean', got 'l2'"):
        SampleDiversity("l2")


# ---- metrics ----


@pytest.mark.parametrize(
    ("metric", "function"),
    [
        (SlicedWasserstein(directions=16, seed=3), lambda a, b: sliced_wasserstein(a, b, 16, 3)),
        (MaximumMeanDiscrepancy(), maximum_mean_discrepancy),
    ],
)
def test_batches_are_gathered(metric, function):
    made, real = normal(0, 20, 1, 2, 2).float(), normal(1, 25, 1, 2, 2).float()
    for part in (slice(0, 12), slice(12, 30)):
        metric.update(made[part], real[part])
    assert torch.equal(metric.compute(), function(made, real))
    with pytest.raises(ValueError, match="rows have 4 numbers so far, got 2"):
        metric.update(made[:, :, :1], real)


def test_nothing_to_compare():
    metric = SlicedWasserstein()
    metric.update(torch.zeros(0, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="no made rows to compare"):
        metric.compute()
