"""Tiles: packed sequences laid side by side, so that one call of an ordinary attention serves many of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdbench.models.packed import PackedBatch

Layout = Callable[[PackedBatch], list[list[list[int]]]]
"""Deals the sequences of a batch out: a list of tiles, each a list of rows, each a list of sequence numbers."""


@dataclass(frozen=True, eq=False)
class Tile:
    """Some sequences side by side.

    Attributes:
        tokens: ``[n * L]``, the packed token in each slot.
        rows: n.
        mask: who sees whom, as :func:`visibility` returns it.
    """

    tokens: Tensor
    rows: int
    mask: Tensor | None


def tiling(packed: PackedBatch, layout: Layout, slopes: Tensor | None, dtype: torch.dtype) -> tuple[list[Tile], Tensor]:
    """Return the tiles of a layout, and the slot of each packed token, ``[T]``, counted over all tiles.

    A free slot holds the batch's first token: in a row of one sequence the mask hides it from all queries, in a row of
    several the free slots see one another, so that no query is without a key. Nothing reads their outputs.
    """
    lengths = np.array(packed.lengths)
    ends = lengths.cumsum()
    starts = ends - lengths
    sequence = np.arange(len(lengths)).repeat(lengths)
    position = np.arange(ends[-1]) - starts.repeat(lengths)
    device = packed.place.device
    tiles, home, slots = [], np.empty(ends[-1], dtype=np.int64), 0
    for rows in layout(packed):
        filled = [np.concatenate([np.arange(starts[each], ends[each]) for each in row]) for row in rows]
        width = max(map(len, filled))
        real = np.arange(width) < np.array([[len(row)] for row in filled])
        tokens = np.zeros(real.shape, dtype=np.int64)
        tokens[real] = np.concatenate(filled)
        home[tokens[real]] = slots + np.flatnonzero(real)
        slots += real.size
        visible = None
        if any(len(row) > 1 for row in rows):
            owner = np.where(real, sequence[tokens], -1)
            visible = torch.from_numpy(owner[:, None, :, None] == owner[:, None, None, :]).to(device)
        elif not real.all():
            visible = torch.from_numpy(real[:, None, None]).to(device)
        mask = visibility(visible, torch.from_numpy(position[tokens]).to(device), slopes, dtype)
        tiles.append(Tile(torch.from_numpy(tokens.ravel()).to(device), len(rows), mask))
    return tiles, torch.from_numpy(home).to(device)


def visibility(visible: Tensor | None, position: Tensor, slopes: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the mask of scaled dot-product attention: who sees whom, or with slopes ALiBi's ``-slope |i - j|``.

    Args:
        visible: bool, ``[n, 1, L, L]`` or for keys alone ``[n, 1, 1, L]``; None where all see all.
        position: ``[n, L]``, where each token stands in its sequence.
        slopes: ``[heads]``, or None.
        dtype: of the queries.

    Returns:
        ``visible`` without slopes; with them ``[n, heads, L, L]``, -inf where ``visible`` is false.
    """
    if slopes is None:
        return visible
    distance = (position.unsqueeze(-1) - position.unsqueeze(-2)).abs().unsqueeze(1)
    bias = -slopes.view(-1, 1, 1) * distance
    return (bias if visible is None else bias.masked_fill(~visible, -torch.inf)).to(dtype)


def length_buckets(packed: PackedBatch, most: int) -> list[list[list[int]]]:
    """Cut the sequences, sorted by length, into up to ``most`` tiles, the buckets; a row holds one sequence.

    Of all cuts the one that leaves the fewest padded pairs, ``sum over buckets of n l_max^2``, is taken: by dynamic
    programming over the different lengths, of which each bucket holds a run.
    """
    order = np.argsort(packed.lengths, kind="stable")
    lengths, counts = np.unique(packed.lengths, return_counts=True)
    ends = counts.cumsum()
    pairs = (ends - (ends - counts)[:, None]) * lengths**2.0  # [i, j]: of a bucket that holds the lengths i to j
    pairs[np.tril_indices(len(lengths), -1)] = np.inf
    fewest, choices = pairs[0], []
    for _ in range(min(most, len(lengths)) - 1):
        after_cut = fewest[:-1, None] + pairs[1:]  # [i, j]: the last bucket begins behind the length i, ends with j
        choices.append(after_cut.argmin(axis=0))
        fewest = after_cut.min(axis=0)
    cuts, last = [], len(lengths) - 1
    for choice in reversed(choices):
        last = choice[last]
        cuts.append(ends[last])
    return [[[sequence] for sequence in bucket.tolist()] for bucket in np.split(order, cuts[::-1])]


def first_fit_rows(packed: PackedBatch, width: int | None = None) -> list[list[list[int]]]:
    """Lay the sequences, longest first, each into the first row that has room for it; all rows are one tile.

    Args:
        packed: the batch.
        width: the room of a row; that of the longest sequence by default.
    """
    width = width or packed.max_length
    rows: list[list[int]] = []
    room: list[int] = []
    for sequence in sorted(range(packed.batch_size), key=lambda sequence: -packed.lengths[sequence]):
        length = packed.lengths[sequence]
        row = next((number for number, free in enumerate(room) if free >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(sequence)
        room[row] -= length
    return [rows]
