import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from kdbench.data.cards import CARDS
from kdbench.data.generators.density_mixtures import DensityMixture
from kdbench.data.registry import load
from kdbench.metrics.densities import ModeCoverage, sliced_wasserstein
from kdbench.models.exact_denoiser import ExactDenoiser, ExactDenoiserConfig

RING = DensityMixture.ring()


def points(split, seed=0, count=2000):
    return torch.tensor([row["point"] for row in DensityMixture.ring(seed=seed).rows(split, count)])


def test_the_ring():
    assert RING.means.shape == (8, 2) and RING.std == 0.08
    np.testing.assert_allclose(np.linalg.norm(RING.means, axis=1), 1.0)
    neighbours = np.linalg.norm(RING.means - np.roll(RING.means, 1, axis=0), axis=1)
    np.testing.assert_allclose(neighbours, 2 * math.sin(math.pi / 8))
    assert RING.deviation == pytest.approx(math.sqrt(0.5 + 0.08**2))


def test_points_are_gaussian_around_modes_of_their_weights():
    mixture = DensityMixture([[-1.0], [0.5], [1.5]], 0.2, [5, 3, 2])
    rows = mixture.rows("test", 6000)
    modes = np.array([int(row["mode"][1:]) for row in rows])
    noise = np.array([row["point"][0] for row in rows]) - mixture.means[modes, 0]
    assert chisquare(np.bincount(modes), 6000 * mixture.weights).pvalue > 0.01
    assert kstest(noise / 0.2, "norm").pvalue > 0.01
    spread = np.array([row["point"][0] for row in rows])
    assert mixture.deviation == pytest.approx(spread.std(), rel=0.03)


def test_coordinates_are_independent():
    drawn = (
        points("train").numpy() - RING.means[[int(row["mode"][1:]) for row in RING.rows("train", 2000)]]
    ) / RING.std
    np.testing.assert_allclose(np.cov(drawn.T), np.eye(2), atol=0.08)


@given(st.integers(0, 5), st.sampled_from(["train", "validation", "test"]), st.integers(1, 8))
def test_a_row_depends_on_seed_split_and_number_alone(seed, split, count):
    rows = DensityMixture.ring(seed=seed).rows(split, 8)
    assert DensityMixture.ring(seed=seed).rows(split, count) == rows[:count]
    assert rows != DensityMixture.ring(seed=seed + 1).rows(split, 8)


def test_the_exact_denoiser_knows_its_density():
    """The mean log-likelihood of many points is the negative entropy: that of a mode, less the choice of one of eight."""
    config = ExactDenoiserConfig(RING.means.tolist(), RING.std, RING.weights.tolist())
    found = ExactDenoiser(config).log_density(points("train", count=20_000)).mean()
    entropy = math.log(2 * math.pi * math.e * RING.std**2) + math.log(8)
    assert float(found) == pytest.approx(-entropy, abs=0.02)


def test_the_registered_rows_and_their_floor():
    rows = {split: load("synthetic/ring", "embedded", split) for split in ("train", "validation", "test")}
    assert [len(each) for each in rows.values()] == [20_000, 2000, 2000]
    test, fresh = (torch.tensor([row["point"] for row in rows[split]]) for split in ("test", "validation"))
    floor = float(sliced_wasserstein(fresh, test))
    assert f"distance of {floor:.3f} from the test points" in CARDS["synthetic/ring"].embedded
    metric = ModeCoverage(RING.means.tolist(), RING.std)
    metric.update(test)
    assert int(metric.compute()["modes"]) == 8 and float(metric.compute()["within"]) > 0.998


def test_numbers_that_make_no_mixture():
    for wrong in (([0.0, 1.0], 1.0), ([[0.0]], 0.0), ([[0.0]], 1.0, [0.0]), ([[0.0]], 1.0, [1.0, 1.0])):
        with pytest.raises(ValueError, match=r"a mixture has means \[K\]\[D\]"):
            DensityMixture(*wrong)
