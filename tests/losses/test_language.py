"""Cross-entropy of labelled positions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from kdbench.losses.language import CrossEntropy, masked_token_cross_entropy


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


ROWS, LABELS = g((4, 3), 0.37, 0, 3), torch.arange(4) % 3
TOKENS = g((2, 4, 5), 0.37, 0, 3)
token_labels = st.lists(st.sampled_from([-100, 0, 1, 2, 3, 4]), min_size=8, max_size=8)


def test_oracles():
    assert float(masked_token_cross_entropy(ROWS, LABELS)) == pytest.approx(1.537323080, abs=1e-9)
    labels = torch.full((2, 4), -100)
    labels[0, 1], labels[1, 2] = 2, 4
    assert float(masked_token_cross_entropy(TOKENS, labels)) == pytest.approx(1.23397691, abs=1e-8)


@given(token_labels.filter(lambda labels: max(labels) >= 0), st.floats(0, 0.9))
def test_value_and_gradient_equal_torchs(labels, smoothing):
    labels, logits = torch.tensor(labels).reshape(2, 4), TOKENS.clone().requires_grad_()
    value = CrossEntropy(smoothing)(logits, labels)
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
    torch.testing.assert_close(value, expected)
    ours, theirs = (torch.autograd.grad(each, logits)[0] for each in (value, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("content", [1e6, torch.inf, torch.nan])
def test_the_logits_of_positions_without_label_are_irrelevant(content):
    labels = torch.tensor([[1, -100, 3, -100], [-100, 0, -100, -100]])
    logits = TOKENS.clone()
    logits[labels == -100] = content
    logits.requires_grad_()
    value = CrossEntropy()(logits, labels)
    torch.testing.assert_close(value, CrossEntropy()(TOKENS, labels))
    value.backward()
    assert (logits.grad[labels == -100] == 0).all()


def test_nothing_labelled_gives_zero_with_a_gradient_of_zero():
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.ones(2, 4, 5, dtype=dtype, requires_grad=True)
        value = CrossEntropy()(logits, torch.full((2, 4), -100))
        value.backward()
        assert float(value.detach()) == 0
        assert value.dtype == torch.float32
        assert (logits.grad == 0).all()


def test_another_label_may_mean_ignored():
    labels = torch.tensor([0, -1, 2, -1])
    expected = masked_token_cross_entropy(ROWS[[0, 2]], labels[[0, 2]])
    torch.testing.assert_close(masked_token_cross_entropy(ROWS, labels, ignore_index=-1), expected)
    with pytest.raises(ValueError, match="label -1 is outside the 3 classes"):
        masked_token_cross_entropy(ROWS, labels)


@pytest.mark.parametrize("label", [3, 7, -1, -101])
def test_a_label_outside_the_classes_is_named(label):
    with pytest.raises(ValueError, match=f"the label {label} is outside the 3 classes"):
        CrossEntropy()(ROWS, torch.tensor([0, 1, label, -100]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    value = CrossEntropy()(ROWS.to(dtype), LABELS)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, CrossEntropy()(ROWS.to(dtype).float(), LABELS))


def test_narrow_integers_are_labels_too():
    torch.testing.assert_close(CrossEntropy()(ROWS, LABELS.to(torch.int32)), CrossEntropy()(ROWS, LABELS))


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) do not fit logits of shape \(2, 4, 5\)"):
        CrossEntropy()(TOKENS, torch.tensor([0, 1]))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_smoothing_that_is_no_share_is_refused(smoothing):
    with pytest.raises(ValueError, match="label_smoothing is a share"):
        CrossEntropy(smoothing)


def test_it_selects_its_rows_itself():
    assert not CrossEntropy.takes_rows
    assert not CrossEntropy.compares_rows
