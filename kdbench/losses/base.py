"""What losses over rows share."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class RowLoss(nn.Module):
    """A loss that is the mean of one value per row; the caller has selected the rows, so padding is gone.

    ``takes_rows`` tells that student and target arrive as selected rows ``[N, ...]``, ``compares_rows`` that the loss
    compares the rows of a batch with one another.
    """

    takes_rows: bool = True
    compares_rows: bool = False

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the value of each row ``[N]``; a loss with ``fields`` is given these too, by their names."""
        raise NotImplementedError

    def forward(self, student: Tensor, target: Tensor, weights: Tensor | None = None, **fields: Tensor) -> Tensor:
        """Return the mean over rows, or ``sum(w v) / sum(w)``; no rows at all give 0 with a gradient of 0.

        Raises:
            ValueError: the weights are not one a row, or sum to nothing (seen on CPU, where looking costs no
                synchronisation).
        """
        if len(student) == 0:
            return at_least_float32(student).sum() * 0.0
        values = self.per_row(student, target, **fields)
        if weights is None:
            return values.mean()
        if weights.shape != values.shape:
            raise ValueError(f"{len(values)} rows need as many weights, got the shape {tuple(weights.shape)}")
        if weights.device.type == "cpu" and not weights.sum() > 0:
            raise ValueError("the weights of the rows sum to nothing")
        return (weights * values).sum() / weights.sum()


def check_temperature(temperature: float) -> float:
    """Return the temperature; raise ValueError unless it is positive and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive{' and finite' * (temperature > 0)}, got {temperature}")
    return temperature


def check_share(name: str, value: float) -> float:
    """Return the value of the argument ``name``; raise ValueError unless it lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a share in [0, 1], got {value}")
    return value


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Return the value of the argument ``name``; raise ValueError unless it is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {' or '.join(map(repr, choices))}, got {value!r}")
    return value


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError when the shapes differ: broadcasting would compare rows that do not belong together."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have the same shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )


def at_least_float32(values: Tensor) -> Tensor:
    """Return the values in float32 or wider: a softmax in half precision loses the tail."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def reduced(values: Tensor, reduction: str) -> Tensor:
    """Return the mean over rows (0 without rows), or the rows themselves for the reduction ``none``."""
    if check_choice("reduction", reduction, ("rows", "none")) == "none":
        return values
    return values.mean() if len(values) else values.sum()
