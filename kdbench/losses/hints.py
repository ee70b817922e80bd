"""Hints: a student's inner states against a teacher's, rows ``[N, H]`` (padding already removed).

Mean over rows (``reduction="none"``: each row, ``[N]``); in float32 at least; the teacher without gradient. All raise
ValueError for shapes that differ: states of another width need a projector first.
"""

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from kdbench.losses.base import RowLoss, at_least_float32, check_same_shape, reduced
from kdbench.losses.divergences import Reduction
from kdbench.losses.rows import select_rows


def cosine_distance(student: Tensor, teacher: Tensor, reduction: Reduction = "rows") -> Tensor:
    """``1 - cos(h_s, h_t)``, in [0, 2] (Sanh et al. 2019, arXiv 1910.01108)."""
    check_same_shape(student, teacher)
    teacher = at_least_float32(teacher.detach())
    return reduced(1 - cosine_similarity(at_least_float32(student), teacher, dim=-1), reduction)


def mean_squared_error(student: Tensor, teacher: Tensor, half: bool = False, reduction: Reduction = "rows") -> Tensor:
    """Squared difference, mean over the elements of a row; ``half`` gives FitNets' ``1/2 ||v_t - r(v_s)||^2`` so.

    Rows may have any shape ``[N, ...]``. Romero et al. 2015, arXiv 1412.6550 (which sums over elements instead).
    """
    check_same_shape(student, teacher)
    squares = (at_least_float32(student) - at_least_float32(teacher.detach())).square()
    return reduced(squares.unsqueeze(-1).flatten(1).mean(1) * (0.5 if half else 1.0), reduction)


def masked_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """:func:`mean_squared_error` of the positions of ``[B, S, H]`` where the mask ``[B, S]`` is true; 0 for none."""
    return mean_squared_error(select_rows(student, mask), select_rows(teacher, mask))


def normalised_mse(student: Tensor, teacher: Tensor, reduction: Reduction = "rows") -> Tensor:
    """PKD's patient loss ``mean (h_s / |h_s| - h_t / |h_t|)^2`` over rows and elements.

    The paper sums over layers and examples; its code takes the mean over everything, as here, and its large weights
    (10 to 1000) belong to the mean. Sun et al. 2019, arXiv 1908.09355.
    """
    ours, theirs = normalize(at_least_float32(student), dim=-1), normalize(at_least_float32(teacher.detach()), dim=-1)
    return mean_squared_error(ours, theirs, reduction=reduction)


class CosineDistance(RowLoss):
    """:func:`cosine_distance` of rows."""

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each row."""
        return cosine_distance(student, target, "none")


class MeanSquaredError(RowLoss):
    """:func:`mean_squared_error` of rows."""

    def __init__(self, half: bool = False) -> None:
        super().__init__()
        self.half = half

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the squared difference of each row."""
        return mean_squared_error(student, target, self.half, "none")


class NormalisedMSE(RowLoss):
    """:func:`normalised_mse` of rows."""

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the squared difference of the normalised rows."""
        return normalised_mse(student, target, "none")
