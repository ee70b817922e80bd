"""Divergences between a student's and a teacher's softened distributions.

Throughout: logits ``[N, C]``, one row an example or a valid token; ``p = softmax(z_t / T)`` the teacher, ``q =
softmax(z_s / T)`` the student; natural logarithm; sum over classes, mean over rows (``reduction="none"``: each row,
``[N]``); softmax in float32 at least; the teacher without gradient. True divergences: 0 at equality, no epsilon. All
raise ValueError for shapes that differ and for a temperature that is not positive.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from kdbench.losses.base import (
    RowLoss,
    at_least_float32,
    check_choice,
    check_same_shape,
    check_share,
    check_temperature,
    reduced,
)

Direction = Literal["forward", "reverse"]
Reduction = Literal["rows", "none"]
OverClasses = Literal["mean", "sum"]
Combine = Literal["mean_probabilities", "mean_logits"]


def kl_divergence(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    direction: Direction = "forward",
    square_temperature: bool = True,
    reduction: Reduction = "rows",
) -> Tensor:
    """Kullback-Leibler divergence: ``T^2 KL(p || q)``, or ``T^2 KL(q || p)`` for ``reverse``.

    ``T^2`` keeps the size of the gradient: for T to infinity, ``T^2 KL`` tends to the squared difference of the centred
    logits over ``2 C``. Hinton et al. 2015, arXiv 1503.02531.
    """
    check_choice("direction", direction, get_args(Direction))
    log_q, log_p = _logs(student, teacher, temperature)
    values = _kl(log_p, log_q) if direction == "forward" else _kl(log_q, log_p)
    return reduced(values * (temperature**2 if square_temperature else 1.0), reduction)


def soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    class_mean: bool = False,
    square_temperature: bool = False,
    reduction: Reduction = "rows",
) -> Tensor:
    """Cross-entropy against soft targets: ``-sum_c p_c log q_c``; ``class_mean`` divides by C (TinyBERT, BiBERT).

    It differs from the forward KL by the teacher's entropy, so its gradient is the same. Jiao et al. 2020, arXiv
    1909.10351.
    """
    log_q, log_p = _logs(student, teacher, temperature)
    p = log_p.exp()
    values = -(p * log_q.masked_fill(p == 0, 0.0)).sum(-1) / (student.shape[-1] if class_mean else 1)
    return reduced(values * (temperature**2 if square_temperature else 1.0), reduction)


def jensen_shannon(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, beta: float = 0.5, reduction: Reduction = "rows"
) -> Tensor:
    """``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``; at most ln 2 for beta 1/2.

    For beta 0 it is taken as the forward KL and for 1 as the reverse one, the limits of its gradient (Agarwal et al.
    2024, arXiv 2306.13649). No ``T^2``.
    """
    check_share("beta", beta)
    log_q, log_p = _logs(student, teacher, temperature)
    if beta in (0, 1):
        return reduced(_kl(log_p, log_q) if beta == 0 else _kl(log_q, log_p), reduction)
    m = beta * log_p.exp() + (1 - beta) * log_q.exp()
    log_m = m.masked_fill(m == 0, 1.0).log()  # where m is 0, p and q are too: logaddexp has a gradient of NaN there
    return reduced(beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m), reduction)


def skew_kl(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    alpha: float = 0.1,
    direction: Direction = "forward",
    reduction: Reduction = "rows",
) -> Tensor:
    """``KL(p || alpha p + (1 - alpha) q)``, or for ``reverse`` ``KL(q || (1 - alpha) p + alpha q)``; no ``T^2``.

    A share of the first distribution in the second bounds the ratio of the two by ``1 / alpha``; at alpha 0 it is the KL
    divergence. At most ``(1 - alpha) KL``. Ko et al. 2024, arXiv 2402.03898, whose code leaves out the teacher's entropy.
    """
    check_share("alpha", alpha)
    check_choice("direction", direction, get_args(Direction))
    log_q, log_p = _logs(student, teacher, temperature)
    first, second = (log_p, log_q) if direction == "forward" else (log_q, log_p)
    if alpha == 0:
        return reduced(_kl(first, second), reduction)
    m = alpha * first.exp() + (1 - alpha) * second.exp()
    return reduced(_kl(first, m.masked_fill(m == 0, 1.0).log()), reduction)


def symmetric_kl(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, share: float = 0.5, reduction: Reduction = "rows"
) -> Tensor:
    """``(1 - share) KL(p || q) + share KL(q || p)``; no ``T^2``. At 1/2 it is ``1/2 sum_c (p - q) (log p - log q)``."""
    check_share("share", share)
    log_q, log_p = _logs(student, teacher, temperature)
    return reduced((1 - share) * _kl(log_p, log_q) + share * _kl(log_q, log_p), reduction)


def total_variation(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, reduction: Reduction = "rows"
) -> Tensor:
    """Total variation distance ``1/2 sum_c |p_c - q_c|``, in [0, 1]. No ``T^2``."""
    log_q, log_p = _logs(student, teacher, temperature)
    return reduced(0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1), reduction)


def logit_mse(
    student: Tensor, teacher: Tensor, over_classes: OverClasses = "mean", reduction: Reduction = "rows"
) -> Tensor:
    """Squared difference of the logits ``(z_s - z_t)^2``, averaged or summed over classes."""
    check_choice("over_classes", over_classes, get_args(OverClasses))
    check_same_shape(student, teacher)
    squares = (at_least_float32(student) - at_least_float32(teacher.detach())).square()
    return reduced(squares.mean(-1) if over_classes == "mean" else squares.sum(-1), reduction)


def combine_logits(
    logits: Sequence[Tensor],
    combine: Combine = "mean_probabilities",
    temperature: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Logits of one teacher that stands for several: ``softmax(out / T) = sum_k w_k softmax(z_k / T)``.

    Args:
        logits: ``[N, C]`` of each teacher.
        combine: ``mean_logits`` averages the logits themselves, ``sum_k w_k z_k``, which is another distribution.
        temperature: of the distributions that are averaged.
        weights: of the teachers, at least 0 and summing to 1; equal by default.

    Returns:
        ``[N, C]`` without gradient, float32 at least.

    Raises:
        ValueError: the weights do not fit, or the teachers' shapes differ.
    """
    check_choice("combine", combine, get_args(Combine))
    check_temperature(temperature)
    if not logits or len({each.shape for each in logits}) > 1:
        raise ValueError(f"teachers to combine must have one shape, got {[tuple(each.shape) for each in logits]}")
    shares = [1 / len(logits)] * len(logits) if weights is None else list(weights)
    if len(shares) != len(logits) or min(shares) < 0 or not math.isclose(sum(shares), 1.0, rel_tol=1e-5):
        raise ValueError(f"{len(logits)} teachers need as many weights >= 0 that sum to 1, got {shares}")
    voices = [(share, at_least_float32(each.detach())) for share, each in zip(shares, logits, strict=True) if share > 0]
    if combine == "mean_logits":
        return torch.stack([share * each for share, each in voices]).sum(0)
    logs = torch.stack([log_softmax(each / temperature, -1) + math.log(share) for share, each in voices])
    return temperature * logs.logsumexp(0)


def fold_logits(logits: Tensor, groups: Tensor, size: int, temperature: float = 1.0) -> Tensor:
    """Logits of the coarse distribution ``q_c(u) = sum over v with groups(v) = u of q(v)``, renormalised.

    Args:
        logits: ``[N, V]``.
        groups: the group of each class, int64 ``[V]``; -1 for classes that are dropped.
        size: the number of groups. One without a member gets the least finite number of the dtype: its probability is
            exactly 0 and every divergence from a teacher without mass there is exact. Against a teacher with mass there
            the KL is as good as infinite, as it should be.
        temperature: of the distribution that is folded.

    Returns:
        ``[N, size]``, finite, with ``softmax(out / T)`` the folded distribution: ``T logsumexp(z / T)`` of each group.

    Raises:
        ValueError: the groups do not fit the classes or the size (the latter seen on CPU only).
    """
    check_temperature(temperature)
    if groups.shape != logits.shape[-1:]:
        raise ValueError(f"{logits.shape[-1]} classes need as many groups, got the shape {tuple(groups.shape)}")
    if groups.device.type == "cpu" and groups.numel() and int(groups.max()) >= size:
        raise ValueError(f"the group {int(groups.max())} is outside the {size} groups")
    scaled = at_least_float32(logits) / temperature
    place = torch.where(groups < 0, size, groups)  # one place more for what is dropped
    totals = scaled.new_zeros(len(scaled), size + 1)
    # logsumexp around each group's own highest logit, so that no rare group is lost beside a frequent one
    highest = (totals - torch.inf).scatter_reduce(1, place.expand_as(scaled), scaled.detach(), "amax")
    empty = highest == -torch.inf
    highest = highest.masked_fill(empty, 0.0)
    totals = totals.index_add(1, place, (scaled - highest[:, place]).exp()).masked_fill(empty, 1.0)
    folded = temperature * (highest + totals.log())
    return folded.masked_fill(empty, torch.finfo(folded.dtype).min)[:, :size]


class KLDivergence(RowLoss):
    """:func:`kl_divergence` of rows."""

    def __init__(
        self, temperature: float = 1.0, direction: Direction = "forward", square_temperature: bool = True
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.direction = check_choice("direction", direction, get_args(Direction))
        self.square_temperature = square_temperature

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of each row."""
        return kl_divergence(student, target, self.temperature, self.direction, self.square_temperature, "none")


class SoftCrossEntropy(RowLoss):
    """:func:`soft_cross_entropy` of rows."""

    def __init__(self, temperature: float = 1.0, class_mean: bool = False, square_temperature: bool = False) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.class_mean, self.square_temperature = class_mean, square_temperature

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of each row."""
        return soft_cross_entropy(student, target, self.temperature, self.class_mean, self.square_temperature, "none")


class JensenShannon(RowLoss):
    """:func:`jensen_shannon` of rows."""

    def __init__(self, temperature: float = 1.0, beta: float = 0.5) -> None:
        super().__init__()
        self.temperature, self.beta = check_temperature(temperature), check_share("beta", beta)

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of each row."""
        return jensen_shannon(student, target, self.temperature, self.beta, "none")


class SkewKL(RowLoss):
    """:func:`skew_kl` of rows."""

    def __init__(self, temperature: float = 1.0, alpha: float = 0.1, direction: Direction = "forward") -> None:
        super().__init__()
        self.temperature, self.alpha = check_temperature(temperature), check_share("alpha", alpha)
        self.direction = check_choice("direction", direction, get_args(Direction))

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of each row."""
        return skew_kl(student, target, self.temperature, self.alpha, self.direction, "none")


class SymmetricKL(RowLoss):
    """:func:`symmetric_kl` of rows."""

    def __init__(self, temperature: float = 1.0, share: float = 0.5) -> None:
        super().__init__()
        self.temperature, self.share = check_temperature(temperature), check_share("share", share)

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of each row."""
        return symmetric_kl(student, target, self.temperature, self.share, "none")


class TotalVariation(RowLoss):
    """:func:`total_variation` of rows."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each row."""
        return total_variation(student, target, self.temperature, "none")


class LogitMSE(RowLoss):
    """:func:`logit_mse` of rows."""

    def __init__(self, over_classes: OverClasses = "mean") -> None:
        super().__init__()
        self.over_classes = check_choice("over_classes", over_classes, get_args(OverClasses))

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the squared difference of each row."""
        return logit_mse(student, target, self.over_classes, "none")


def _logs(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return ``log q`` and ``log p``."""
    check_temperature(temperature)
    check_same_shape(student, teacher)
    log_q = log_softmax(at_least_float32(student) / temperature, -1)
    return log_q, log_softmax(at_least_float32(teacher.detach()) / temperature, -1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Return ``sum a (log a - log b)`` over classes, with 0 log 0 = 0 in the value and in the gradient."""
    a = log_a.exp()
    return (a * (log_a - log_b).masked_fill(a == 0, 0.0)).sum(-1)
