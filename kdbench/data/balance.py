"""Equal work for every rank: who trains on which rows of a global batch, planned from their lengths alone."""

import heapq
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

Lengths = Sequence[float] | np.ndarray
Order = Literal["snake", "dealt", "greedy"]


def deal(lengths: Lengths, ranks: int, order: Order = "snake", cost: tuple[float, float] = (1.0, 0.0)) -> np.ndarray:
    """Deal the rows of one global batch to the ranks, equally many to each, so that all have about equal work.

    The rows are sorted by length, longest first, and laid out in stripes of one row per rank:

    - ``dealt``: rank r takes place r of every stripe. This is the paper's dealing; rank 0 always has the most work.
    - ``snake``: as ``dealt``, but every second stripe is dealt from the last rank to the first.
    - ``greedy``: without stripes, each row goes to the rank with the least work so far that has a place left.

    Args:
        lengths: length of each row, ``[R * B]``; the ranks' own batches one after another where there are any (the
            sort is stable, so rows of one length keep this order).
        ranks: number of ranks, R.
        order: how the sorted rows are dealt.
        cost: ``(a, b)``, not negative: a row of length l is ``a l + b l^2`` work (linear layers, attention). It
            decides only ``greedy``: the others go by the order of the lengths, which is that of the work.

    Returns:
        the rows of each rank, longest first, integers ``[R, B]``.

    Raises:
        ValueError: the rows cannot be dealt equally, an unknown order, or a negative cost.

    Source: Zeng et al. 2022, arXiv 2208.08124 (padding exchange); snake and greedy are ours.
    """
    if order not in get_args(Order):
        raise ValueError(f"order is {', '.join(map(repr, get_args(Order)))}, got {order!r}")
    lengths = np.asarray(lengths, dtype=np.float64)
    if len(lengths) % ranks:
        raise ValueError(f"{len(lengths)} rows cannot be dealt equally to {ranks} ranks")
    longest_first = np.argsort(-lengths, kind="stable")
    if order == "greedy":
        return _greedy(longest_first, work(lengths[longest_first], cost), ranks)
    stripes = longest_first.reshape(-1, ranks)
    if order == "snake":
        stripes[1::2] = stripes[1::2, ::-1]
    return stripes.T


def _greedy(rows: np.ndarray, of_row: np.ndarray, ranks: int) -> np.ndarray:
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    with_room = [(0.0, rank) for rank in range(ranks)]  # a heap of (work so far, rank)
    for row, more in zip(rows.tolist(), of_row.tolist(), strict=True):
        so_far, rank = heapq.heappop(with_room)
        dealt[rank].append(row)
        if len(dealt[rank]) < len(rows) // ranks:
            heapq.heappush(with_room, (so_far + more, rank))
    return np.array(dealt, dtype=np.int64)


def work(lengths: Lengths, cost: tuple[float, float] = (1.0, 0.0)) -> np.ndarray:
    """Return the work of each row, ``a l + b l^2`` for the cost ``(a, b)``; raise ValueError when one is negative."""
    linear, quadratic = cost
    if linear < 0 or quadratic < 0:
        raise ValueError(f"cost is (a, b) of a l + b l^2, neither negative, got {cost}")
    lengths = np.asarray(lengths, dtype=np.float64)
    return linear * lengths + quadratic * lengths**2


def imbalance(lengths: Lengths, dealing: np.ndarray, cost: tuple[float, float] = (1.0, 0.0)) -> float:
    """Return the work of the busiest rank over the mean of all: ``max_r t_r / mean_r t_r``, 1 at best.

    All ranks wait for the busiest one, so that a step takes this much longer than it need.

    Args:
        lengths: length of each row, ``[N]``, some above 0.
        dealing: the rows of each rank, ``[R, B]``.
        cost: ``(a, b)``: a row of length l is ``a l + b l^2`` work.
    """
    totals = work(lengths, cost)[dealing].sum(axis=1)
    return float(totals.max() / totals.mean())


def imbalance_bound(lengths: Lengths, ranks: int, cost: tuple[float, float] = (1.0, 0.0)) -> float:
    """Return what :func:`imbalance` never exceeds after :func:`deal`, whatever the order and the batch size.

    ``1 + (w_max - w_min) / (B mean(w))`` for the work w of a row: two ranks never differ by more than the longest and
    the shortest row do. In sorted stripes, the differences within each add up to no more than that. A greedy rank's
    lead over another in its first j rows does not grow if its j-th row is dealt after the other's (it is no longer),
    and is at most the difference of the two if before (the rank had no more work until then).

    Args:
        lengths: length of each row of the global batch, ``[R * B]``, some above 0.
        ranks: number of ranks, R.
        cost: ``(a, b)``: a row of length l is ``a l + b l^2`` work; ``greedy`` must be dealt with the same one.

    Source: Zeng et al. 2022, arXiv 2208.08124, for their dealing.
    """
    rows = work(lengths, cost)
    return float(1 + ranks * np.ptp(rows) / rows.sum())


class LengthGroup(NamedTuple):
    """Consecutive sequences of a packed batch that one attention call serves, padded to one length."""

    first_sequence: int
    first_token: int
    sequences: int
    tokens: int
    padded_length: int


def length_groups(lengths: Lengths, sizes: Sequence[int] = (128, 256, 384, 512)) -> list[LengthGroup]:
    """Cut a batch into runs of sequences whose lengths round up to the same size.

    A batch sorted by length has at most as many groups as there are sizes.

    Args:
        lengths: length of each sequence in the order of the batch, ``[B]``.
        sizes: the lengths that attention is computed for, ascending.

    Returns:
        the groups in the order of the batch; together they hold every sequence once.

    Raises:
        ValueError: a sequence is longer than the largest size.

    Source: Zeng et al. 2022, arXiv 2208.08124 (grouped multi-stream attention).
    """
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > sizes[-1]:
        raise ValueError(f"a sequence of {lengths.max()} tokens is longer than the largest size, {sizes[-1]}")
    padded = np.asarray(sizes)[np.searchsorted(sizes, lengths)]
    first = np.flatnonzero(np.diff(padded, prepend=0))
    sequences = np.diff(first, append=len(lengths))
    tokens = np.add.reduceat(lengths, first) if len(first) else lengths
    columns = (first, np.cumsum(tokens) - tokens, sequences, tokens, padded[first])
    return [LengthGroup(*group) for group in zip(*(column.tolist() for column in columns), strict=True)]
