"""Retrieval: at which rank a query finds the one candidate that is its own, among all candidates of a corpus."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

CHUNK = 1024  # queries whose scores against all candidates are held at once


def gold_ranks(scores: Tensor, gold: Tensor | None = None) -> Tensor:
    """Return the rank ``r_q = |{c : s_qc >= s_q,gold}|`` of each query's own candidate, from 1, int64 ``[Q]``.

    Of candidates with equal scores the own one comes last, so that a network that gives all texts one vector finds nothing.

    Args:
        scores: ``[Q, C]``, more is better.
        gold: the number of each query's candidate ``[Q]``; default: the diagonal.

    Raises:
        ValueError: the shapes do not fit, a candidate is none of 0 .. C-1, or a score is NaN.
    """
    queries, candidates = scores.shape if scores.dim() == 2 else (-1, -1)
    gold = torch.arange(max(queries, 0), device=scores.device) if gold is None else gold
    if gold.shape != (queries,):
        raise ValueError(f"Expected scores [Q, C] and a candidate for each query [Q], not {[*scores.shape]}.")
    if queries and not (int(gold.min()) >= 0 and int(gold.max()) < candidates):
        raise ValueError(f"The candidates must lie in 0..{candidates - 1}.")
    if scores.isnan().any():
        raise ValueError("The scores contain NaN, which has no rank.")
    return (scores >= scores.gather(1, gold[:, None])).sum(1)


def rank_scores(ranks: Tensor, cutoffs: Sequence[int] = (1, 10)) -> dict[str, Tensor]:
    """Return means over queries of functions of their ranks ``[Q]``, float64; NaN without queries.

    - ``mrr``: ``1 / r``, which with one right answer is also the average precision;
    - ``ndcg``: ``1 / log2(1 + r)``, to which the discounted gain comes with one right answer;
    - ``recall_k`` for each cutoff k: ``r <= k``.
    """
    ranks = ranks.double()
    found = {"mrr": (1 / ranks).mean(), "ndcg": (1 / torch.log2(1 + ranks)).mean()}
    return found | {f"recall_{k}": (ranks <= k).double().mean() for k in cutoffs}


class RetrievalScore(Metric):
    """:func:`rank_scores` of pairs of vectors by their cosine: every first one seeks its second among those of all pairs."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    vectors: list[Tensor]
    width: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("vectors", [], dist_reduce_fx="cat")  # flat: a process without pairs has no width to gather
        self.add_state("width", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, pairs: Tensor) -> None:
        """Add pairs ``[N, 2, D]``; raises ValueError on other shapes."""
        if pairs.dim() != 3 or pairs.shape[1] != 2:
            raise ValueError(f"Expected pairs of vectors [N, 2, D], not {[*pairs.shape]}.")
        self.vectors.append(normalize(pairs.detach().float(), dim=-1).flatten())
        self.width = torch.full_like(self.width, pairs.shape[2])

    def compute(self) -> dict[str, Tensor]:
        """`mrr`, `ndcg`, `recall_1` and `recall_10`, 0 to 1; NaN when there were no pairs."""
        flat = dim_zero_cat(self.vectors) if len(self.vectors) else torch.empty(0, device=self.device)
        first, second = flat.double().reshape(-1, 2, max(int(self.width), 1)).unbind(1)
        own = torch.arange(len(first), device=flat.device)
        ranks = [
            gold_ranks(queries @ second.T, gold)
            for queries, gold in zip(first.split(CHUNK), own.split(CHUNK), strict=True)
        ]
        return rank_scores(torch.cat(ranks))
