"""Classes that are Gaussians around the leaves of a tree, with labels some of which are wrong.

It is the task of the small-scale proof for Cui et al. 2024 (arXiv 2402.17110). Bayes' rule is known, so the best possible
score is too.
"""

from typing import Any

import numpy as np
from scipy.special import logsumexp

BRANCHES, LEAVES, INPUTS = 4, 5, 32
CLASSES = BRANCHES * LEAVES
_STREAMS = {"train": 1, "validation": 2, "test": 3}

Row = dict[str, Any]


class GaussianTree:
    """Twenty equally frequent classes in 32 dimensions: five around each of four branches.

    ``x = b_(c // 5) + l_c + e`` for class c with ``b ~ N(0, 0.6^2 I)``, ``l ~ N(0, 0.4^2 I)`` and ``e ~ N(0, I)``: classes
    of one branch are near, those of two branches far.

    Args:
        seed: of the means; the rows of a split have a stream of their own.
        noise: the share of training rows whose label is one of the 19 wrong ones, any alike.
    """

    def __init__(self, seed: int = 0, noise: float = 0.1) -> None:
        if not 0 <= noise < 1:
            raise ValueError(f"noise is a share in [0, 1), got {noise}")
        self.seed, self.noise = seed, noise
        generator = np.random.Generator(np.random.PCG64([seed, 0]))
        branches = 0.6 * generator.normal(size=(BRANCHES, INPUTS))
        self.means = branches.repeat(LEAVES, axis=0) + 0.4 * generator.normal(size=(CLASSES, INPUTS))

    def rows(self, split: str, count: int) -> list[Row]:
        """Return ``{"features", "label", "clean"}``; row i depends on the seed, the split and i alone.

        ``features``: 32 numbers; ``label``: ``c00`` to ``c19``; ``clean``: the true class, which ``label`` is outside training.
        """
        return [self._row(split, index) for index in range(count)]

    def _row(self, split: str, index: int) -> Row:
        generator = np.random.Generator(np.random.PCG64([self.seed, _STREAMS[split], index]))
        clean = int(generator.integers(CLASSES))
        features = self.means[clean] + generator.normal(size=INPUTS)
        wrong = split == "train" and generator.random() < self.noise
        label = (clean + 1 + int(generator.integers(CLASSES - 1))) % CLASSES if wrong else clean
        return {"features": features.tolist(), "label": f"c{label:02d}", "clean": f"c{clean:02d}"}

    def log_posterior(self, features: np.ndarray) -> np.ndarray:
        """Return ``log p(class | x)`` ``[N, 20]`` of features ``[N, 32]``; its argmax is the most accurate classifier."""
        joint = -0.5 * np.square(features[:, None] - self.means).sum(-1)
        return joint - logsumexp(joint, axis=-1, keepdims=True)

    def best_scores(self, rows: list[Row]) -> dict[str, float]:
        """Return what Bayes' rule reaches on the true classes of ``rows``.

        ``accuracy`` and ``branch_accuracy`` (of the four branches) from 0 to 1, ``cross_entropy`` in nats.
        """
        posterior = self.log_posterior(np.array([row["features"] for row in rows]))
        clean = np.array([int(row["clean"][1:]) for row in rows])
        branches = np.exp(posterior).reshape(len(rows), BRANCHES, LEAVES).sum(-1)
        return {
            "accuracy": float((posterior.argmax(-1) == clean).mean()),
            "branch_accuracy": float((branches.argmax(-1) == clean // LEAVES).mean()),
            "cross_entropy": float(-posterior[np.arange(len(rows)), clean].mean()),
        }


def vectors(split: str, count: int) -> list[Row]:
    """Return rows of the tree."""
    return GaussianTree().rows(split, count)
