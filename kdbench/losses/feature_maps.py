"""Feature maps of a student against a teacher's: hints, attention, and levels that are read together.

Throughout: maps ``[B, C, H, W]`` of the same images, or vectors ``[B, C]``, which count as maps of one place; computed in
float32 at least; the teacher without gradient. A loss of several levels takes lists, from the first stage to the last. All
raise ValueError for maps that do not belong together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from kdbench.losses.base import at_least_float32
from kdbench.losses.hints import mean_squared_error

Level = Tensor | Sequence[Tensor]


def attention_transfer(student: Tensor, teacher: Tensor, power: int = 2) -> Tensor:
    """``mean over images and places of (Q_s - Q_t)^2``, Q the mean over channels of ``f^power``, at length 1.

    Where the sizes differ, the larger map is averaged down to the smaller one before it is raised to the power. It does not
    see a positive factor of a map. Zagoruyko and Komodakis 2017, arXiv 1612.03928; the mean over places is that of their code.
    """
    student, teacher = _maps(student, teacher)
    size = [min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    ours, theirs = (averaged(each, size).pow(power).mean(1).flatten(1) for each in (student, teacher))
    return mean_squared_error(normalize(ours), normalize(theirs))


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of two maps of one shape and of what is left of them in 4, 2 and 1 places a side.

    ``[mse(f_s, f_t) + sum_k 2^-k mse(pool f_s, pool f_t)] / (1 + sum_k 2^-k)``; only pools smaller than the map count, and
    k = 1, 2, ... numbers those. Chen et al. 2021, arXiv 2104.09044.
    """
    student, teacher = _maps(student, teacher)
    total, weight, weights = mean_squared_error(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            weight /= 2
            weights += weight
            pools = (averaged(each, (size, size)) for each in (student, teacher))
            total = total + weight * mean_squared_error(*pools)
    return total / weights


def averaged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return means over nearly equal parts, ``[B, C, *size]``, as adaptive average pooling does.

    Part i of n places in m parts is from ``floor(i n / m)`` to ``ceil((i + 1) n / m)``. Torch's own form has no deterministic
    gradient on a GPU.
    """
    for dim, parts in zip((2, 3), size, strict=True):
        places = maps.shape[dim]
        if places != parts:
            ends = [(i * places // parts, -(-(i + 1) * places // parts)) for i in range(parts)]
            maps = torch.cat([maps.narrow(dim, first, end - first).mean(dim, True) for first, end in ends], dim)
    return maps


class AttentionTransfer(nn.Module):
    """:func:`attention_transfer`, summed over the levels; its weight is 1000 for the stages behind the stem."""

    takes_rows: bool = False
    compares_rows: bool = False

    def __init__(self, power: int = 2) -> None:
        super().__init__()
        if power < 1:
            raise ValueError(f"power is at least 1, got {power}")
        self.power = power

    def forward(self, student: Level, teacher: Level) -> Tensor:
        """Return the sum over the levels of both."""
        pairs = zip(*_levels(student, teacher), strict=True)
        return sum(attention_transfer(ours, theirs, self.power) for ours, theirs in pairs)


class MapHint(nn.Module):
    """``mean (r(f_s) - f_t)^2`` over all elements, summed over the levels: FitNets' hint for maps, of weight 100.

    The regressor r of each level (:func:`regressor`) is made at the first call, trained with the student and not exported.
    Romero et al. 2015, arXiv 1412.6550, who train the hint before the labels; here, as in both public code bases of the
    comparison, with them.
    """

    takes_rows: bool = False
    compares_rows: bool = True  # by its batch normalisation

    def __init__(self) -> None:
        super().__init__()
        self.regressors = nn.ModuleList()

    def forward(self, student: Level, teacher: Level) -> Tensor:
        """Return the sum over the levels of both."""
        pairs = [_maps(*pair) for pair in zip(*_levels(student, teacher), strict=True)]
        if not self.regressors:
            self.regressors.extend(_placed(regressor(ours, theirs), ours) for ours, theirs in pairs)
        return sum(
            mean_squared_error(each(ours.to(_dtype(each))), theirs)
            for each, (ours, theirs) in zip(self.regressors, pairs, strict=True)
        )


def regressor(student: Tensor, teacher: Tensor) -> nn.Sequential:
    """Return a convolution, batch normalisation and a rectifier that bring a student's map to a teacher's shape.

    A student's map twice as large meets 3x3 with stride 2, one half as large a transposed 4x4 with stride 2, any other a
    convolution without padding of the size ``1 + H_S - H_T`` by ``1 + W_S - W_T``, 1x1 for equal sizes.

    Raises:
        ValueError: the student's map is smaller than the teacher's, and not half as large.
    """
    ours, theirs = student.shape[2:], teacher.shape[2:]
    widths = student.shape[1], teacher.shape[1]
    if all(s == 2 * t for s, t in zip(ours, theirs, strict=True)):
        convolution = nn.Conv2d(*widths, 3, stride=2, padding=1)
    elif all(2 * s == t for s, t in zip(ours, theirs, strict=True)):
        convolution = nn.ConvTranspose2d(*widths, 4, stride=2, padding=1)
    elif all(s >= t for s, t in zip(ours, theirs, strict=True)):
        convolution = nn.Conv2d(*widths, [1 + s - t for s, t in zip(ours, theirs, strict=True)])
    else:
        raise ValueError(f"no regressor brings a map of {tuple(ours)} to one of {tuple(theirs)}: choose other stages")
    return nn.Sequential(convolution, nn.BatchNorm2d(widths[1]), nn.ReLU())


class ReviewedLevels(nn.Module):
    """:func:`hierarchical_context` summed over the levels, where each level of the student also tells of all deeper ones.

    From the last level to the first, ``x = BN(conv1x1(f))`` is joined with what came down, y: ``z_0 x + z_1 y`` with ``z =
    sigmoid(conv1x1([x, y]))``, at the size of x; the result goes down and, at the teacher's size, through ``BN(conv3x3)`` to
    its loss. Knowledge review (Chen et al. 2021, arXiv 2104.09044). The levels are a network's maps before the rectifier and
    at the end its pooled vector. The networks are made at the first call, trained with the student and not exported.

    The weight is 1 to 8 by the pair of networks, and rises over the first epochs: ``ramps: {weight: {start: 0, end: 1, by:
    epoch, over: 20}}``.

    Args:
        width: the most channels between the levels, which otherwise have those of the student's last level.
    """

    takes_rows: bool = False
    compares_rows: bool = True  # by its batch normalisation

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.width, self.fusions = width, nn.ModuleList()

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the sum over the levels of both, from the first to the last."""
        pairs = [_maps(*pair) for pair in zip(*_levels(student, teacher), strict=True)]
        if not self.fusions:
            width = min(self.width, pairs[-1][0].shape[1])
            for place, (ours, theirs) in enumerate(pairs, 1):
                fusion = _Fusion(ours.shape[1], width, theirs.shape[1], deepest=place == len(pairs))
                self.fusions.append(_placed(fusion, ours))
        total, deeper = 0.0, None
        for fusion, (ours, theirs) in zip(reversed(self.fusions), reversed(pairs), strict=True):
            told, deeper = fusion(ours.to(_dtype(fusion)), deeper, theirs.shape[2:])
            total = total + hierarchical_context(told, theirs)
        return total


class _Fusion(nn.Module):
    """Attention-based fusion of one level with the deeper ones, see :class:`ReviewedLevels`.

    Args:
        inputs: channels of the level.
        width: channels that go from level to level.
        outputs: channels of the teacher's level.
        deepest: whether there is no deeper level to join.
    """

    def __init__(self, inputs: int, width: int, outputs: int, deepest: bool) -> None:
        super().__init__()
        self.inward = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width))
        self.outward = nn.Sequential(nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.attention = None if deepest else nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid())
        for convolution in (self.inward[0], self.outward[0]):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, level: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the map for the teacher's level, ``[B, outputs, *size]``, and what goes on, ``[B, width, *size]``."""
        x = self.inward(level)
        if self.attention is not None:
            y = interpolate(deeper, x.shape[2:])
            z = self.attention(torch.cat([x, y], 1))
            x = x * z[:, :1] + y * z[:, 1:]
        if x.shape[2:] != size:
            x = interpolate(x, tuple(size))
        return self.outward(x), x


def _levels(student: Level, teacher: Level) -> tuple[list[Tensor], list[Tensor]]:
    """Return the levels of both as lists; a single map is one level.

    Raises:
        ValueError: there are none, or not as many on both sides.
    """
    ours, theirs = ([each] if isinstance(each, Tensor) else list(each) for each in (student, teacher))
    if not ours or len(ours) != len(theirs):
        raise ValueError(
            f"levels are matched one by one, got {len(ours)} of the student and {len(theirs)} of the teacher"
        )
    return ours, theirs


def _placed(network: nn.Module, values: Tensor) -> nn.Module:
    """Return a new network on the device of the values, and as wide as they are (float32 at least)."""
    return network.to(values.device, torch.float64 if values.dtype == torch.float64 else torch.float32)


def _dtype(network: nn.Module) -> torch.dtype:
    """Return the type of a network's weights."""
    return next(network.parameters()).dtype


def _maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return two maps ``[B, C, H, W]``, in float32 at least; a vector is a map of one place."""
    ours, theirs = (
        at_least_float32(each if each.dim() == 4 else each[..., None, None]) for each in (student, teacher.detach())
    )
    if ours.dim() != 4 or theirs.dim() != 4 or len(ours) != len(theirs):
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"feature maps are [B, C, H, W] and of the same images, got the shapes {shapes}")
    return ours, theirs
