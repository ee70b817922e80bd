"""Selecting the rows that count, before any softmax: nothing is ever multiplied by 0 after a mean."""

from torch import Tensor


def select_rows(values: Tensor, mask: Tensor) -> Tensor:
    """Return the rows ``[N, ...]`` of ``values`` ``[B, S, ...]`` where ``mask`` ``[B, S]`` is true."""
    if values.shape[: mask.dim()] != mask.shape:
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit values of shape {tuple(values.shape)}")
    return values[mask.bool()]
