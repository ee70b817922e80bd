"""Shifting and scaling the channels of an activation, exactly undone by the weights that read it.

``X' = (X - z) / s``, ``W' = W s`` column by column and ``b' = b + W z`` give ``X' W'^T + b' = X W^T + b``. Channels far from the
others then no longer decide the grid of all of them. Wei et al. 2023, arXiv 2304.09145 (Outlier Suppression+); Xiao et al.
2023, arXiv 2211.10438 (SmoothQuant).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from kdbench.compression.quantisers import Quantiser

Outputs = Callable[[Tensor, Tensor], Tensor]
"""What a layer makes of an activation ``[..., C]`` and a weight ``[out, C]``."""


def channel_shift(activations: Tensor) -> Tensor:
    """Return ``z_j = (max_j + min_j) / 2`` ``[C]`` of activations ``[N, C]``: afterwards every channel is symmetric around 0."""
    return (activations.amax(0) + activations.amin(0)) / 2


def channel_scale(activations: Tensor, threshold: float) -> Tensor:
    """Return ``s_j = max(1, max|X_j| / t)`` ``[C]`` of shifted activations ``[N, C]``: no channel exceeds t, those below stay."""
    return (activations.abs().amax(0) / threshold).clamp(min=1.0)


def smoothing_scale(activations: Tensor, weight: Tensor, share: float = 0.5) -> Tensor:
    """Return SmoothQuant's ``s_j = max|X_j|^a / max|W_j|^(1-a)`` ``[C]`` of activations ``[N, C]`` and a weight ``[out, C]``."""
    return (activations.abs().amax(0) ** share / weight.abs().amax(0).clamp(min=1e-5) ** (1 - share)).clamp(min=1e-5)


class Threshold(NamedTuple):
    """The threshold of a scale that was found."""

    value: float
    loss: float
    """What is lost of the layer's output with it."""
    scale: Tensor
    """``s`` ``[C]``."""


def search_threshold(
    activations: Tensor,
    weight: Tensor,
    quantise_activations: Quantiser,
    quantise_weight: Callable[[Tensor], Tensor],
    outputs: Outputs | None = None,
    least: float = 1.0,
) -> Threshold:
    """Return the threshold t whose scale loses least of the layer's output when both sides are quantised.

    ``L(t) = mean over tokens of sum over outputs of (f(Q_a(X / s), Q_w(W s)) - f(X, W))^2`` on a grid from ``max|X|`` down to
    ``least``, of ``max(100, max|X| / 0.5)`` steps; the first of equals. One range for all activations is ``[-t, t]``, not what
    is seen; parts of their own have what is seen.

    Args:
        activations: shifted, ``[N, C]``, without padding.
        weight: ``[out, C]``; of several layers that read the same activations, one above the other.
        quantise_activations: Q_a.
        quantise_weight: Q_w, seen anew for every t.
        outputs: f; by default ``X W^T``.
        least: the lowest threshold; the official code has 1, and 0.1 for LLaMA.
    """
    outputs = outputs or (lambda x, w: x @ w.T)
    whole = outputs(activations, weight)
    highest = float(activations.abs().max())
    thresholds = np.linspace(highest, least, max(100, int(highest / 0.5)) + 1) if highest > least else [highest]
    found: Threshold | None = None
    for threshold in thresholds:
        loss, scale = _lost(
            activations, weight, float(threshold), quantise_activations, quantise_weight, outputs, whole
        )
        if found is None or loss < found.loss:
            found = Threshold(float(threshold), loss, scale)
    return found


def _lost(
    activations: Tensor,
    weight: Tensor,
    threshold: float,
    quantise_activations: Quantiser,
    quantise_weight: Callable[[Tensor], Tensor],
    outputs: Outputs,
    whole: Tensor,
) -> tuple[float, Tensor]:
    scale = channel_scale(activations, threshold)
    smaller = activations / scale
    if quantise_activations.part == "tensor":
        end = smaller.new_tensor(threshold)
        smaller = quantise_activations.grid.rounded(smaller, -end, end)
    else:
        smaller = quantise_activations(smaller)
    lost = outputs(smaller, quantise_weight(weight * scale)) - whole
    return float(lost.square().sum(-1).mean()), scale
