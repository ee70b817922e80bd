"""The order of the rows: batches of like length, drawn anew each epoch, resumable at any batch."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
from torch import Generator
from torch.utils.data import DataLoader, Sampler

from kdbench.data import balance
from kdbench.data.noise import uniform
from kdbench.errors import UserError

Deal = Literal[balance.Order, "interleaved"]


class GroupedBatches(Sampler[list[tuple[int, int]]]):
    """A batch sampler of ``(row, draw)`` pairs whose batches hold rows of like length.

    Each epoch is a pure function of ``(seed, epoch)``: shuffle the rows, cut them in chunks of ``group`` rounds of
    ``batch_size * world`` rows, sort each chunk by length, cut it in rounds, shuffle the rounds, and deal each round
    to the ranks, by default so that their rows sum to about the same length. So the ranks hold equally many rows of
    like length at every step, have about equal work and take equally many steps, and the union of their batches is
    the batch that one process would see with ``batch_size * world``; every rank plans this alone, without
    communication. At most ``world - 1`` rows an epoch are left out for that (``drop_last``: the short round too),
    other rows each time.

    Without ``shuffle`` (evaluation) the rows come in order, or by length where ``lengths`` are given (stable), and are
    dealt to the ranks one by one: every row exactly once, so that ranks may differ by one row and by one batch.

    Args:
        rows: number of rows.
        batch_size: rows in a batch of one rank.
        lengths: length of each row, ``[rows]``; None: batches are not grouped.
        group: rounds in a chunk; 1 shuffles without grouping.
        shuffle: draw a new order each epoch.
        seed: names all orders.
        drop_last: leave out the short last round; only with ``shuffle``.
        draws: number of random versions of a row: ``draw = epoch mod draws``; None: a new one each epoch. Evaluation
            wants 1, for the same noise each time.
        rank: this process, from 0.
        world: number of processes.
        deal: how a shuffled round is dealt to the ranks: by length in an order of :func:`kdbench.data.balance.deal`, or
            ``interleaved``: row by row as they come, which is also what happens where all rows are equally long or
            there are no lengths. ``group`` 1 and ``dealt`` are the padding exchange of Zeng et al. 2022, arXiv
            2208.08124, which sorts inside one global batch only.

    Raises:
        UserError: a batch size below 1, or too few rows for one batch.
        ValueError: ``lengths`` does not have ``rows`` entries, ``drop_last`` without ``shuffle``, or an unknown
            ``deal``.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        lengths: Sequence[int] | np.ndarray | None = None,
        group: int = 50,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        draws: int | None = None,
        rank: int = 0,
        world: int = 1,
        deal: Deal = "snake",
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: a batch needs at least one row.")
        if lengths is not None and len(lengths) != rows:
            raise ValueError(f"{len(lengths)} lengths for {rows} rows")
        if drop_last and not shuffle:
            raise ValueError("drop_last leaves rows out, and without shuffle always the same ones")
        if deal not in get_args(Deal):
            raise ValueError(f"deal is {', '.join(map(repr, get_args(Deal)))}, got {deal!r}")
        needed = batch_size * world if drop_last else world
        if shuffle and rows < needed:
            raise UserError(f"{rows} rows do not fill one batch ({needed} needed): lower batch_size or the devices.")
        self.rows, self.per_batch, self.group, self.shuffle, self.seed = rows, batch_size, group, shuffle, seed
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.draws, self.rank, self.world = draws, rank, world
        by_length = world > 1 and lengths is not None and len(np.unique(lengths)) > 1
        self.deal = deal if by_length else "interleaved"
        self.kept = rows - rows % needed if shuffle else rows
        self.epoch = 0
        self.start = 0

    @property
    def sampler(self) -> "GroupedBatches":
        """The object whose ``set_epoch`` Lightning calls: it looks at ``loader.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``; a start position belongs to its own epoch and is forgotten in another."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        """Batches of this rank in a full epoch, wherever the epoch starts."""
        if self.shuffle:
            return -(-self.kept // (self.per_batch * self.world))
        return -(-len(range(self.rank, self.rows, self.world)) // self.per_batch)

    def __iter__(self) -> Iterator[Any]:
        """Yield this rank's batches of the chosen epoch from position ``start`` on."""
        draw = self.epoch if self.draws is None else self.epoch % self.draws
        batches = (self._shuffled() if self.shuffle else self._in_order())[self.start :]
        return (self.asked(batch, draw) for batch in batches)

    def asked(self, rows: np.ndarray, draw: int) -> Any:
        """Return a batch as it is asked of the data: ``(row, draw)`` for each of its rows."""
        return [(row, draw) for row in rows.tolist()]

    def order(self) -> np.ndarray:
        """Return the rows of the chosen epoch in the order of their draw, ``[kept]``: all in random order, each once."""
        return np.argsort(uniform(self.seed, self.epoch, 0, np.arange(self.rows)))[: self.kept]

    def _shuffled(self) -> list[np.ndarray]:
        size = self.per_batch * self.world
        order = self.order()
        if self.lengths is not None and self.group > 1:
            chunk = np.arange(len(order)) // (size * self.group)
            order = order[np.lexsort((self.lengths[order], chunk))]
        rounds = np.argsort(uniform(self.seed, self.epoch, 1, np.arange(len(self))))
        return [self._dealt(order[size * each : size * (each + 1)]) for each in rounds]

    def _dealt(self, rows: np.ndarray) -> np.ndarray:
        """Return this rank's share of a round."""
        if self.deal == "interleaved":
            return rows[self.rank :: self.world]
        return rows[balance.deal(self.lengths[rows], self.world, self.deal)[self.rank]]

    def _in_order(self) -> list[np.ndarray]:
        order = np.arange(self.rows) if self.lengths is None else np.argsort(self.lengths, kind="stable")
        mine = order[self.rank :: self.world]
        return [mine[first : first + self.per_batch] for first in range(0, len(mine), self.per_batch)]


class WholeBatches(GroupedBatches):
    """The same batches as ``(rows, draw)`` with rows ``[B]``, for data that look a batch up at once."""

    def asked(self, rows: np.ndarray, draw: int) -> tuple[np.ndarray, int]:
        """Return the rows of a batch and their draw."""
        return rows, draw


class ResumableLoader(DataLoader):
    """A data loader over ``GroupedBatches`` that remembers its place in the epoch.

    The place counts the batches handed out, not those that workers have prepared. After ``load_state_dict`` the next
    pass of that epoch starts behind them; every other pass starts at the beginning. The length is always that of the
    full epoch. Lightning saves and restores the state with its checkpoints.
    """

    batch_sampler: GroupedBatches
    _place: tuple[int, int] = (0, 0)

    def __iter__(self) -> Iterator[Any]:
        """Yield the rest of the epoch; a generator, because Lightning asks for it before it sets the epoch."""
        if self.generator is None:
            self.generator = Generator()  # else each pass draws the workers' seed from the global random state
        order = self.batch_sampler
        self._place = (order.epoch, order.start)
        batches = super().__iter__()
        order.start = 0
        for batch in batches:
            epoch, position = self._place
            self._place = (epoch, position + 1)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that were handed out."""
        epoch, position = self._place
        now = self.batch_sampler.epoch
        return {"epoch": now, "position": position if epoch == now else 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a place that ``state_dict`` told."""
        self._place = (state["epoch"], state["position"])
        self.batch_sampler.epoch, self.batch_sampler.start = self._place
