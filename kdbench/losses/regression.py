"""Real-valued targets."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from kdbench.losses.base import at_least_float32


def cosine_regression(left: Tensor, right: Tensor, target: Tensor) -> Tensor:
    """Mean of ``(cos(u, v) - y)^2`` over pairs (Reimers, Gurevych 2019, arXiv 1908.10084).

    Args:
        left: ``[B, D]``.
        right: ``[B, D]``.
        target: ``[B]``, in the range of a cosine.
    """
    similarity = cosine_similarity(at_least_float32(left), at_least_float32(right), dim=-1)
    return (similarity - target).square().mean()


class CosineRegression(nn.Module):
    """:func:`cosine_regression` of scores from 0 to ``scale``."""

    takes_rows = False
    compares_rows = False

    def __init__(self, scale: float = 5.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        self.scale = scale

    def forward(self, student: Sequence[Tensor], scores: Tensor) -> Tensor:
        """Return the squared error of two vectors' cosine against ``score / scale``."""
        left, right = student
        return cosine_regression(left, right, scores / self.scale)
