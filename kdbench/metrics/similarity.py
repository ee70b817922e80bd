"""How alike two networks represent the same examples: centred kernel alignment of their layers.

Features may have any shape ``[N, ...]`` and any width on either side; each example counts as one vector. Computed in float64.
Kornblith et al. 2019, arXiv 1905.00414.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

FEWEST = 4
"""How many examples an unbiased estimate needs."""


def linear_cka(first: Tensor, second: Tensor) -> Tensor:
    """Linear centred kernel alignment of all examples at once, in [0, 1].

    ``|X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F)`` with the columns of X and Y centred. It does not see rotations and scales of either
    side, and tends to 1 where a layer is wider than there are examples. NaN for features that do not vary.

    Args:
        first: X, ``[N, ...]``.
        second: Y, ``[N, ...]``.

    Raises:
        ValueError: the examples are not as many on both sides.
    """
    _check_rows([first], [second], 1)
    x, y = (each.double().flatten(1) - each.double().flatten(1).mean(0) for each in (first, second))
    norm = torch.linalg.matrix_norm
    return norm(x.T @ y).square() / (norm(x.T @ x) * norm(y.T @ y))


def unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion of two linear kernels, from N examples.

    ``[tr(KL) + (1'K1)(1'L1) / ((N-1)(N-2)) - 2 (1'KL1) / (N-2)] / (N (N-3))`` with ``K = X X^T``, ``L = Y Y^T``, their
    diagonals set to 0. Its mean over batches is that of all examples, which the biased estimate's is not. Song et al. 2012.

    Args:
        first: X, ``[N, ...]``.
        second: Y, ``[N, ...]``.

    Raises:
        ValueError: the examples are under 4, or not as many on both sides.
    """
    _check_rows([first], [second], FEWEST)
    return (_centred_kernel(first) * _centred_kernel(second)).sum() / (len(first) * (len(first) - 3))


class MinibatchCKA(Metric):
    """Centred kernel alignment of every layer of a network with every layer of another, batch by batch.

    ``sum_b HSIC(K_i, L_j) / sqrt(sum_b HSIC(K_i, K_i) sum_b HSIC(L_j, L_j))`` over batches b of :func:`unbiased_hsic`: the
    estimates are averaged first, then the ratio is formed, so that batches of one size need not be large. Nguyen et al. 2021,
    arXiv 2010.15327.

    Args:
        first: how many layers the one network has.
        second: how many the other.
    """

    full_state_update = False
    is_differentiable = False
    cross: Tensor
    first_own: Tensor
    second_own: Tensor

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        if first < 1 or second < 1:
            raise ValueError(f"Two networks of at least one layer each are compared, not of {first} and {second}.")
        for name, shape in (("cross", (first, second)), ("first_own", (first,)), ("second_own", (second,))):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Add a batch: the features ``[N, ...]`` of each layer of both networks on the same N >= 4 examples.

        Raises ValueError for other shapes.
        """
        if (len(first), len(second)) != self.cross.shape:
            raise ValueError(f"Expected {tuple(self.cross.shape)} layers, not {(len(first), len(second))}.")
        _check_rows(first, second, FEWEST)
        x, y = (torch.stack([_centred_kernel(each) for each in layers]).flatten(1) for layers in (first, second))
        rows = len(first[0])
        factor = 1 / (rows * (rows - 3))
        # Not in place: a module cast to bfloat16 casts these states too, and the sums must stay float64.
        self.cross = self.cross + factor * x @ y.T
        self.first_own = self.first_own + factor * x.square().sum(1)
        self.second_own = self.second_own + factor * y.square().sum(1)

    def compute(self) -> Tensor:
        """Return the alignments ``[first, second]``, at most 1, around 0 for independent features; NaN without batches."""
        return self.cross / (self.first_own[:, None] * self.second_own).sqrt()


def _centred_kernel(features: Tensor) -> Tensor:
    """Return U ``[N, N]`` of ``K = X X^T`` without its diagonal: ``<U(K), U(L)> / (N (N-3))`` is the unbiased estimate."""
    rows = len(features)
    vectors = features.double().flatten(1)
    kernel = (vectors @ vectors.T).fill_diagonal_(0.0)
    sums = kernel.sum(0) / (rows - 2)
    centred = kernel - sums - sums[:, None] + sums.sum() / (rows - 1)
    return centred.fill_diagonal_(0.0)


def _check_rows(first: Sequence[Tensor], second: Sequence[Tensor], least: int) -> None:
    """Raise ValueError unless all features are of the same examples, and these are enough."""
    counts = {len(each) for each in (*first, *second)}
    if len(counts) > 1:
        raise ValueError(f"Expected the same examples in all layers, not {sorted(counts)} of them.")
    if min(counts) < least:
        raise ValueError(f"An alignment needs at least {least} examples, not {min(counts)}.")
