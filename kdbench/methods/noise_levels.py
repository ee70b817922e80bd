"""The noise levels that denoisers and score networks are trained on."""

import abc
from typing import Literal

import torch
from torch import Generator, Tensor

from kdbench.models.schedules import SCHEDULES, karras_grid, sigma_of


class NoiseLevels(abc.ABC):
    """A distribution of noise levels ``sigma``."""

    @abc.abstractmethod
    def draw(self, count: int, generator: Generator) -> Tensor:
        """Return levels ``[count]``, float32, on the generator's device."""


class LogNormalLevels(NoiseLevels):
    """``ln sigma ~ N(mean, std^2)`` (Karras et al. 2022, arXiv 2206.00364, table 1).

    Args:
        mean: of ln sigma; -1.2 is for images in [-1, 1].
        std: of ln sigma.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        if not std > 0:
            raise ValueError(f"the std of ln sigma is above 0, got {std}")
        self.mean, self.std = mean, std

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Return log-normal levels."""
        return (torch.randn(count, generator=generator, device=generator.device) * self.std + self.mean).exp()


class TableLevels(NoiseLevels, abc.ABC):
    """Some of a table's levels, each as likely.

    Args:
        table: levels of noise ``[n]``.
        first: the number of the first that is drawn.
        last: of the last; by default the table's last.

    Raises:
        ValueError: the numbers are not in the table, or out of order.
    """

    def __init__(self, table: Tensor, first: int = 0, last: int | None = None) -> None:
        last = len(table) - 1 if last is None else last
        if not 0 <= first <= last < len(table):
            raise ValueError(f"of {len(table)} noise levels first <= last are numbers from 0, got {first} and {last}")
        self.table = table[first : last + 1].float()

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Return levels of the table."""
        places = torch.randint(len(self.table), (count,), generator=generator, device=generator.device)
        return self.table.to(generator.device)[places]


class KarrasLevels(TableLevels):
    """Levels of Karras's grid, counted from the smallest (DMD2's code, arXiv 2405.14867).

    Args:
        levels: of the whole grid.
        smallest: the smallest.
        largest: the largest.
        rho: see :func:`~kdbench.models.schedules.karras_grid`.
        first: the number of the first that is drawn: 20 of 1,000 for a generator, 0 for the score of what it makes.
        last: of the last: 980 and 999.
    """

    def __init__(
        self,
        levels: int = 1000,
        smallest: float = 0.002,
        largest: float = 80.0,
        rho: float = 7.0,
        first: int = 0,
        last: int | None = None,
    ) -> None:
        super().__init__(karras_grid(levels, smallest, largest, rho)[:-1].flip(0), first, last)


class TimestepLevels(TableLevels):
    """The levels ``s / a`` of the timesteps of a schedule, as DDPM is trained on (Ho et al. 2020, arXiv 2006.11239).

    Args:
        schedule: ``linear``, ``scaled_linear`` or ``cosine``, of 1,000 timesteps.
        first: the first timestep.
        last: the last one.
    """

    def __init__(
        self, schedule: Literal["linear", "scaled_linear", "cosine"] = "linear", first: int = 0, last: int = 999
    ) -> None:
        super().__init__(sigma_of(SCHEDULES[schedule]()), first, last)
