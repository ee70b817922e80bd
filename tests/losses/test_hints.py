"""Hints: the patient loss's oracle, and what cosine distance and squared errors obey."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from torch.nn import functional

from kdbench.losses import hints


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


STUDENT, TEACHER = g((4, 6), 0.29, 2), g((4, 6), 0.41, 3)
LOSSES = [hints.CosineDistance(), hints.MeanSquaredError(), hints.MeanSquaredError(half=True), hints.NormalisedMSE()]
scales = st.lists(st.floats(0.01, 100), min_size=4, max_size=4)


def test_patient_loss_oracle():
    teacher, student = g((2, 3, 5), 0.53, 1), g((2, 3, 5), 0.37, 0)
    value = hints.normalised_mse(student.flatten(0, 1), teacher.flatten(0, 1))
    assert float(value) == pytest.approx(0.514136395, abs=1e-9)


def test_cosine_distance_equals_scipys():
    expected = [cosine(s, t) for s, t in zip(STUDENT.numpy(), TEACHER.numpy(), strict=True)]
    assert hints.cosine_distance(STUDENT, TEACHER, "none").tolist() == pytest.approx(expected)
    assert float(hints.cosine_distance(STUDENT, TEACHER)) == pytest.approx(sum(expected) / 4)
    assert float(hints.cosine_distance(STUDENT, -STUDENT)) == pytest.approx(2)


def test_squared_error_equals_torchs_for_rows_of_any_shape():
    for shape in ((24,), (4, 6), (4, 3, 2)):
        student, teacher = STUDENT.reshape(shape), TEACHER.reshape(shape)
        expected = functional.mse_loss(student, teacher)
        torch.testing.assert_close(hints.mean_squared_error(student, teacher), expected)
        torch.testing.assert_close(hints.mean_squared_error(student, teacher, half=True), expected / 2)
        assert hints.mean_squared_error(student, teacher, reduction="none").shape == shape[:1]


def test_masked_squared_error_is_that_of_the_real_positions():
    student, teacher = g((2, 3, 4), 0.29, 2), g((2, 3, 4), 0.41, 3)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    expected = functional.mse_loss(student[mask.bool()], teacher[mask.bool()])
    student[mask == 0] = torch.nan
    torch.testing.assert_close(hints.masked_mse(student, teacher, mask), expected)
    student.requires_grad_()
    nothing = hints.masked_mse(student, teacher, torch.zeros(2, 3))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert (student.grad == 0).all()


@given(scales)
def test_directions_do_not_see_positive_scales(factors):
    factor = torch.tensor(factors, dtype=torch.float64)[:, None]
    for function in (hints.cosine_distance, hints.normalised_mse):
        plain = function(STUDENT, TEACHER, "none")
        torch.testing.assert_close(function(factor * STUDENT, TEACHER, "none"), plain)
        torch.testing.assert_close(function(STUDENT, factor * TEACHER, "none"), plain)
        assert float(function(factor * STUDENT, STUDENT)) == pytest.approx(0, abs=1e-12)


def test_the_patient_loss_is_a_share_of_the_cosine_distance():
    """``|u - v|^2 = 2 (1 - cos)`` for unit vectors, here divided by the H elements."""
    expected = 2 / 6 * hints.cosine_distance(STUDENT, TEACHER, "none")
    torch.testing.assert_close(hints.normalised_mse(STUDENT, TEACHER, "none"), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_at_equality_exact_gradients_and_none_for_the_teacher(loss):
    assert float(loss(TEACHER.clone(), TEACHER)) == pytest.approx(0, abs=1e-12)
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda h: loss(h, TEACHER), student)
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_a_state_of_zeros_has_no_direction_and_no_nan(loss):
    student = torch.zeros(4, 6, requires_grad=True)
    value = loss(student, TEACHER.float())
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(loss, dtype):
    student, teacher = (300 * STUDENT).to(dtype), (-300 * TEACHER).to(dtype)  # squares beyond float16
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float()))


@pytest.mark.parametrize("loss", LOSSES)
def test_states_of_other_shapes_are_refused(loss):
    for other in (TEACHER[:1], TEACHER[:, :1], TEACHER[0]):
        with pytest.raises(ValueError, match="must have the same shape"):
            loss(STUDENT, other)
