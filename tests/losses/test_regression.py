"""The cosine of two vectors against a score."""

import math

import pytest
import torch
from sklearn.metrics.pairwise import paired_cosine_distances

from kdbench.losses.regression import CosineRegression, PairCosineMSE, cosine_regression


def g(shape, a, phase):
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase).reshape(shape)


LEFT, RIGHT, SCORES = g((4, 6), 0.29, 2), g((4, 6), 0.41, 3), torch.tensor([5.0, 0.0, 2.5, 4.2], dtype=torch.float64)


def test_it_is_the_squared_error_of_the_cosine():
    cosines = 1 - paired_cosine_distances(LEFT.numpy(), RIGHT.numpy())
    expected = ((cosines - SCORES.numpy() / 5) ** 2).mean()
    assert float(cosine_regression(LEFT, RIGHT, SCORES / 5)) == pytest.approx(expected)
    assert float(CosineRegression()((LEFT, RIGHT), SCORES)) == pytest.approx(expected)
    assert float(CosineRegression(10.0)([LEFT, RIGHT], 2 * SCORES)) == pytest.approx(expected)


def test_parallel_pairs_have_the_highest_score():
    assert float(CosineRegression()((LEFT, 3 * LEFT), torch.full((4,), 5.0))) == pytest.approx(0, abs=1e-12)
    assert float(CosineRegression()((LEFT, -LEFT), torch.zeros(4))) == pytest.approx(1)


def test_both_vectors_get_the_gradient_of_the_value():
    left, right = LEFT.clone().requires_grad_(), RIGHT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda u, v: CosineRegression()((u, v), SCORES), (left, right))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    assert CosineRegression()((LEFT.to(dtype), RIGHT.to(dtype)), SCORES.float()).dtype == torch.float32


def test_no_pairs_give_zero_with_a_gradient():
    left = torch.zeros(0, 6, requires_grad=True)
    value = CosineRegression()((left, torch.zeros(0, 6)), torch.zeros(0))
    value.backward()
    assert float(value.detach()) == 0
    assert left.grad is not None


@pytest.mark.parametrize(
    ("right", "scores"), [(RIGHT, SCORES[:, None]), (RIGHT, SCORES[:1]), (RIGHT[:1], SCORES), (RIGHT[:, :1], SCORES)]
)
def test_shapes_that_would_broadcast_are_refused(right, scores):
    with pytest.raises(ValueError, match="one target each"):
        CosineRegression()((LEFT, right), scores)


@pytest.mark.parametrize("scale", [0.0, -5.0, math.nan])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be positive"):
        CosineRegression(scale)


def test_the_teachers_cosine_takes_the_place_of_the_score():
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    first, second = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64).requires_grad_()
    found = PairCosineMSE()([u, v], [first, second])
    cosines = [
        [float(a @ b / (a.norm() * b.norm())) for a, b in zip(*(each.detach() for each in pair), strict=True)]
        for pair in ((u, v), (first, second))
    ]
    expected = sum((ours - theirs) ** 2 for ours, theirs in zip(*cosines, strict=True)) / 5
    assert float(found.detach()) == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.grad(found, first, allow_unused=True) == (None,), "the teacher learns nothing"
    assert float(PairCosineMSE()([u, v], [u, v]).detach()) == pytest.approx(0, abs=1e-15)
