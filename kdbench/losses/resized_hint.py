"""Hints between networks of two kinds: maps or tokens of a student, brought to the size and width of a teacher's."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from kdbench.losses.hints import mean_squared_error
from kdbench.losses.projection import Projection


class ResizedHint(nn.Module):
    """``sum_k mean (W_k resize(f_k) - t_k)^2`` over levels k: means over images, places and channels.

    Tokens count as the map of their square grid, without class tokens. The student's map is averaged down to the size of the
    teacher's, or repeated up to it; W_k is a learnt 1x1 convolution without bias. Romero et al. 2015, arXiv 1412.6550, as Hao
    et al. 2023, arXiv 2310.19444, have to bend it for networks of different kinds.

    Args:
        levels: how many.
    """

    takes_rows: bool = False
    compares_rows: bool = False

    def __init__(self, levels: int = 4) -> None:
        super().__init__()
        self.projections = nn.ModuleList(Projection() for _ in range(levels))

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the sum over the levels, features ``[B, C, H, W]`` or ``[B, N, C]`` each.

        Raises:
            ValueError: as many levels are not given, or features are neither maps nor a square grid of tokens.
        """
        if not len(student) == len(teacher) == len(self.projections):
            raise ValueError(
                f"the hint has {len(self.projections)} levels, got {len(student)} of the student and {len(teacher)} of the "
                "teacher: list as many taps, or say 'levels'"
            )
        return sum(map(self._level, self.projections, student, teacher))

    @staticmethod
    def _level(projection: Projection, student: Tensor, teacher: Tensor) -> Tensor:
        target = as_map(teacher)
        places = adaptive_avg_pool2d(as_map(student), target.shape[2:]).flatten(2).mT
        return mean_squared_error(projection(places, target.shape[1]), target.flatten(2).mT)


def as_map(features: Tensor) -> Tensor:
    """Return ``[B, C, H, W]`` of maps, or of tokens ``[B, N, C]``: a square grid row by row, behind two class tokens at most.

    Raises:
        ValueError: the features are neither.
    """
    if features.dim() == 4:
        return features
    side = math.isqrt(features.shape[1]) if features.dim() == 3 else 0
    if side == 0 or features.shape[1] - side**2 > 2:
        raise ValueError(f"features are maps [B, C, H, W] or a square grid of tokens, got {tuple(features.shape)}")
    return features[:, -(side**2) :].mT.unflatten(2, (side, side))
