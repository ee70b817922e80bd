"""Relations of the examples of a batch: oracles, loops and scipy, and what they do not see."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch import nn

from kdbench.losses import batch as b


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MAPS = g((4, 3, 4, 4), 0.31, 0.2), g((4, 5, 4, 4), 0.23, 0.5)
VECTORS = g((4, 6), 0.31, 0.2), g((4, 8), 0.23, 0.5)
seeds = st.integers(0, 10_000)
OF_BOTH = [b.BatchGramDistance(), b.SimilarityDivergence(), b.DistanceRelation(), b.AngleRelation()]


def test_oracles():
    assert float(b.batch_gram_distance(*MAPS)) == pytest.approx(0.470766610, abs=5e-10)
    assert float(b.similarity_divergence(*VECTORS)) == pytest.approx(0.00591768968, abs=5e-12)
    distance, angle = b.DistanceRelation()(*VECTORS), b.AngleRelation()(*VECTORS)
    assert float(distance) == pytest.approx(0.0042863375, abs=5e-11)
    assert float(angle) == pytest.approx(0.00384183945, abs=5e-12)
    assert float(25 * distance + 50 * angle) == pytest.approx(0.299250410, abs=5e-10)


@given(seeds)
def test_the_gram_distance_by_numpy(seed):
    student, teacher = draw(seed, 5, 3, 2, 2), draw(seed + 1, 5, 4)
    grams = []
    for each in (student, teacher):
        flat = each.numpy().reshape(5, -1)
        gram = flat @ flat.T
        grams.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    expected = np.linalg.norm(grams[0] - grams[1], "fro") ** 2 / 25
    assert float(b.batch_gram_distance(student, teacher)) == pytest.approx(expected, rel=1e-9)


@given(seeds)
def test_the_similarity_divergence_by_scipys_cosines(seed):
    student, teacher = draw(seed, 5, 3), draw(seed + 1, 5, 4)
    eps, shares = 1e-7, []
    for each in (student, teacher):
        lengths = np.linalg.norm(each, axis=1)
        shorter = lengths / (lengths + eps)
        similarity = (1 + (1 - cdist(each, each, "cosine")) * np.outer(shorter, shorter)) / 2
        shares.append(similarity / similarity.sum(1, keepdims=True))
    expected = np.mean(shares[1] * np.log((shares[1] + eps) / (shares[0] + eps)))
    assert float(b.similarity_divergence(student, teacher)) == pytest.approx(expected, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("loss", OF_BOTH, ids=lambda each: type(each).__name__)
@given(seed=seeds, scale=st.floats(0.1, 10.0))
def test_a_student_that_is_the_teacher_turned_scaled_and_of_another_shape(loss, seed, scale):
    teacher = draw(seed, 6, 12)
    turn = torch.linalg.qr(draw(seed + 1, 12, 12)).Q
    student = (scale * teacher @ turn).reshape(6, 3, 2, 2)
    assert float(loss(teacher, teacher)) == pytest.approx(0, abs=1e-12)
    assert float(loss(student, teacher)) == pytest.approx(0, abs=1e-9)
    other = draw(seed + 2, 6, 7)
    value = float(loss(other, teacher))
    assert value > 1e-6
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    assert float(loss(other[order], teacher[order])) == pytest.approx(value), "the order of the batch does not matter"


@pytest.mark.parametrize("loss", OF_BOTH, ids=lambda each: type(each).__name__)
def test_gradients(loss):
    student, teacher = VECTORS[0].clone().requires_grad_(), VECTORS[1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, VECTORS[1]), student)
    loss(student, teacher).backward()
    assert teacher.grad is None
    twins = VECTORS[0][[0, 0, 1, 1]].clone().requires_grad_()
    loss(torch.cat([twins, 0 * twins[:1]]), draw(0, 5, 3)).backward()
    assert twins.grad.isfinite().all(), "two examples in one place, and one in the origin"


@given(seeds)
def test_congruence_by_a_loop_over_neighbours(seed):
    student, teacher = draw(seed, 5, 4), draw(seed + 1, 5, 4)
    apart = np.abs((student - teacher).numpy())
    expected = np.mean([apart[i] @ apart[i + 1] for i in range(4)])
    assert float(b.correlation_congruence(student, teacher)) == pytest.approx(expected)
    assert float(b.correlation_congruence(teacher, teacher)) == 0
    assert float(b.correlation_congruence(student[:1], teacher[:1])) == 0


def test_congruence_compares_two_learnt_maps():
    loss = b.CorrelationCongruence(width=3)
    student, teacher = MAPS[0].float(), VECTORS[1].float().requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert {name: tuple(each.shape) for name, each in loss.named_parameters()} == {
        "student_side.weight": (3, 48),
        "student_side.bias": (3,),
        "teacher_side.weight": (3, 8),
        "teacher_side.bias": (3,),
    }
    assert all(each.grad.abs().sum() > 0 for each in loss.parameters())
    assert teacher.grad is None
    ours, theirs = loss.student_side(student.flatten(1)), loss.teacher_side(teacher)
    torch.testing.assert_close(value, b.correlation_congruence(ours, theirs))


def test_all_say_that_they_compare_the_rows_of_a_batch():
    losses = [each for each in vars(b).values() if isinstance(each, type) and issubclass(each, nn.Module)]
    assert len(losses) == 6
    assert all(each.compares_rows and not each.takes_rows for each in losses)


def test_what_does_not_fit():
    for loss in (*OF_BOTH, b.CorrelationCongruence()):
        for student in (VECTORS[0][:3], VECTORS[0][0]):
            with pytest.raises(ValueError, match="must have the same examples"):
                loss(student, VECTORS[1])
    with pytest.raises(ValueError, match="must have the same shape"):
        b.correlation_congruence(*VECTORS)
