"""Points of mixtures of Gaussians: data whose density, score and exact denoiser are known at every level of noise.

The ring is the data set of the small-scale proofs for step distillation of diffusion models; its denoiser is
``FromConfig {architecture: ExactDenoiser, config: {means, stds, weights}}``.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import ndtri

from kdbench.data.noise import uniform

MODES, RADIUS, STD = 8, 1.0, 0.08
_STREAMS = {"train": 1, "validation": 2, "test": 3}

Row = dict[str, Any]


class DensityMixture:
    """``sum_k w_k N(m_k, d^2 I)`` in any number of dimensions.

    Args:
        means: of the components, ``[K][D]``.
        std: d.
        weights: of the components, summing to 1 after division by their sum; equal by default.
        seed: of the points; each split has a stream of its own.
    """

    def __init__(
        self, means: Sequence[Sequence[float]], std: float, weights: Sequence[float] | None = None, seed: int = 0
    ) -> None:
        self.means, self.std, self.seed = np.array(means, dtype=float), std, seed
        weights = np.ones(len(self.means)) if weights is None else np.array(weights, dtype=float)
        if self.means.ndim != 2 or weights.shape != self.means.shape[:1] or std <= 0 or weights.min() <= 0:
            raise ValueError("a mixture has means [K][D] and as many weights, and weights and std are above 0")
        self.weights = weights / weights.sum()

    @classmethod
    def ring(cls, modes: int = MODES, radius: float = RADIUS, std: float = STD, seed: int = 0) -> "DensityMixture":
        """Return equally frequent Gaussians on a circle, the first at the angle 0."""
        angles = 2 * math.pi * np.arange(modes) / modes
        return cls(radius * np.stack([np.cos(angles), np.sin(angles)], -1), std, seed=seed)

    @property
    def deviation(self) -> float:
        """The standard deviation of a coordinate, the mean over coordinates of the variances: ``sigma_data``."""
        spread = self.means - self.weights @ self.means
        return math.sqrt(self.std**2 + float(self.weights @ np.square(spread).mean(-1)))

    def rows(self, split: str, count: int) -> list[Row]:
        """Return ``{"point", "mode"}``: D numbers, and ``m0`` to ``m(K-1)``; row i depends on the seed, the split and i alone."""
        size = self.means.shape[1]
        drawn = uniform(self.seed, _STREAMS[split], np.arange(count)[:, None], np.arange(size + 1))
        modes = np.minimum(np.searchsorted(self.weights.cumsum(), drawn[:, 0]), len(self.weights) - 1)
        points = self.means[modes] + self.std * ndtri(drawn[:, 1:])
        return [
            {"point": point, "mode": f"m{mode}"} for point, mode in zip(points.tolist(), modes.tolist(), strict=True)
        ]


def ring(split: str, count: int) -> list[Row]:
    """Return points of the ring of 8 Gaussians."""
    return DensityMixture.ring().rows(split, count)
