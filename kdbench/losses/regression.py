"""Real-valued targets."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from kdbench.losses.base import at_least_float32, reduced


def cosine_regression(left: Tensor, right: Tensor, target: Tensor) -> Tensor:
    """Mean of ``(cos(u, v) - y)^2`` over pairs (Reimers, Gurevych 2019, arXiv 1908.10084).

    Args:
        left: ``[B, D]``.
        right: ``[B, D]``.
        target: ``[B]``, in the range of a cosine.

    Raises:
        ValueError: the shapes do not fit; broadcasting would compare pairs with the scores of others.
    """
    if left.shape != right.shape or target.shape != left.shape[:-1]:
        shapes = ", ".join(str(tuple(each.shape)) for each in (left, right, target))
        raise ValueError(f"pairs need two vectors of one width and one target each, got the shapes {shapes}")
    similarity = cosine_similarity(at_least_float32(left), at_least_float32(right), dim=-1)
    return reduced((similarity - target).square(), "rows")


class CosineRegression(nn.Module):
    """:func:`cosine_regression` of scores from 0 to ``scale``."""

    takes_rows: bool = False
    compares_rows: bool = False

    def __init__(self, scale: float = 5.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        self.scale = scale

    def forward(self, student: Sequence[Tensor], scores: Tensor) -> Tensor:
        """Return the squared error of two vectors' cosine against ``score / scale``."""
        left, right = student
        return cosine_regression(left, right, scores / self.scale)


class PairCosineMSE(nn.Module):
    """``(cos(u_s, v_s) - cos(u_t, v_t))^2``, mean over pairs: the teacher's score of two texts in the place of the gold one.

    Soft labels of a regression (Turc et al. 2019, arXiv 1908.08962, leave it open; Hinton's have no counterpart for one
    number). Student and teacher may have vectors of different widths.
    """

    takes_rows: bool = False
    compares_rows: bool = False

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the squared error of the cosine of two vectors ``[N, H]`` against that of the teacher's two."""
        (left, right), (first, second) = student, teacher
        score = cosine_similarity(at_least_float32(first.detach()), at_least_float32(second.detach()), dim=-1)
        return cosine_regression(left, right, score)
