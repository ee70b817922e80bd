"""Selecting rows, the mean over rows, and the triple loss that is made of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.losses.divergences import JensenShannon, KLDivergence, LogitMSE, SoftCrossEntropy, TotalVariation
from kdbench.losses.hints import CosineDistance, MeanSquaredError, NormalisedMSE
from kdbench.losses.language import CrossEntropy
from kdbench.losses.rows import select_rows

LOSSES = [
    KLDivergence(2.0),
    KLDivergence(2.0, "reverse"),
    SoftCrossEntropy(),
    JensenShannon(),
    TotalVariation(),
    LogitMSE(),
    CosineDistance(),
    MeanSquaredError(),
    NormalisedMSE(),
]


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


STUDENT, TEACHER = g((4, 3), 0.37, 0, 3), g((4, 3), 0.53, 1, 3)


def triple(z_s, z_t, h_s, h_t, mask, labels):
    soft = KLDivergence(2.0)(select_rows(z_s, mask), select_rows(z_t, mask))
    hidden = CosineDistance()(select_rows(h_s, mask), select_rows(h_t, mask))
    return soft, CrossEntropy()(z_s, labels), hidden


def example():
    shape = (2, 4)
    labels = torch.full(shape, -100)
    labels[0, 1], labels[1, 2] = 2, 4
    return {
        "z_s": g((*shape, 5), 0.37, 0, 3),
        "z_t": g((*shape, 5), 0.53, 1, 3),
        "h_s": g((*shape, 6), 0.29, 2, 1),
        "h_t": g((*shape, 6), 0.41, 3, 1),
        "mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "labels": labels,
    }


def test_triple_loss_oracle():
    soft, masked, hidden = triple(**example())
    assert float(soft) == pytest.approx(1.48939030, abs=1e-8)
    assert float(masked) == pytest.approx(1.23397691, abs=1e-8)
    assert float(hidden) == pytest.approx(1.28272519, abs=1e-8)
    assert float(5 * soft + 2 * masked + hidden) == pytest.approx(11.19763052, abs=1e-8)


@pytest.mark.parametrize("content", [1e6, -torch.inf, torch.nan])
def test_the_content_of_padding_is_irrelevant(content):
    clean, padded = example(), example()
    for name in ("z_s", "z_t", "h_s", "h_t"):
        padded[name][1, 3] = content
        padded[name].requires_grad_()
    values = triple(**padded)
    torch.testing.assert_close(values, triple(**clean))
    sum(values).backward()
    for name in ("z_s", "h_s"):
        assert (padded[name].grad[1, 3] == 0).all()
        assert padded[name].grad.isfinite().all()


def test_rows_are_selected_in_order_for_any_kind_of_mask():
    values = torch.arange(24.0).reshape(2, 3, 4)
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]])
    expected = torch.stack([values[0, 0], values[0, 2], values[1, 2]])
    for kind in (torch.bool, torch.long, torch.float32):
        torch.testing.assert_close(select_rows(values, mask.to(kind)), expected)
    assert select_rows(values[..., 0], mask).tolist() == [0, 8, 20]
    assert select_rows(values, torch.zeros(2, 3)).shape == (0, 4)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"mask of shape \(2, 4\) does not fit values of shape \(2, 3, 4\)"):
        select_rows(torch.zeros(2, 3, 4), torch.ones(2, 4))


@pytest.mark.parametrize("loss", LOSSES)
@given(weights=st.lists(st.floats(0, 5), min_size=4, max_size=4).filter(lambda w: sum(w) > 0.1))
def test_the_loss_is_the_weighted_mean_of_its_rows(loss, weights):
    each = torch.stack([loss(STUDENT[n : n + 1], TEACHER[n : n + 1]) for n in range(4)])
    torch.testing.assert_close(loss.per_row(STUDENT, TEACHER), each)
    torch.testing.assert_close(loss(STUDENT, TEACHER), each.mean())
    shares = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(loss(STUDENT, TEACHER, shares), (shares * each).sum() / shares.sum())
    assert loss.takes_rows
    assert not loss.compares_rows


@pytest.mark.parametrize("weights", [torch.zeros(4), torch.tensor([1.0, -1.0, 0.0, 0.0]), torch.full((4,), torch.nan)])
def test_weights_that_sum_to_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="sum to nothing"):
        KLDivergence()(STUDENT, TEACHER, weights)


@pytest.mark.parametrize("shape", [(3,), (4, 1), (1,)])
def test_weights_that_are_not_one_a_row_are_refused(shape):
    with pytest.raises(ValueError, match="4 rows need as many weights"):
        KLDivergence()(STUDENT, TEACHER, torch.ones(shape))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_rows_give_zero_with_a_gradient_of_zero(loss, dtype):
    states = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    rows = select_rows(states, torch.zeros(2))
    for weights in (None, torch.zeros(0)):
        value = loss(rows, rows.detach(), weights)
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert float(value.detach()) == 0
        (gradient,) = torch.autograd.grad(value, states, retain_graph=True)
        assert (gradient == 0).all()
