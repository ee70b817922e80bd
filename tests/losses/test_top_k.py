import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from kdbench.losses.divergences import jensen_shannon, kl_divergence, soft_cross_entropy, total_variation
from kdbench.losses.top_k import TopK, lump_logits, tail_error_bound, tail_mass, top_k


def logits(seed, rows=4, classes=9, scale=3.0):
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


shapes = st.tuples(st.integers(0, 10_000), st.integers(1, 8), st.floats(0.5, 8.0))


@given(shapes)
def test_the_kept_distribution_is_the_teachers_with_its_tail_taken_together(given_):
    seed, k, temperature = given_
    teacher = logits(seed)
    kept = top_k(teacher, k, temperature)
    p = softmax(teacher.numpy() / temperature, axis=-1)
    q = softmax(kept.logits.numpy() / temperature, axis=-1)
    np.testing.assert_allclose(q[:, :-1], np.take_along_axis(p, kept.classes.numpy(), -1), rtol=1e-12)
    np.testing.assert_allclose(q[:, -1], 1 - q[:, :-1].sum(-1), atol=1e-12)
    np.testing.assert_allclose(tail_mass(kept, temperature), q[:, -1], rtol=1e-12)
    assert np.sort(p, -1)[:, -k:].sum(-1) == pytest.approx(q[:, :-1].sum(-1))


@given(shapes)
def test_the_forward_kl_is_never_too_large_and_its_error_is_bounded(given_):
    seed, k, temperature = given_
    student, teacher = logits(seed + 1), logits(seed)
    whole = kl_divergence(student, teacher, temperature, square_temperature=False, reduction="none")
    kept = top_k(teacher, k, temperature)
    short = kl_divergence(
        lump_logits(student, kept.classes, temperature), kept.logits, temperature, "forward", False, "none"
    )
    gap = whole - short
    assert (gap >= -1e-12).all()
    assert (gap <= tail_error_bound(student, kept, temperature) + 1e-12).all()
    # the gap itself, by an independent implementation: p_tail KL(p~ || q~) within the tail
    p, q = (softmax(each.numpy() / temperature, axis=-1) for each in (teacher, student))
    for row in range(len(p)):
        tail = np.setdiff1d(np.arange(p.shape[1]), kept.classes[row].numpy())
        within = rel_entr(p[row, tail] / p[row, tail].sum(), q[row, tail] / q[row, tail].sum()).sum()
        assert float(gap[row]) == pytest.approx(p[row, tail].sum() * within, abs=1e-12)


@pytest.mark.parametrize("loss", [kl_divergence, soft_cross_entropy, jensen_shannon, total_variation])
def test_one_class_in_the_tail_changes_nothing(loss):
    student, teacher = logits(1), logits(2)
    kept = top_k(teacher, 8, 2.0)
    assert float(loss(lump_logits(student, kept.classes, 2.0), kept.logits, 2.0)) == pytest.approx(
        float(loss(student, teacher, 2.0)), rel=1e-12
    )


def test_equal_logits_give_no_loss_and_no_gradient():
    student = logits(3).requires_grad_()
    kept = top_k(student.detach(), 3)
    kl_divergence(lump_logits(student, kept.classes), kept.logits).backward()
    assert student.grad.abs().max() < 1e-12


def test_a_tail_without_mass_is_finite():
    teacher = torch.tensor([[60.0, 0.0, -80.0, -90.0]])
    student = torch.zeros(1, 4, requires_grad=True)
    kept = top_k(teacher, 2)
    value = kl_divergence(lump_logits(student, kept.classes), kept.logits)
    value.backward()
    assert float(value.detach()) == pytest.approx(math.log(4), rel=1e-5)
    assert torch.isfinite(student.grad).all()


def test_half_precision_is_widened_before_the_softmax():
    kept = top_k(logits(5).half(), 3)
    assert kept.logits.dtype == torch.float32
    assert lump_logits(logits(6).bfloat16(), kept.classes.int()).dtype == torch.float32


@pytest.mark.parametrize("k", [0, 9, 12])
def test_k_leaves_a_tail(k):
    with pytest.raises(ValueError, match="between 1 and 8 of 9"):
        top_k(logits(1), k)


def test_rows_and_positions_may_have_any_shape():
    teacher = logits(7).reshape(2, 2, 9)
    kept = top_k(teacher, 4)
    assert isinstance(kept, TopK)
    assert kept.logits.shape == (2, 2, 5)
    assert lump_logits(teacher, kept.classes).shape == (2, 2, 5)
    torch.testing.assert_close(lump_logits(teacher, kept.classes), kept.logits)
