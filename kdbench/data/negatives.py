"""Rows of other classes, for losses that push away from them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kdbench.data.corruption import IGNORED
from kdbench.data.noise import uniform
from kdbench.errors import UserError

_NEGATIVE = 2  # what a random number is drawn for


class Negatives:
    """Draws K rows of another class for each row, none of them twice.

    A row without a label (``-100``) is of no other row's class.

    Args:
        labels: the class of every row.
        count: K.

    Raises:
        UserError: a class has fewer than K rows outside of it.
    """

    def __init__(self, labels: Sequence[int], count: int) -> None:
        self.count = count
        self.order = np.argsort(labels, kind="stable")
        """The rows, class by class."""
        ordered = np.asarray(labels)[self.order]
        alone = ordered == IGNORED
        places = np.arange(len(ordered))
        begin = np.where(alone, places, np.searchsorted(ordered, ordered))
        size = np.where(alone, 1, np.searchsorted(ordered, ordered, side="right") - begin)
        self.begin, self.size = np.empty_like(begin), np.empty_like(size)
        self.begin[self.order], self.size[self.order] = begin, size  # of each row's class, in that order
        if (fewest := len(ordered) - int(size.max())) < count:
            raise UserError(
                f"data.negatives asks for {count} rows of other classes, and one class has {fewest} of them: lower it."
            )

    def __call__(self, seed: int, rows: Sequence[int] | np.ndarray, draws: Sequence[int] | np.ndarray) -> Tensor:
        """Return the numbers of the drawn rows, int64 ``[B, K]``, a pure function of the seed, each row and its draw."""
        begin, size = self.begin[rows][:, None], self.size[rows][:, None]
        others = np.arange(len(self.order) - size.min())
        keys = uniform(seed, np.asarray(rows)[:, None], np.asarray(draws)[:, None], _NEGATIVE, others)
        keys[others >= len(self.order) - size] = np.inf
        chosen = np.argpartition(keys, self.count - 1, axis=1)[:, : self.count]
        return torch.from_numpy(self.order[chosen + size * (chosen >= begin)])
