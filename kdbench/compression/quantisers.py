"""Affine quantisation, simulated: values are rounded to the grid of an integer type and kept as real numbers.

``q = clamp(round(x / S) + z, q_min, q_max)`` and ``x^ = (q - z) S``, with halves rounded to even. Symmetric: ``q`` in ``-(2^(b-1)
- 1) .. 2^(b-1) - 1``, ``z = 0`` and ``S`` the largest absolute value over ``2^(b-1) - 1``. Asymmetric: ``q`` in ``0 .. 2^b - 1``,
the range made to contain 0, ``S`` the range over ``2^b - 1`` and ``z = clamp(-round(min / S))``. 0 is always exact.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from kdbench.errors import UserError, nearest

Part = Literal["tensor", "channel", "token", "group"]


@dataclass(frozen=True)
class Grid:
    """The integers that values are rounded to.

    Args:
        bits: b, 2 to 16.
        symmetric: around 0.

    Raises:
        UserError: the number of bits is out of its range.
    """

    bits: int = 8
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise UserError(f"A quantiser has 2 to 16 bits, not {self.bits}.")

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest and the highest integer."""
        highest = 2 ** (self.bits - 1) - 1
        return (-highest, highest) if self.symmetric else (0, 2**self.bits - 1)

    def steps(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return step ``S`` and zero point ``z`` of ranges, each of their shape; a range of nothing has the least step."""
        lowest, highest = self.ends
        least = torch.finfo(low.dtype).eps
        if self.symmetric:
            step = (torch.maximum(low.abs(), high.abs()) / ((highest - lowest) / 2)).clamp(min=least)
            return step, torch.zeros_like(step)
        low, high = low.clamp(max=0), high.clamp(min=0)
        step = ((high - low) / (highest - lowest)).clamp(min=least)
        return step, (lowest - (low / step).round()).clamp(lowest, highest)

    def rounded(self, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return the values on the grid of a range that broadcasts to them."""
        step, zero = self.steps(low, high)
        integers = ((values / step).round() + zero).clamp(*self.ends)
        return (integers - zero) * step


@dataclass(frozen=True)
class Quantiser:
    """A grid, and the parts of a tensor that have a range of their own.

    Args:
        bits: see :class:`Grid`.
        symmetric: see :class:`Grid`.
        part: ``tensor``: one range; ``channel``: each row of a weight; ``token``: each vector of the last dimension of an
            activation, which is the same; ``group``: each ``size`` neighbours in the last dimension.
        size: of a group.

    Raises:
        UserError: the part is unknown, or a group has no size.
    """

    bits: int = 8
    symmetric: bool = True
    part: Part = "tensor"
    size: int | None = None

    def __post_init__(self) -> None:
        Grid(self.bits, self.symmetric)
        if self.part not in get_args(Part):
            raise UserError(f"A quantiser has no part '{self.part}'.{nearest(self.part, get_args(Part))}")
        if (self.part == "group") != (self.size is not None):
            raise UserError("A quantiser of groups has a size, and no other has.")

    @property
    def grid(self) -> Grid:
        """The integers."""
        return Grid(self.bits, self.symmetric)

    def __call__(self, values: Tensor) -> Tensor:
        """Return the values on the grid of their own lowest and highest.

        Raises:
            ValueError: the last dimension is no multiple of the group.
        """
        if self.part == "tensor":
            return self.grid.rounded(values, values.min(), values.max())
        if self.part == "group":
            if values.shape[-1] % self.size:
                raise ValueError(f"{values.shape[-1]} values cannot be cut into groups of {self.size}")
            groups = values.unflatten(-1, (-1, self.size))
        else:
            groups = values
        found = self.grid.rounded(groups, groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True))
        return found.view_as(values)
