"""The terms of an objective on rows that nothing was learnt from."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric


class TermMeans(Metric):
    """The mean of each term over all rows, each batch with the weight of its rows, and their weighted sum.

    A term that compares the rows of a batch depends on the batches; evaluate with one size of batch to compare.

    Args:
        terms: the names of the terms.
    """

    full_state_update = False

    def __init__(self, terms: list[str]) -> None:
        super().__init__()
        self.terms = terms
        self.add_state("sums", torch.zeros(len(terms) + 1, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], rows: int) -> None:
        """Count a batch of ``rows`` rows with the value of each term and its weight in the objective."""
        values = [terms[name].detach().double() for name in self.terms]
        weighted = (weights[name] * value for name, value in zip(self.terms, values, strict=True))
        total = sum(weighted, self.sums.new_zeros(()))
        self.sums += rows * torch.stack([total, *values])
        self.rows += rows

    def compute(self) -> dict[str, Tensor]:
        """Return ``objective`` and every term; NaN without rows."""
        return dict(zip(["objective", *self.terms], self.sums / self.rows, strict=True))
