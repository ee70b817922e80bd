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
