"""How well bounds on mutual information estimate one that is known."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kdbench.losses.contrastive import mutual_information_bound
from kdbench.metrics.pictures import Picture
from kdbench.studies.study import Findings, Study

DIMENSIONS = 20


def mutual_information_study(
    information: float, alphas: Sequence[float], batches: int, size: int = 64, seed: int = 0
) -> dict[str, list[float]]:
    """Means and standard deviations over batches of the leave-one-out bound at each alpha, with the optimal critic.

    Pairs ``x ~ N(0, I)``, ``y = rho x + sqrt(1 - rho^2) e`` in 20 dimensions with ``rho = sqrt(1 - exp(-2 I / 20))`` share
    exactly I nats; ``f_ij = log p(y_j | x_i) - log p(y_j)`` and q = 1. All alphas see the same batches. As alpha rises
    from 0 (unbiased) to 1 (at most ``log(size - 1)``) mean and standard deviation both fall once I is large.

    Args:
        information: I in nats, positive.
        alphas: each in [0, 1].
        batches: how many are drawn, at least 2.
        size: K, the pairs in a batch, at least 2.
        seed: of the pairs; the same seed gives the same numbers.

    Returns:
        ``alpha``, ``mean`` and ``std``, lists with one number an alpha, in nats.

    Raises:
        ValueError: an argument is out of its range.

    Poole et al. 2019, arXiv 1905.06922.
    """
    if not 0 < information < math.inf:
        raise ValueError(f"the information must be positive and finite, in nats, got {information}")
    if batches < 2 or size < 2:
        raise ValueError(f"a spread needs 2 batches of 2 pairs or more, got {batches} of {size}")
    generator = torch.Generator().manual_seed(seed)
    rho = math.sqrt(-math.expm1(-2 * information / DIMENSIONS))
    found = []
    for _ in range(batches):
        x, noise = torch.randn(2, size, DIMENSIONS, generator=generator, dtype=torch.float64)
        critic = optimal_critic(x, rho * x + math.sqrt(1 - rho**2) * noise, rho)
        found.append([float(mutual_information_bound(critic, alpha)) for alpha in alphas])
    values = torch.tensor(found, dtype=torch.float64)
    return {"alpha": [float(alpha) for alpha in alphas], "mean": values.mean(0).tolist(), "std": values.std(0).tolist()}


def optimal_critic(x: Tensor, y: Tensor, rho: float) -> Tensor:
    """``f_ij = log p(y_j | x_i) - log p(y_j)`` ``[K, K]`` of standard normals ``[K, D]`` with the correlation ``rho``.

    ``sum_d [-1/2 log(1 - rho^2) - (y_jd - rho x_id)^2 / (2 (1 - rho^2)) + y_jd^2 / 2]``.
    """
    rest = 1 - rho**2
    squares = (y[None] - rho * x[:, None]).square().sum(-1)
    return -x.shape[1] / 2 * math.log(rest) - squares / (2 * rest) + y.square().sum(-1) / 2


class InformationBounds(Study):
    """:func:`mutual_information_study` at several amounts of information, as ``mean_<I>_<100 alpha>`` and ``std_...``.

    Args:
        information: the amounts, in nats; whole numbers give the best names.
        alphas: see :func:`mutual_information_study`.
        batches: see :func:`mutual_information_study`.
        size: see :func:`mutual_information_study`.
    """

    def __init__(self, information: list[float], alphas: list[float], batches: int = 150, size: int = 64) -> None:
        self.information, self.alphas, self.batches, self.size = information, alphas, batches, size

    def __call__(self, seed: int) -> Findings:
        """Draw the pairs with the seed and compute the bounds."""
        numbers: dict[str, float] = {}
        lines: dict[str, dict[str, list[float]]] = {"mean": {}, "std": {}}
        for each in self.information:
            found = mutual_information_study(each, self.alphas, self.batches, self.size, seed)
            for kind, own in lines.items():
                own[f"I = {each:g}"] = found[kind]
                numbers |= {
                    f"{kind}_{each:g}_{round(100 * alpha)}": value
                    for alpha, value in zip(self.alphas, found[kind], strict=True)
                }
        titles = {"mean": "Estimated information", "std": "Its spread over batches"}
        pictures = {kind: Picture(title, "alpha", "nats", self.alphas, lines[kind]) for kind, title in titles.items()}
        return Findings(numbers, pictures)
