"""Policy gradient against a teacher: what a student's own text is worth, and how its law follows (MiniLLM).

Throughout ``[B, L]``: row b, token t of its response; log probabilities of the tokens that were drawn, natural logarithm;
``mask`` is 1 where a token is real. Gu et al. 2024, arXiv 2306.08543; where the paper and its public code (microsoft/LMOps) differ,
an argument says which is followed.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from kdbench.losses.base import check_choice, check_share

Returns = Literal["code", "paper"]


def token_rewards(teacher: Tensor, student: Tensor, scale: float = 0.5, limit: float = 100.0) -> Tensor:
    """``r_t = (log p(y_t) - log q(y_t)) / scale``, cut to ``[-limit, limit]``."""
    return ((teacher - student) / scale).clamp(-limit, limit)


def importance_weights(student: Tensor, teacher: Tensor, share: float) -> Tensor:
    """``w_t = q(y_t) / (a p(y_t) + (1 - a) q(y_t))``, for tokens drawn from the mixture; a is the teacher's ``share``."""
    check_share("share", share)
    if share == 0:
        return torch.ones_like(student)
    mixed = teacher if share == 1 else torch.logaddexp(teacher + math.log(share), student + math.log1p(-share))
    return (student - mixed).exp()


def normalised_returns(rewards: Tensor, mask: Tensor, gamma: float = 1.0, form: Returns = "code") -> Tensor:
    """Return the rewards still to come, over how many tokens they belong to; 0 at padding.

    ``code``: ``A_t = sum_(s >= t) gamma^(s-t) r_s / n_t`` with n_t real tokens from t on. ``paper``: without step t itself, so
    ``sum_(s > t) gamma^(s-t-1) r_s / (n_t - 1)``, and 0 at the last token.
    """
    check_choice("form", form, get_args(Returns))
    rewards, mask = rewards * mask, mask.to(rewards.dtype)
    left = mask.flip(1).cumsum(1).flip(1)
    sums = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[:, 0])
    for at in reversed(range(rewards.shape[1])):
        now = rewards[:, at] + gamma * later
        sums[:, at], later = (now if form == "code" else later), now
    counted = left if form == "code" else left - 1
    return sums / counted.clamp(min=1) * mask


def whitened(values: Tensor) -> Tensor:
    """Return ``(A - mean) / sqrt(var + 1e-8)`` over the whole array, padding included; the variance is the unbiased one."""
    return (values - values.mean()) * torch.rsqrt(values.var() + 1e-8)


def clipped_policy_loss(
    student: Tensor, before: Tensor, weights: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2
) -> Tensor:
    """``mean over tokens of max(-A rho, -A clip(rho, 1 - c, 1 + c))`` with ``rho = w exp(log q - log q_before)``.

    Args:
        student: log q now, with gradient.
        before: log q when the text was drawn.
        weights: w, of :func:`importance_weights`.
        advantages: A, without gradient.
        mask: the real tokens.
        clip: c.

    Source: Schulman et al. 2017, arXiv 1707.06347.
    """
    kept = mask.bool()
    ratio = ((student - before).exp() * weights)[kept]
    gain = advantages.detach()[kept]
    return torch.maximum(-gain * ratio, -gain * ratio.clamp(1 - clip, 1 + clip)).mean()
