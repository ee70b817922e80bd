"""Correlations between the distributions of a student and a teacher: their order and spread count, not their values.

Huang et al. 2022, arXiv 2205.10536 (DIST). The teacher is without gradient.
"""

import torch
from torch import Tensor, nn

from kdbench.losses.base import at_least_float32, check_same_shape, check_temperature, reduced
from kdbench.losses.divergences import Reduction


def pearson_distance(student: Tensor, teacher: Tensor, reduction: Reduction = "rows") -> Tensor:
    """``1 - rho`` of rows ``[N, D]``, in [0, 2]: the cosine of the centred rows, its denominator raised by 1e-8.

    It does not see shift and positive scale of a row. A row that does not vary has ``rho = 0`` and a gradient of 0. Raises
    ValueError for shapes that differ.
    """
    check_same_shape(student, teacher)
    ours, theirs = (
        each - each.mean(-1, keepdim=True) for each in (at_least_float32(student), at_least_float32(teacher.detach()))
    )
    lengths = torch.linalg.vector_norm(ours, dim=-1) * torch.linalg.vector_norm(theirs, dim=-1)
    return reduced(1 - (ours * theirs).sum(-1) / (lengths + 1e-8), reduction)


def correlation_distance(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, inter: float = 1.0, intra: float = 1.0
) -> Tensor:
    """``T^2 (inter D(P_s, P_t) + intra D(P_s^T, P_t^T))``, D the :func:`pearson_distance` and P the softmax at T.

    Args:
        student: logits ``[N, C]``.
        teacher: logits ``[N, C]``.
        temperature: T of both distributions; the paper has 4 on CIFAR-100 and 1 on ImageNet.
        inter: beta, the weight of each example's distribution over the classes.
        intra: gamma, the weight of each class's probabilities over the examples of the batch; one example has none.
    """
    check_temperature(temperature)
    ours, theirs = ((at_least_float32(each) / temperature).softmax(-1) for each in (student, teacher))
    value = inter * pearson_distance(ours, theirs) + intra * pearson_distance(ours.mT, theirs.mT)
    return temperature**2 * value


class CorrelationDistance(nn.Module):
    """:func:`correlation_distance` of the logits of a batch."""

    takes_rows: bool = True
    compares_rows: bool = True

    def __init__(self, temperature: float = 1.0, inter: float = 1.0, intra: float = 1.0) -> None:
        super().__init__()
        self.temperature, self.inter, self.intra = check_temperature(temperature), inter, intra

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance of logits ``[N, C]``."""
        return correlation_distance(student, teacher, self.temperature, self.inter, self.intra)
