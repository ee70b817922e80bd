"""What losses over rows share."""

import torch
from torch import Tensor, nn


class RowLoss(nn.Module):
    """A loss that is the mean of one value per row; the caller has selected the rows, so padding is gone."""

    takes_rows: bool = True
    compares_rows: bool = False

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the value of each row ``[N]``."""
        raise NotImplementedError

    def forward(self, student: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the mean over rows, or ``sum(w v) / sum(w)``; no rows at all give 0 with a gradient of 0."""
        if len(student) == 0:
            return student.sum() * 0.0
        values = self.per_row(student, target)
        if weights is None:
            return values.mean()
        if weights.device.type == "cpu" and weights.sum() <= 0:
            raise ValueError("the weights of the rows sum to nothing")
        return (weights * values).sum() / weights.sum()


def check_temperature(temperature: float) -> float:
    """Return the temperature; raise ValueError unless it is positive."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return temperature


def at_least_float32(values: Tensor) -> Tensor:
    """Return the values in float32 or wider: a softmax in half precision loses the tail."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def reduced(values: Tensor, reduction: str) -> Tensor:
    """Return the mean over rows, or the rows themselves for the reduction ``none``."""
    if reduction not in ("rows", "none"):
        raise ValueError(f"reduction is 'rows' or 'none', got '{reduction}'")
    return values.mean() if reduction == "rows" else values
