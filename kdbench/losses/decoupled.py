"""Decoupled distillation: what the teacher says of the right class, and what it says of all the others.

Throughout: logits ``[N, C]``; ``p = softmax(z_t / T)`` the teacher, ``q = softmax(z_s / T)`` the student; labels are classes
``[N]``, -100 for a row without a label, or distributions ``[N, C]`` (mixtures, smoothed labels), of which the largest entry
counts. There is no right class without a label: such rows are left out of sum and mean. The teacher is without gradient.
Zhao et al. 2022, arXiv 2203.08679.
"""

import torch
from torch import Tensor, nn

from kdbench.losses.base import at_least_float32, check_same_shape, check_temperature
from kdbench.losses.divergences import Reduction, kl_divergence
from kdbench.losses.language import IGNORED, check_classes


def target_kl(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0, reduction: Reduction = "rows"
) -> Tensor:
    """TCKD, the right class against the rest: ``T^2 KL([p_y, 1 - p_y] || [q_y, 1 - q_y])``."""
    student, teacher, right = _labelled(student, teacher, labels)
    pairs = (_right_and_rest(each, right, temperature) for each in (student, teacher))
    return kl_divergence(*pairs, temperature, reduction=reduction)


def non_target_kl(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0, reduction: Reduction = "rows"
) -> Tensor:
    """NCKD, the wrong classes among themselves: ``T^2 KL(p' || q')``, with the right class taken out of both softmaxes."""
    student, teacher, right = _labelled(student, teacher, labels)
    wrong = (each.masked_fill(right, -torch.inf) for each in (student, teacher))
    return kl_divergence(*wrong, temperature, reduction=reduction)


def decoupled_kl(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    reduction: Reduction = "rows",
) -> Tensor:
    """``alpha TCKD + beta NCKD``, both with ``T^2``; the mean over the rows with a label.

    ``KL(p || q)`` itself is ``TCKD + (1 - p_y) NCKD``, row by row: what a confident teacher says of the wrong classes hardly
    counts there, and here it has a weight of its own.

    Args:
        student: ``[N, C]``.
        teacher: ``[N, C]``.
        labels: ``[N]`` or ``[N, C]``, see above.
        temperature: T of both distributions.
        alpha: weight of the right class against the rest.
        beta: weight of the wrong classes; on CIFAR-100 2 to 8, by the pair of networks.
        reduction: ``none`` gives the value of each row with a label.

    Raises:
        ValueError: shapes that differ, labels that do not fit, a temperature that is not positive.
    """
    value = alpha * target_kl(student, teacher, labels, temperature, reduction)
    return value + beta * non_target_kl(student, teacher, labels, temperature, reduction)


class DecoupledKL(nn.Module):
    """:func:`decoupled_kl` of logits, with the field ``labels`` of the batch.

    The paper raises its weight over the first epochs: ``ramps: {weight: {start: 0, end: 1, by: epoch, over: 20}}``.
    """

    takes_rows: bool = False
    compares_rows: bool = False
    fields: tuple[str, ...] = ("labels",)

    def __init__(self, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0) -> None:
        super().__init__()
        self.temperature, self.alpha, self.beta = check_temperature(temperature), alpha, beta

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits ``[N, C]`` and labels ``[N]`` or ``[N, C]``."""
        return decoupled_kl(student, teacher, labels, self.temperature, self.alpha, self.beta)


def _labelled(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows with a label, and a mask ``[N, C]`` of their right classes."""
    check_same_shape(student, teacher)
    if labels.is_floating_point():
        labels = labels.argmax(-1)
    if student.dim() != 2 or student.shape[1] < 2 or labels.shape != student.shape[:1]:
        shapes = f"{tuple(student.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"the right and the wrong classes need logits [N, C] and labels [N], got the shapes {shapes}")
    known = labels != IGNORED
    student, teacher, labels = (each[known] for each in (student, teacher, labels))
    check_classes(labels, student.shape[1])
    classes = torch.arange(student.shape[1], device=labels.device)
    return at_least_float32(student), at_least_float32(teacher), labels[:, None] == classes


def _right_and_rest(logits: Tensor, right: Tensor, temperature: float) -> Tensor:
    """Return two logits a row, ``[N, 2]``: of the right class, and of all others taken together."""
    check_temperature(temperature)
    rest = temperature * (logits / temperature).masked_fill(right, -torch.inf).logsumexp(-1)
    return torch.stack([logits.masked_fill(~right, 0.0).sum(-1), rest], -1)
