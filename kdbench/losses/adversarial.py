"""Adversarial losses: networks that tell a student's outputs from a teacher's, or made samples from real ones.

Computed in float32 at least. Scores may have any shape; a mean is over all of them.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu

from kdbench.losses.base import RowLoss, at_least_float32, check_choice, check_same_shape, reduced
from kdbench.losses.divergences import Reduction
from kdbench.losses.projection import Projection

Kind = Literal["joint", "adversarial"]


def discriminator_bce(student: Tensor, teacher: Tensor, reduction: Reduction = "rows") -> Tensor:
    """Binary cross-entropy of a discriminator's scores: ``[1, 0]`` is right for a student's row, ``[0, 1]`` for a teacher's.

    The mean over the 2N rows and 2 scores; scores of 0 give ``log 2``.

    Args:
        student: scores before the sigmoid for the student's rows ``[N, 2]``.
        teacher: scores for the teacher's rows ``[N, 2]``.
        reduction: ``none`` gives the mean of each pair of rows ``[N]``.

    Raises:
        ValueError: the shapes differ, or there are not two scores a row.

    Shen et al. 2019, arXiv 1812.02425; Shen and Savvides 2020, arXiv 2009.08453, whose code is followed.
    """
    check_same_shape(student, teacher)
    if student.dim() != 2 or student.shape[1] != 2:
        raise ValueError(f"a discriminator gives two scores a row, [N, 2], got the shape {tuple(student.shape)}")
    scores = at_least_float32(torch.stack([student, teacher], 1))
    right = torch.eye(2, dtype=scores.dtype, device=scores.device).expand_as(scores)
    return reduced(binary_cross_entropy_with_logits(scores, right, reduction="none").mean((1, 2)), reduction)


def least_squares_gan(made: Tensor, real: Tensor | None = None) -> Tensor:
    """Return ``mean (1 - D(real))^2 + mean D(made)^2``, which a discriminator minimises.

    Without ``real``, what the generator minimises: ``mean (1 - D(made))^2``. Mao et al. 2017, arXiv 1611.04076.
    """
    made = at_least_float32(made)
    if real is None:
        return (1 - made).square().mean()
    return (1 - at_least_float32(real)).square().mean() + made.square().mean()


def hinge_gan(made: Tensor, real: Tensor | None = None) -> Tensor:
    """Return ``mean max(0, 1 - D(real)) + mean max(0, 1 + D(made))``, which a discriminator minimises.

    Without ``real``, what the generator minimises: ``-mean D(made)``. Lim and Ye 2017, arXiv 1705.02894.
    """
    made = at_least_float32(made)
    if real is None:
        return -made.mean()
    return relu(1 - at_least_float32(real)).mean() + relu(1 + made).mean()


def reverse_gradient(values: Tensor) -> Tensor:
    """Return the values; their gradient comes back with the opposite sign (Ganin and Lempitsky 2015, arXiv 1409.7495)."""
    return _Reversed.apply(values)


class OutputDiscriminator(RowLoss):
    """:func:`discriminator_bce` of a small network on logits, trained with the student and left out of its export.

    The network is ``C -> C // divisor -> C // divisor^2 -> 2`` (at least 1), a rectified linear unit after every layer, the
    last one too, so that a score may stay at 0; biases begin at 0. The widths are taken from the first rows that come.
    Several teachers are met as the mean of their logits: ``combine: mean_logits``.

    Args:
        kind: ``joint``, as in the official code: student and network minimise the loss together, which makes the student's
            outputs easier to tell from the teacher's; ``adversarial``, as the paper tells it: the student's gradient is
            reversed.
        divisor: of the widths.

    Raises:
        ValueError: another kind, or a divisor below 1.

    Shen and Savvides 2020, arXiv 2009.08453.
    """

    def __init__(self, kind: Kind = "joint", divisor: int = 8) -> None:
        super().__init__()
        self.kind, self.divisor = check_choice("kind", kind, get_args(Kind)), divisor
        if divisor < 1:
            raise ValueError(f"the divisor of the widths is at least 1, got {divisor}")
        self.layers = nn.ModuleList(Projection(bias=True) for _ in range(3))

    def scores(self, logits: Tensor) -> Tensor:
        """Return the scores ``[N, 2]``, at least 0, of logits ``[N, C]``."""
        classes, values = logits.shape[-1], logits
        for layer, width in zip(self.layers, (classes // self.divisor, classes // self.divisor**2, 2), strict=True):
            values = relu(layer(values, max(1, width)))
        return values

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the mean of the two rows' cross-entropies, for logits ``[N, C]`` of student and teacher."""
        check_same_shape(student, target)
        student = reverse_gradient(student) if self.kind == "adversarial" else student
        ours, theirs = self.scores(torch.cat([student, target.detach()])).chunk(2)
        return discriminator_bce(ours, theirs, "none")


class _Reversed(torch.autograd.Function):
    """The identity, with minus the identity as its derivative."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient
