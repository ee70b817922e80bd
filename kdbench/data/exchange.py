"""Equal work for every rank on streaming data: at each step all ranks gather their samples and deal them anew."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed

from kdbench.data.balance import Order, deal
from kdbench.errors import UserError, nearest

Sample = dict[str, np.ndarray]
Layout = dict[str, np.dtype]


class _Header(NamedTuple):
    """What the ranks tell each other of their batches first; it has one size, as a gather needs."""

    samples: int
    entries: int
    width: int
    layout: int


_ENDED, _FAILED = _Header(0, 0, 0, 0), _Header(-1, 0, 0, 0)


@dataclass(frozen=True)
class _Parcel:
    """One rank's batch as it travels, or why there is none."""

    header: _Header
    layout: Layout = field(default_factory=dict)
    packed: np.ndarray = field(default_factory=lambda: np.empty(0, np.int16))
    failure: Exception | None = None


class Exchange:
    """The batches of each rank's stream, dealt anew over the ranks so that no rank has to wait for another.

    At every step each rank reads one batch of its own stream, all ranks gather the batches of all, and each keeps its
    share of this global batch: equally many samples of about equal total length, the longest first. A background
    thread reads, exchanges and collates one step ahead, so that it costs no time while training takes longer. Where
    every rank knows the lengths of all rows, :class:`kdbench.data.samplers.GroupedBatches` does the same without
    communication.

    The union over the ranks stays the same, and so does what one global step computes, if the loss is normalised over
    the ranks (``CrossEntropy(over_ranks=True)``) and nothing random depends on the place of a sample.

    All ranks construct it at the same point of the program with the same options, because it opens a gloo group of its
    own: the thread must not get between the collectives of the training. They iterate it equally often and get equally
    many batches: the pass ends when the first stream does, and what the others have read for that step is dropped, as
    is the step read ahead when a pass is broken off. Without torch.distributed the only rank keeps all its samples.

    Args:
        batches: this rank's stream: lists of samples, none empty, such as a DataLoader with ``collate_fn=list``. A
            sample is a dict of 1-D arrays of integers, one number being an array of one, with the same fields of the
            same types on all ranks. Should the batches differ in size, all of them are dealt together, and the last
            of the last rank's samples, fewer than there are ranks, are left out.
        by: the field whose length is that of the sample.
        order: how the samples are dealt, see :func:`kdbench.data.balance.deal`.
        cost: ``(a, b)``: a sample of length l is ``a l + b l^2`` work, see there.
        collate: makes the batch that is handed out of this rank's samples; runs in the thread.

    Raises:
        UserError: in iterating: a sample is not as described, or the stream of another rank has failed. When reading
            fails on one rank, all raise: none is left waiting.

    Source: Zeng et al. 2022, arXiv 2208.08124 (padding exchange).
    """

    def __init__(
        self,
        batches: Iterable[list[Sample]],
        by: str = "input_ids",
        order: Order = "snake",
        cost: tuple[float, float] = (1.0, 0.0),
        collate: Callable[[list[Sample]], Any] = list,
    ) -> None:
        self.batches, self.by, self.order, self.cost, self.collate = batches, by, order, cost, collate
        self.group, self.rank, self.world = None, 0, 1
        if distributed.is_initialized():
            self.group = distributed.new_group(backend="gloo")
            self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def __iter__(self) -> Iterator[Any]:
        """Yield this rank's batch of every step, while the thread prepares the next one."""
        steps, end = map(self.collate, self._steps()), object()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="exchange") as ahead:
            coming = ahead.submit(next, steps, end)
            while (batch := coming.result()) is not end:
                coming = ahead.submit(next, steps, end)
                yield batch

    def _steps(self) -> Iterator[list[Sample]]:
        stream = chain.from_iterable([self.batches])  # opened by the first read, which tells the others if it fails
        while True:
            mine = _read(stream, self.by)
            headers = self._meet(mine)
            if _ENDED in headers:
                return
            sizes, values = self._gather_packed(mine, headers)
            sizes = sizes[: len(sizes) - len(sizes) % self.world]
            lengths = sizes[:, list(mine.layout).index(self.by)]
            yield unpack(deal(lengths, self.world, self.order, self.cost)[self.rank], mine.layout, sizes, values)

    def _meet(self, mine: _Parcel) -> list[_Header]:
        """Return the headers of all ranks; raise on all of them if any cannot go on."""
        headers = [_Header(*each.tolist()) for each in self._gather(torch.tensor(mine.header))]
        if mine.failure is not None:
            raise mine.failure
        if _FAILED in headers:
            raise UserError(f"The stream of rank {headers.index(_FAILED)} failed: mend the error that this rank shows.")
        if _ENDED not in headers and len({each.layout for each in headers}) > 1:
            raise UserError("The ranks' samples differ in their fields or types: give all ranks samples of one kind.")
        return headers

    def _gather_packed(self, mine: _Parcel, headers: list[_Header]) -> tuple[np.ndarray, np.ndarray]:
        """Return sizes and values of the samples of all ranks, rank by rank, as :func:`unpack` takes them."""
        room = np.zeros(max(each.entries * each.width for each in headers), np.uint8)
        room[: mine.packed.nbytes] = mine.packed.view(np.uint8)
        sizes, values = [], []
        for header, received in zip(headers, self._gather(torch.from_numpy(room)), strict=True):
            packed = received.numpy()[: header.entries * header.width].view(f"i{header.width}")
            head, rest = np.split(packed, [header.samples * len(mine.layout)])
            sizes.append(head.reshape(header.samples, len(mine.layout)))
            values.append(rest)
        return np.concatenate(sizes), np.concatenate(values)

    def _gather(self, mine: Tensor) -> list[Tensor]:
        if self.group is None:
            return [mine]
        of_all = [torch.empty_like(mine) for _ in range(self.world)]
        distributed.all_gather(of_all, mine, group=self.group)
        return of_all


def _read(stream: Iterator[list[Sample]], by: str) -> _Parcel:
    """Pack the next batch; an error is only noted, because the other ranks wait and must hear of it first."""
    try:
        batch = next(stream, None)
        if batch is None:
            return _Parcel(_ENDED)
        layout = layout_of(batch, by)
        packed = pack(batch, layout)
    except Exception as error:
        return _Parcel(_FAILED, failure=error)
    return _Parcel(_Header(len(batch), packed.size, packed.itemsize, zlib.crc32(repr(layout).encode())), layout, packed)


def layout_of(samples: Sequence[Sample], by: str) -> Layout:
    """Return the types of the samples' fields, by name in alphabetical order.

    Raises:
        UserError: there are no samples, or they are not dicts of 1-D integer arrays of one layout with a field ``by``.
    """
    if not samples:
        raise UserError("A stream gave a batch without samples: leave such batches out.")
    layout = {name: samples[0][name].dtype for name in sorted(samples[0])}
    if by not in layout:
        raise UserError(f"The samples have no field '{by}' to take their length from.{nearest(by, layout)}")
    for sample in samples:
        if {name: values.dtype for name, values in sample.items()} != layout:
            raise UserError("The samples of a batch differ in their fields or types: give them all the same.")
        for name, values in sample.items():
            if values.ndim != 1 or not np.can_cast(values.dtype, np.int64):
                raise UserError(
                    f"The field '{name}' of a sample has the type {values.dtype} and the shape {values.shape}: "
                    "make it a 1-D array of integers that fit in int64."
                )
    return layout


def pack(samples: Sequence[Sample], layout: Layout) -> np.ndarray:
    """Return samples as one 1-D array: the length of every field of every sample, then the values in that order.

    Its type is the narrowest of int16, int32 and int64 that holds them all.
    """
    pieces = [sample[name] for sample in samples for name in layout]
    entries = np.concatenate([[len(piece) for piece in pieces], *pieces])
    low, high = entries.min(), entries.max()
    fitting = (kind for kind in map(np.iinfo, ("i2", "i4", "i8")) if kind.min <= low and high <= kind.max)
    return entries.astype(next(fitting).dtype)


def unpack(rows: np.ndarray, layout: Layout, sizes: np.ndarray, values: np.ndarray) -> list[Sample]:
    """Return some of the packed samples in their own types.

    Args:
        rows: which samples, ``[B]``.
        layout: types of the F fields by name.
        sizes: length of every field of every sample, ``[N, F]``.
        values: all values in that order.
    """
    ends = np.cumsum(sizes).reshape(sizes.shape)
    return [
        {
            name: values[end - size : end].astype(kind)
            for (name, kind), size, end in zip(layout.items(), sizes[row], ends[row], strict=True)
        }
        for row in rows
    ]
