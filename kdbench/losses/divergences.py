"""Divergences between a student's and a teacher's softened distributions.

Throughout: logits ``[N, C]``, one row an example or a valid token; ``p = softmax(z_t / T)`` the teacher, ``q =
softmax(z_s / T)`` the student; natural logarithm; sum over classes, mean over rows; softmax in float32 at least; the
teacher without gradient. True divergences: 0 at equality.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from kdbench.losses.base import RowLoss, at_least_float32, check_temperature, reduced

Direction = Literal["forward", "reverse"]
Reduction = Literal["rows", "none"]


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
    log_q, log_p = _logs(student, teacher, temperature)
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction is 'forward' or 'reverse', got '{direction}'")
    values = _kl(log_p, log_q) if direction == "forward" else _kl(log_q, log_p)
    return reduced(values * (temperature**2 if square_temperature else 1.0), reduction)


def soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    square_temperature: bool = False,
    class_mean: bool = False,
    reduction: Reduction = "rows",
) -> Tensor:
    """Cross-entropy against soft targets: ``-sum_c p_c log q_c``; ``class_mean`` divides by C (TinyBERT, BiBERT).

    It differs from the forward KL by the teacher's entropy, so its gradient is the same.
    """
    log_q, log_p = _logs(student, teacher, temperature)
    values = -_times_log(log_p, log_q).sum(-1)
    values = values / student.shape[-1] if class_mean else values
    return reduced(values * (temperature**2 if square_temperature else 1.0), reduction)


def jensen_shannon(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, beta: float = 0.5, reduction: Reduction = "rows"
) -> Tensor:
    """``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``; at most ln 2 for beta 1/2.

    For beta 0 it is taken as the forward KL and for 1 as the reverse one, the limits of its gradient (Agarwal et al.
    2024, arXiv 2306.13649).
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is a share in [0, 1], got {beta}")
    log_q, log_p = _logs(student, teacher, temperature)
    if beta in (0, 1):
        return reduced(_kl(log_p, log_q) if beta == 0 else _kl(log_q, log_p), reduction)
    shares = torch.tensor([beta, 1 - beta], dtype=log_q.dtype, device=log_q.device).log()
    log_m = torch.logaddexp(log_p + shares[0], log_q + shares[1])
    return reduced(beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m), reduction)


def total_variation(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, reduction: Reduction = "rows"
) -> Tensor:
    """Total variation distance ``1/2 sum_c |p_c - q_c|``, in [0, 1]."""
    log_q, log_p = _logs(student, teacher, temperature)
    return reduced(0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1), reduction)


def logit_mse(
    student: Tensor, teacher: Tensor, over_classes: Literal["mean", "sum"] = "mean", reduction: Reduction = "rows"
) -> Tensor:
    """Squared difference of the logits, averaged or summed over classes."""
    if over_classes not in ("mean", "sum"):
        raise ValueError(f"over_classes is 'mean' or 'sum', got '{over_classes}'")
    squares = (at_least_float32(student) - at_least_float32(teacher.detach())).square()
    return reduced(squares.mean(-1) if over_classes == "mean" else squares.sum(-1), reduction)


def combine_logits(
    logits: Sequence[Tensor],
    combine: Literal["mean_probabilities", "mean_logits"] = "mean_probabilities",
    temperature: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Logits of one teacher that stands for several: ``softmax(out / T) = sum_k w_k softmax(z_k / T)``.

    ``mean_logits`` averages the logits themselves, which is another distribution. Weights sum to 1; equal by default.
    """
    check_temperature(temperature)
    shares = torch.tensor(weights or [1 / len(logits)] * len(logits), dtype=torch.float64)
    if len(shares) != len(logits) or (shares < 0).any() or not torch.isclose(shares.sum(), shares.new_tensor(1.0)):
        raise ValueError(f"{len(logits)} teachers need as many weights >= 0 that sum to 1, got {weights}")
    stacked = torch.stack([at_least_float32(each) for each in logits])
    shares = shares.to(stacked).view(-1, *[1] * (stacked.dim() - 1))
    if combine == "mean_logits":
        return (shares * stacked).sum(0)
    if combine == "mean_probabilities":
        return temperature * torch.logsumexp(log_softmax(stacked / temperature, -1) + shares.log(), 0)
    raise ValueError(f"combine is 'mean_probabilities' or 'mean_logits', got '{combine}'")


def fold_logits(logits: Tensor, groups: Tensor, size: int, temperature: float = 1.0) -> Tensor:
    """Logits of the coarse distribution ``q_c(u) = sum over v with groups(v) = u of q(v)``, renormalised.

    Args:
        logits: ``[N, V]``.
        groups: the group of each class ``[V]``, -1 for classes that are dropped.
        size: the number of groups; one without a member gets ``-inf``, a probability of 0.
        temperature: of the distribution that is folded.

    Returns:
        ``[N, size]`` with ``softmax(out / T)`` the folded distribution.
    """
    check_temperature(temperature)
    scaled = at_least_float32(logits) / temperature
    folded = scaled.new_full((len(logits), size), -torch.inf)
    for place, (members, targets) in enumerate(_rounds(groups)):
        values = scaled[:, members]
        folded = folded.index_copy(1, targets, torch.logaddexp(folded[:, targets], values) if place else values)
    return temperature * folded


class KLDivergence(RowLoss):
    """:func:`kl_divergence` of rows."""

    def __init__(
        self, temperature: float = 1.0, direction: Direction = "forward", square_temperature: bool = True
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.direction, self.square_temperature = direction, square_temperature

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of each row."""
        return kl_divergence(student, target, self.temperature, self.direction, self.square_temperature, "none")


class SoftCrossEntropy(RowLoss):
    """:func:`soft_cross_entropy` of rows."""

    def __init__(self, temperature: float = 1.0, square_temperature: bool = False, class_mean: bool = False) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.square_temperature, self.class_mean = square_temperature, class_mean

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of each row."""
        return soft_cross_entropy(student, target, self.temperature, self.square_temperature, self.class_mean, "none")


class JensenShannon(RowLoss):
    """:func:`jensen_shannon` of rows."""

    def __init__(self, temperature: float = 1.0, beta: float = 0.5) -> None:
        super().__init__()
        self.temperature, self.beta = check_temperature(temperature), beta

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of each row."""
        return jensen_shannon(student, target, self.temperature, self.beta, "none")


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

    def __init__(self, over_classes: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        self.over_classes = over_classes

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the squared difference of each row."""
        return logit_mse(student, target, self.over_classes, "none")


def _logs(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return ``log q`` and ``log p``."""
    check_temperature(temperature)
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have the same rows and classes, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    log_q = log_softmax(at_least_float32(student) / temperature, -1)
    return log_q, log_softmax(at_least_float32(teacher.detach()) / temperature, -1)


def _rounds(groups: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``(classes, groups)`` so that each round names a group at most once: the first member, the second, ..."""
    members = torch.nonzero(groups >= 0).squeeze(1)
    targets, order = groups[members].sort(stable=True)
    members = members[order]
    place = torch.arange(len(targets), device=groups.device) - torch.searchsorted(targets, targets)
    for turn in range(int(place.max()) + 1 if len(place) else 0):
        yield members[place == turn], targets[place == turn]


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Return ``sum a (log a - log b)`` over classes, with 0 log 0 = 0."""
    return (_times_log(log_a, log_a) - _times_log(log_a, log_b)).sum(-1)


def _times_log(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Return ``a log b`` with ``0 log 0 = 0`` and no NaN in the gradient."""
    nothing = log_a == -torch.inf
    return log_a.masked_fill(nothing, 0.0).exp().masked_fill(nothing, 0.0) * log_b.masked_fill(nothing, 0.0)
