from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from kdbench.data.cards import CARDS
from kdbench.data.generators.gaussian_classes import CLASSES, INPUTS, GaussianTree
from kdbench.data.registry import load

TREE = GaussianTree()


def test_the_posterior_is_bayes_rule():
    features = np.array([row["features"] for row in TREE.rows("test", 50)])
    densities = np.array([multivariate_normal(mean, np.eye(INPUTS)).pdf(features) for mean in TREE.means]).T
    posterior = np.exp(TREE.log_posterior(features))
    np.testing.assert_allclose(posterior, densities / densities.sum(-1, keepdims=True), rtol=1e-8)


def test_the_posterior_of_far_points_does_not_underflow():
    assert np.isfinite(TREE.log_posterior(np.full((1, INPUTS), 1e3))).all()


def test_samples_are_gaussians_around_equally_frequent_classes():
    rows = TREE.rows("test", 4000)
    classes = np.array([int(row["label"][1:]) for row in rows])
    noise = np.array([row["features"] for row in rows]) - TREE.means[classes]
    np.testing.assert_allclose(np.bincount(classes, minlength=CLASSES) / 4000, 1 / CLASSES, atol=0.012)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.07)
    np.testing.assert_allclose(np.cov(noise.T), np.eye(INPUTS), atol=0.09)


def test_means_lie_on_a_tree():
    """Classes of one branch are nearer to one another than those of different branches are."""
    distances = np.linalg.norm(TREE.means[:, None] - TREE.means, axis=-1)
    together = np.equal.outer(np.arange(CLASSES) // 5, np.arange(CLASSES) // 5)
    apart = np.median(distances[~together])
    assert distances[together].max() < 0.8 * apart and distances[together & ~np.eye(CLASSES, dtype=bool)].min() > 0


def test_a_tenth_of_the_training_labels_is_wrong_and_no_other():
    rows = {split: load("synthetic/gaussian_tree", "embedded", split) for split in ("train", "validation", "test")}
    for split in ("validation", "test"):
        assert all(row["label"] == row["clean"] for row in rows[split])
    wrong = [row for row in TREE.rows("train", 6000) if row["label"] != row["clean"]]
    assert len(wrong) / 6000 == pytest.approx(0.1, abs=0.012)
    steps = Counter((int(row["label"][1:]) - int(row["clean"][1:])) % CLASSES for row in wrong)
    assert set(steps) == set(range(1, CLASSES)) and max(steps.values()) < 2.5 * min(steps.values())
    assert all(row["label"] == row["clean"] for row in GaussianTree(noise=0.0).rows("train", 100))
    with pytest.raises(ValueError, match="noise is a share"):
        GaussianTree(noise=1.0)


@given(st.integers(0, 5), st.sampled_from(["train", "validation", "test"]), st.integers(1, 8))
def test_a_row_depends_on_seed_split_and_number_alone(seed, split, count):
    rows = GaussianTree(seed).rows(split, 8)
    assert GaussianTree(seed).rows(split, count) == rows[:count]
    assert len({tuple(row["features"]) for row in rows}) == 8


def test_seeds_and_splits_differ():
    assert not np.allclose(GaussianTree(1).means, TREE.means)
    firsts = [TREE.rows(split, 1)[0]["features"] for split in ("train", "validation", "test")]
    assert len({tuple(each) for each in firsts}) == 3


def test_best_scores():
    rows = load("synthetic/gaussian_tree", "embedded", "test")
    scores = TREE.best_scores(rows)
    assert f"tells {100 * scores['accuracy']:.1f}% of the test classes" in CARDS["synthetic/gaussian_tree"].embedded
    # what is expected of Bayes' rule is what is measured
    posterior = np.exp(TREE.log_posterior(np.array([row["features"] for row in rows])))
    assert scores["accuracy"] == pytest.approx(posterior.max(-1).mean(), abs=0.015)
    entropy = -(posterior * np.log(np.maximum(posterior, 1e-300))).sum(-1).mean()
    assert scores["cross_entropy"] == pytest.approx(entropy, abs=0.03)
    assert scores["branch_accuracy"] > 0.95


def test_learning_from_the_noisy_rows_comes_near_but_not_to_the_best():
    rows = {split: load("synthetic/gaussian_tree", "embedded", split) for split in ("train", "test")}
    features = {split: [row["features"] for row in found] for split, found in rows.items()}
    labels = {split: [row["label"] for row in found] for split, found in rows.items()}
    learnt = (
        LinearDiscriminantAnalysis().fit(features["train"], labels["train"]).score(features["test"], labels["test"])
    )
    assert 0.7 < learnt < TREE.best_scores(rows["test"])["accuracy"] - 0.02
