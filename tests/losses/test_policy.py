"""The pieces of MiniLLM: oracles of the public code, the paper's form, and what they obey."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.losses.policy import (
    clipped_policy_loss,
    importance_weights,
    normalised_returns,
    token_rewards,
    whitened,
)


def wave(scale, step, phase):
    return (scale * torch.sin(step * torch.arange(8, dtype=torch.float64) + phase)).reshape(2, 4)


NOW, BEFORE, TEACHER = (-1 - wave(*each).abs() for each in ((0.8, 0.41, 0.2), (0.8, 0.41, 0.35), (0.9, 0.29, 1.2)))
WEIGHTS = wave(0.3, 0.77, 0.2).exp()
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
REWARDS = token_rewards(TEACHER, BEFORE, scale=1.0)
ADVANTAGES = normalised_returns(REWARDS, MASK)

seeds = st.integers(0, 10_000)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_oracles():
    expected = [[-0.26110544, -0.15996828, -0.06698900, 0.00979846], [0.09751218, 0.09788777, 0.08023248, 0]]
    torch.testing.assert_close(ADVANTAGES, torch.tensor(expected).double(), atol=2e-8, rtol=0)  # float32 there
    plain = clipped_policy_loss(NOW, BEFORE, WEIGHTS, ADVANTAGES, MASK)
    assert float(plain) == pytest.approx(0.05783666, abs=1e-8)
    white = clipped_policy_loss(NOW, BEFORE, WEIGHTS, whitened(ADVANTAGES), MASK)
    assert float(white) == pytest.approx(0.23487007, abs=1e-8)


@given(seeds, st.floats(0.0, 1.0))
def test_returns_are_those_of_a_loop_over_the_tokens(seed, gamma):
    rewards, lengths = normal(seed, 3, 5), [5, 3, 1]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    code, paper = torch.zeros(3, 5).double(), torch.zeros(3, 5).double()
    for row, length in enumerate(lengths):
        for at in range(length):
            later = [gamma ** (place - at) * rewards[row, place] for place in range(at, length)]
            code[row, at] = sum(later) / len(later)
            after = [gamma ** (place - at - 1) * rewards[row, place] for place in range(at + 1, length)]
            paper[row, at] = sum(after) / len(after) if after else 0.0
    torch.testing.assert_close(normalised_returns(rewards, mask, gamma), code)
    torch.testing.assert_close(normalised_returns(rewards, mask, gamma, "paper"), paper)


def test_what_padding_holds_changes_nothing():
    changed = REWARDS.masked_fill(MASK == 0, 7.0)
    torch.testing.assert_close(normalised_returns(changed, MASK), ADVANTAGES)
    now = NOW.masked_fill(MASK == 0, -50.0).requires_grad_()
    loss = clipped_policy_loss(now, BEFORE, WEIGHTS, ADVANTAGES, MASK)
    loss.backward()
    torch.testing.assert_close(loss, clipped_policy_loss(NOW, BEFORE, WEIGHTS, ADVANTAGES, MASK))
    assert float(now.grad[1, 3]) == 0


@given(seeds)
def test_whitened_values_have_mean_0_and_variance_1(seed):
    found = whitened(3 + 2 * normal(seed, 4, 6))
    assert float(found.mean()) == pytest.approx(0, abs=1e-9)
    assert float(found.var()) == pytest.approx(1, rel=1e-6)


def test_rewards_are_scaled_and_cut():
    teacher, student = torch.tensor([-1.0, -2.0, -90.0]), torch.tensor([-2.0, -1.0, -1.0])
    assert token_rewards(teacher, student).tolist() == [2.0, -2.0, -100.0]
    assert token_rewards(teacher, student, scale=1.0, limit=5.0).tolist() == [1.0, -1.0, -5.0]


@given(seeds, st.floats(0.0, 1.0))
def test_importance_weights_are_the_ratio_of_student_and_mixture(seed, share):
    student, teacher = -normal(seed, 2, 3, 4).abs()
    mixed = share * teacher.exp() + (1 - share) * student.exp()
    torch.testing.assert_close(importance_weights(student, teacher, share), student.exp() / mixed)
    if share < 1:
        assert float(importance_weights(student, teacher, share).max()) <= 1 / (1 - share) + 1e-9


def test_at_the_first_update_the_gradient_is_that_of_reinforce():
    now = BEFORE.clone().requires_grad_()
    ones = torch.ones_like(now)
    clipped_policy_loss(now, BEFORE, ones, ADVANTAGES, MASK).backward()
    torch.testing.assert_close(now.grad, -ADVANTAGES / 7)


def test_beyond_the_clip_nothing_more_is_gained():
    now = (BEFORE + math.log(1.5)).requires_grad_()
    ones = torch.ones_like(now)
    clipped_policy_loss(now, BEFORE, ones, ADVANTAGES, MASK).backward()
    gains = (ADVANTAGES > 0) & MASK.bool()
    assert (now.grad[gains] == 0).all()
    assert (now.grad[(ADVANTAGES < 0) & MASK.bool()] > 0).all()


def test_impossible_numbers():
    with pytest.raises(ValueError, match="share is a share in"):
        importance_weights(NOW, BEFORE, 1.5)
    with pytest.raises(ValueError, match="form is 'code' or 'paper'"):
        normalised_returns(REWARDS, MASK, form="kode")
