"""Correlations of distributions: oracles, scipy's coefficient, and what they do not see."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import pearsonr

from kdbench.losses.correlation import CorrelationDistance, correlation_distance, pearson_distance


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


STUDENT, TEACHER = g((4, 6), 0.37, 0.1, 3), g((4, 6), 0.53, 0.7, 4)
seeds = st.integers(0, 10_000)


def draw(seed, rows=5, classes=7, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)


def test_oracles():
    assert float(CorrelationDistance()(STUDENT, TEACHER)) == pytest.approx(2.97748515, abs=5e-9)
    assert float(CorrelationDistance(4.0)(STUDENT, TEACHER)) == pytest.approx(48.8752417, abs=5e-8)


@given(seeds, st.floats(0.5, 8.0), st.floats(0, 3), st.floats(0, 3))
def test_it_is_one_less_scipys_coefficient_of_rows_and_of_columns(seed, temperature, inter, intra):
    student, teacher = draw(seed, scale=1.0)
    ours, theirs = (softmax(each.numpy() / temperature, 1) for each in (student, teacher))
    rows = [1 - pearsonr(*pair).statistic for pair in zip(ours, theirs, strict=True)]
    columns = [1 - pearsonr(*pair).statistic for pair in zip(ours.T, theirs.T, strict=True)]
    expected = temperature**2 * (inter * sum(rows) / len(rows) + intra * sum(columns) / len(columns))
    value = correlation_distance(student, teacher, temperature, inter, intra)
    assert float(value) == pytest.approx(expected, rel=1e-4, abs=1e-6), "the denominator is raised by 1e-8"


@given(seeds, st.floats(-5, 5), st.floats(0.1, 10))
def test_a_row_is_not_seen_to_be_moved_or_stretched(seed, shift, scale):
    student, teacher = (each.softmax(-1) for each in draw(seed, scale=1.0))
    value = pearson_distance(student, teacher, "none")
    assert ((value >= 0) & (value <= 2)).all()
    torch.testing.assert_close(pearson_distance(scale * student + shift, teacher, "none"), value, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        pearson_distance(-student, student, "none"), torch.full((5,), 2.0).double(), rtol=0, atol=1e-4
    )


@given(seeds, st.floats(-50, 50))
def test_zero_at_equality_and_blind_to_a_constant_in_a_row_of_logits(seed, constant):
    student, teacher = draw(seed, scale=1.0)
    loss = CorrelationDistance(2.0)
    assert float(loss(teacher, teacher)) == pytest.approx(0, abs=1e-4), "the denominator is raised by 1e-8"
    torch.testing.assert_close(loss(student + constant, teacher - constant), loss(student, teacher))


def test_one_row_and_rows_without_spread_have_a_value_and_a_gradient():
    for logits in (STUDENT[:1], torch.zeros(4, 6, dtype=torch.float64)):
        student = logits.clone().requires_grad_()
        value = correlation_distance(student, TEACHER[: len(logits)])
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()
    assert float(pearson_distance(STUDENT[:1].mT, TEACHER[:1].mT)) == 1, "one example has no correlation over examples"


def test_gradients():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: correlation_distance(z, TEACHER, 2.0), student)
    correlation_distance(student, teacher).backward()
    assert teacher.grad is None


def test_it_compares_the_rows_of_a_batch_and_says_so():
    assert CorrelationDistance.compares_rows
    halves = [float(correlation_distance(STUDENT[part], TEACHER[part])) for part in (slice(2), slice(2, 4))]
    assert sum(halves) / 2 != pytest.approx(float(correlation_distance(STUDENT, TEACHER)), abs=1e-2)
    alone = [float(correlation_distance(STUDENT[part], TEACHER[part], intra=0.0)) for part in (slice(2), slice(2, 4))]
    assert sum(alone) / 2 == pytest.approx(float(correlation_distance(STUDENT, TEACHER, intra=0.0)))


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="must have the same shape"):
        correlation_distance(STUDENT, TEACHER[:, :5])
    with pytest.raises(ValueError, match="temperature must be positive, got -1"):
        CorrelationDistance(-1.0)
