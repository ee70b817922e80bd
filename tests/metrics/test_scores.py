"""Task scores against scikit-learn and scipy, and against themselves over any split into batches."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import accuracy_score, f1_score, log_loss, mean_squared_error

from kdbench.metrics.scores import (
    ClassificationScore,
    MaskedTokenScore,
    RegressionScore,
    average_ranks,
    pearson,
    spearman,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value(metric, *arguments):
    metric.update(*arguments)
    return {name: score.item() for name, score in metric.compute().items()}


label_pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40)


@given(label_pairs)
@settings(deadline=None, max_examples=80)
def test_classification_equals_sklearn_also_with_absent_classes(pairs):
    predicted, gold = torch.tensor(pairs).T
    result = value(ClassificationScore(classes=7), torch.eye(7)[predicted], gold)
    assert result["accuracy"] == pytest.approx(accuracy_score(gold, predicted), abs=1e-12)
    assert result["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro", zero_division=0), abs=1e-12)


def test_macro_f1_is_not_a_mean_over_batches():
    """Two batches, each of one class and wholly right or wrong: their mean F1 is 1/2, that of the corpus is 1/3."""
    metric = ClassificationScore(classes=2)
    metric.update(torch.eye(2)[[0, 0]], torch.tensor([0, 0]))
    metric.update(torch.eye(2)[[0, 0]], torch.tensor([1, 1]))
    assert metric.compute()["macro_f1"].item() == pytest.approx((2 * 2 / 6 + 0) / 2)


def test_ties_go_to_the_lowest_class():
    result = value(ClassificationScore(classes=3), torch.zeros(2, 3), torch.tensor([0, 1]))
    assert result["accuracy"] == 0.5


def test_masked_tokens_equal_sklearn():
    logits, labels = normal(50, 9), torch.arange(50) % 9
    result = value(MaskedTokenScore(), logits, labels)
    expected = log_loss(labels, logits.softmax(-1).numpy(), labels=range(9))
    assert result["cross_entropy"] == pytest.approx(expected, abs=1e-12)
    assert result["perplexity"] == pytest.approx(math.exp(expected), abs=1e-10)
    assert result["accuracy"] == accuracy_score(labels, logits.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_lose_no_digits_in_the_softmax(dtype):
    logits, labels = (5 * normal(200, 50)).to(dtype), torch.arange(200) % 50
    ours = value(MaskedTokenScore(), logits, labels)["cross_entropy"]
    assert ours == pytest.approx(value(MaskedTokenScore(), logits.double(), labels)["cross_entropy"], rel=1e-6)


def test_uniform_logits_have_the_perplexity_of_the_vocabulary():
    assert value(MaskedTokenScore(), torch.zeros(4, 11), torch.arange(4))["perplexity"] == pytest.approx(11, rel=1e-6)


def test_a_cast_of_the_module_does_not_coarsen_the_sums():
    logits, labels = normal(600, 5), torch.arange(600) % 5
    metric = MaskedTokenScore().to(torch.bfloat16)
    for row, label in zip(logits.split(1), labels.split(1), strict=True):
        metric.update(row, label)
    at_once = value(MaskedTokenScore(), logits, labels)
    assert {name: score.item() for name, score in metric.compute().items()} == pytest.approx(at_once, rel=1e-12)


numbers = st.lists(st.tuples(st.integers(-5, 5), st.floats(-100, 100, width=32)), min_size=3, max_size=20).filter(
    lambda pairs: len({a for a, _ in pairs}) > 1 and np.ptp([b for _, b in pairs]) > 1e-3
)


@given(numbers)
@settings(deadline=None, max_examples=60)
def test_regression_equals_scipy_and_sklearn(pairs):
    predictions, targets = torch.tensor(pairs, dtype=torch.float64).T
    result = value(RegressionScore(), predictions, targets)
    assert result["pearson"] == pytest.approx(pearsonr(predictions, targets)[0], abs=1e-9)
    assert result["spearman"] == pytest.approx(spearmanr(predictions, targets)[0], abs=1e-12)
    assert result["mse"] == pytest.approx(mean_squared_error(targets, predictions), rel=1e-12)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_ranks_equal_scipy(values):
    assert average_ranks(torch.tensor(values, dtype=torch.float64)).tolist() == rankdata(values).tolist()


def test_correlation_survives_extreme_scales():
    values = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert pearson(values * 1e300, values * 1e-300).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_correlations_of_nan_and_of_constants(correlation):
    values = torch.tensor([1.0, 2.0, 3.0])
    assert correlation(values, torch.tensor([1.0, math.nan, 3.0])).isnan()
    for constant in (torch.full((3,), 0.1), torch.zeros(3)):
        with pytest.warns(UserWarning, match="constant"):
            assert correlation(constant, values).isnan()
    with pytest.warns(UserWarning, match="1 example"):
        assert correlation(values[:1], values[:1]).isnan()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 2))
@settings(deadline=None, max_examples=30)
def test_batches_and_merged_states_equal_one_call(sizes):
    count = sum(sizes)
    logits, labels = normal(count, 4), torch.arange(count) % 4
    for make, first, second in (
        (lambda: ClassificationScore(classes=4), logits, labels),
        (MaskedTokenScore, logits, labels),
        (RegressionScore, logits[:, 0], logits[:, 1]),
    ):
        batched, merged = make(), make()
        for part in zip(first.split(sizes), second.split(sizes), strict=True):
            batched.update(*part)
            other = make()
            other.update(*part)
            merged.merge_state(other)
        merged._update_count = 1  # merge_state does not count as an update, about which compute would warn
        at_once = value(make(), first, second)
        assert {name: score.item() for name, score in batched.compute().items()} == pytest.approx(at_once, rel=1e-12)
        assert {name: score.item() for name, score in merged.compute().items()} == pytest.approx(at_once, rel=1e-12)


def test_stored_values_are_copies():
    predictions, targets = torch.arange(4.0).double(), torch.tensor([0.0, 1.0, 2.0, 5.0]).double()
    metric = RegressionScore()
    metric.update(predictions, targets)
    predictions.zero_()
    assert metric.compute()["mse"].item() == 1.0


def test_forward_gives_the_batch_and_compute_the_corpus():
    metric = ClassificationScore(classes=2)
    assert metric(torch.eye(2), torch.tensor([0, 1]))["accuracy"].item() == 1.0
    assert metric(torch.eye(2), torch.tensor([1, 0]))["accuracy"].item() == 0.0
    assert metric.compute()["accuracy"].item() == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ClassificationScore(classes=0),
        lambda: ClassificationScore(classes=3).update(torch.zeros(2, 4), torch.zeros(2)),
        lambda: ClassificationScore(classes=3).update(torch.zeros(2, 3), torch.tensor([0, 3])),
        lambda: ClassificationScore(classes=3).update(torch.zeros(2, 3), torch.tensor([0])),
        lambda: ClassificationScore(classes=3).update(torch.full((2, 3), math.nan), torch.tensor([0, 1])),
        lambda: MaskedTokenScore().update(torch.zeros(2, 3), torch.tensor([0, -100])),
        lambda: MaskedTokenScore().update(torch.zeros(1, 2, 3), torch.zeros(1, 2)),
        lambda: RegressionScore().update(torch.zeros(2, 1), torch.zeros(2, 1)),
    ],
)
def test_wrong_use_is_named(wrong):
    with pytest.raises(ValueError, match=r"Expected|Labels must|NaN|at least one class"):
        wrong()
