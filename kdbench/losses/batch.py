"""How the examples of a batch relate to one another, in a student's space as in a teacher's.

Throughout: one example a row, any shape ``[B, ...]`` and any width on either side unless it is said otherwise; computed in
float32 at least; the teacher without gradient. All raise ValueError where student and teacher have not as many examples.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kdbench.losses.base import at_least_float32, check_same_shape
from kdbench.losses.similarity import angle_relation, distance_relation


def batch_gram_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """``|G_s - G_t|^2 / B^2``: each row of ``G = f f^T`` at length 1, ``[B, B]``, f the examples as vectors.

    Similarity-preserving distillation (Tung and Mori 2019, arXiv 1907.09682).
    """
    ours, theirs = (normalize(each @ each.mT, dim=-1) for each in _vectors(student, teacher))
    return (ours - theirs).square().mean()


def similarity_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean_ij p_ij log(p_ij / q_ij)``: row i of p and q are the similarities ``(1 + cos) / 2`` to i, over their sum.

    Probabilistic knowledge transfer (PKT: Passalis and Tefas 2018, arXiv 1803.10837). The mean is over all pairs, as in the
    authors' code, which adds 1e-7 to lengths and probabilities.
    """
    eps = 1e-7
    shares = []
    for each in _vectors(student, teacher):
        directions = each / (torch.linalg.vector_norm(each, dim=-1, keepdim=True) + eps)
        similarity = (1 + directions @ directions.mT) / 2
        shares.append(similarity / similarity.sum(-1, keepdim=True))
    q, p = shares
    return (p * ((p + eps) / (q + eps)).log()).mean()


def correlation_congruence(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean_i sum_d |s_i - t_i|_d |s_(i+1) - t_(i+1)|_d`` of neighbours in the batch, both ``[B, D]``.

    The form of the public reference code, which has it from the authors (Peng et al. 2019, arXiv 1904.01802); the paper
    compares matrices of kernels between the examples instead. The teacher's rows carry a gradient, for in that code they
    come from a learnt map.
    """
    check_same_shape(student, teacher)
    apart = (at_least_float32(student) - at_least_float32(teacher)).abs()
    return (apart[:-1] * apart[1:]).sum(-1).mean() if len(apart) > 1 else apart.sum() * 0.0


class _BatchLoss(nn.Module):
    """A loss without settings that compares the examples of a batch."""

    takes_rows: bool = False
    compares_rows: bool = True


class BatchGramDistance(_BatchLoss):
    """:func:`batch_gram_distance` of vectors or feature maps."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance of ``[B, ...]`` and ``[B, ...]``."""
        return batch_gram_distance(student, teacher)


class SimilarityDivergence(_BatchLoss):
    """:func:`similarity_divergence` of vectors or feature maps."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the divergence of ``[B, ...]`` and ``[B, ...]``."""
        return similarity_divergence(student, teacher)


class DistanceRelation(_BatchLoss):
    """:func:`~kdbench.losses.similarity.distance_relation` of the examples of a batch; RKD's weight is 25."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of ``[B, ...]`` and ``[B, ...]``."""
        return distance_relation(*_vectors(student, teacher))


class AngleRelation(_BatchLoss):
    """:func:`~kdbench.losses.similarity.angle_relation` of the examples of a batch; RKD's weight is 50."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of ``[B, ...]`` and ``[B, ...]``."""
        return angle_relation(*_vectors(student, teacher))


class CorrelationCongruence(_BatchLoss):
    """:func:`correlation_congruence` of learnt linear maps of both sides to one width; its weight is 0.02.

    Args:
        width: of the common space.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.student_side, self.teacher_side = nn.LazyLinear(width), nn.LazyLinear(width)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of ``[B, ...]`` and ``[B, ...]``."""
        sides = zip((self.student_side, self.teacher_side), _vectors(student, teacher), strict=True)
        return correlation_congruence(*(side(rows.to(side.weight.dtype)) for side, rows in sides))


def _vectors(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return each example as one vector, ``[B, D]``."""
    if student.dim() < 2 or teacher.dim() < 2 or len(student) != len(teacher):
        raise ValueError(
            f"student and teacher must have the same examples, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    return at_least_float32(student).flatten(1), at_least_float32(teacher.detach()).flatten(1)
