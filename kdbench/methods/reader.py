"""Reading networks: which taps of which view, from a forward or from the store of what a teacher said before."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.data.target_file import TargetFile
from kdbench.data.targets import Column, Row, names_of
from kdbench.losses.top_k import TopK, top_k
from kdbench.methods.objective import Batch
from kdbench.models.head_rows import HeadRows, has_row_head
from kdbench.models.taps import Taps

View = Mapping[str, Tensor]


def taps_by_role(taps: Iterable[str], views: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Sort taps ``[role.]tap`` by role: ``{role: {full name: tap}}``; without a role the first one is meant.

    The full name of a tap of a role other than ``inputs`` keeps the role in front.
    """
    found: dict[str, dict[str, str]] = {}
    for name in taps:
        role, _, tap = name.partition(".")
        role, tap = (role, tap) if role in views and tap else (next(iter(views)), name)
        found.setdefault(role, {})[tap if role == "inputs" else f"{role}.{tap}"] = tap
    return found


class Reader:
    """Reads taps of one network, calling it once for each role of the batch that a tap names.

    Args:
        network: the network.
        taps: names ``[role.]tap``; without a role the network's ``inputs`` are meant.
        views: the view of the batch that serves each role.
        labelled: the field of the labels, when nothing but the logits of labelled positions is read: then the head of a
            masked language model runs on these alone, and ``logits`` come as rows ``[N, V]``.
        unpad: run the network without padding.
    """

    def __init__(
        self,
        network: nn.Module,
        taps: Iterable[str],
        views: Mapping[str, str],
        labelled: str | None = None,
        unpad: bool = False,
    ) -> None:
        self.views, self.unpad = views, unpad
        self.calls = {
            role: (names, Taps(network, list(names.values()), unpad))
            for role, names in taps_by_role(taps, views).items()
        }
        self.labelled = labelled if labelled is not None and has_row_head(network) else None
        self.head = HeadRows(network) if self.labelled is not None else None

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``{name: value}`` of every tap."""
        values: dict[str, Tensor] = {}
        for role in self.calls:
            rows = batch[self.labelled] != -100 if self.labelled is not None else None
            values |= self.read(role, batch[self.views[role]], rows)
        return values

    def read(self, role: str, view: View, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the taps of one role from one call on ``view``; ``rows`` are those that the head is to see."""
        names, taps = self.calls[role]
        if self.head is None:
            found = taps(view)
        else:
            if rows is not None and self.unpad:  # the head sees the real tokens in one row
                rows = rows[view["attention_mask"].bool()][None]
            with self.head(rows):
                found = taps(view)
        return {name: found[tap] for name, tap in names.items()}


class Known(NamedTuple):
    """What the store knows of a batch, for one role: looked up before the batch goes to the device, and moved with it."""

    names: np.ndarray
    missing: Tensor
    """The rows that have to be computed, int64 ``[M]``."""
    values: dict[str, Tensor | TopK]
    """The stored values, with zeros in the missing rows; nothing when every row is missing."""


class StoredReader:
    """Reads a teacher's taps from the store; what is missing there is computed and kept.

    The teacher is built when a row is missing for the first time, and not at all when none is. Values pass through the
    form in which they are kept also when they are fresh, so that a resumed run sees what the unbroken one saw.

    Args:
        build: makes the reader of the network.
        taps: see :class:`Reader`.
        views: see :class:`Reader`.
        columns: the column of each tap by its full name.
        dtype: in which the values are kept.
        top_k: how many logits are kept, by the full name of the tap, and the temperature of the rest's mass.
    """

    def __init__(
        self,
        build: Callable[[], Reader],
        taps: Iterable[str],
        views: Mapping[str, str],
        columns: Mapping[str, Column],
        dtype: torch.dtype = torch.float32,
        top_k: Mapping[str, tuple[int, float]] | None = None,
    ) -> None:
        self.build, self.views, self.columns = build, views, columns
        self.names = taps_by_role(taps, views)
        self.dtype, self.top_k = dtype, top_k or {}
        self.reader: Reader | None = None
        self.keeps = False
        """Whether fresh values are kept and rows are counted: in training, not in the rehearsal before it."""
        self.read_rows, self.computed_rows = 0, 0
        self.row_bytes: dict[str, float] = {}
        """What a row of each role weighs, known when something was computed in the rehearsal."""

    def look_up(self, batch: Batch) -> dict[str, Known]:
        """Return what the store knows of a batch that is still on the CPU, by role."""
        known = {}
        for role, taps in self.names.items():
            view = batch[self.views[role]]
            names = names_of(view)
            rows = {name: self.columns[name].read(names) for name in taps}
            missing = np.array([any(found[at] is None for found in rows.values()) for at in range(len(names))])
            self.read_rows += self.keeps * int((~missing).sum())
            self.computed_rows += self.keeps * int(missing.sum())
            whole = {
                name: [None if gone else row for row, gone in zip(found, missing, strict=True)]
                for name, found in rows.items()
            }
            values = {} if missing.all() else {name: _batched(found, view) for name, found in whole.items()}
            known[role] = Known(names, torch.from_numpy(np.flatnonzero(missing)), values)
        return known

    def __call__(self, batch: Batch, known: Mapping[str, Known]) -> dict[str, Tensor | TopK]:
        """Return ``{name: value}`` of every tap, on the device of the batch."""
        values: dict[str, Tensor | TopK] = {}
        for role, taps in self.names.items():
            view, found = batch[self.views[role]], known[role]
            if not len(found.missing):
                values |= found.values
                continue
            whole = not found.values
            asked = view if whole else {key: value[found.missing] for key, value in view.items()}
            if self.reader is None:
                self.reader = self.build()
            kept = {name: self._form(name, value) for name, value in self.reader.read(role, asked).items()}
            if self.keeps:
                names = found.names[found.missing.cpu().numpy()]
                for name in taps:
                    self.columns[name].add(names, _rows_of(kept[name], asked))
            else:
                weight = sum(part.nbytes for parts in kept.values() for part in parts.values())
                self.row_bytes[role] = weight / len(found.missing)
            fresh = {name: _widened(parts) for name, parts in kept.items()}
            values |= (
                fresh if whole else {name: _merged(found.values[name], fresh[name], found.missing) for name in taps}
            )
        return values

    def _form(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Return the parts of a value as they are kept."""
        if name not in self.top_k:
            return {"values": value.to(self.dtype)}
        kept = top_k(value, *self.top_k[name])
        return {"values": kept.logits.to(self.dtype), "classes": kept.classes.to(torch.int32)}


class FileReader:
    """Reads a teacher's taps from a file of targets, by the number and the draw of each row.

    Args:
        file: the targets.
        taps: names as in the file; with a role in front for views other than ``inputs``.
        views: the view of the batch that serves each role.
    """

    def __init__(self, file: TargetFile, taps: Iterable[str], views: Mapping[str, str]) -> None:
        self.file, self.views = file, views
        self.names = taps_by_role(taps, views)

    def look_up(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``{name: value}`` of every tap for a batch that is still on the CPU."""
        rows, draws = batch["id"].tolist(), batch["draw"].tolist()
        return {
            name: _batched(self.file.read(name, rows, draws), batch[self.views[role]])
            for role, taps in self.names.items()
            for name in taps
        }

    def __call__(self, batch: Batch, known: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return what was looked up, on the device of the batch."""
        return known


def _rows_of(parts: Mapping[str, Tensor], view: View) -> list[Row]:
    """Take a batch's value apart: the real tokens of each row ``[n, ...]``, or the one value of a whole row ``[1, ...]``."""
    mask = view.get("attention_mask")
    value = next(iter(parts.values()))
    if mask is None or value.dim() != 3 or value.shape[:2] != mask.shape:
        split = {name: part.cpu().split(1) for name, part in parts.items()}
    else:
        lengths = mask.sum(1).tolist()
        split = {name: part[mask.bool()].cpu().split(lengths) for name, part in parts.items()}
    return [dict(zip(split, row, strict=True)) for row in zip(*split.values(), strict=True)]


def _batched(rows: Sequence[Row | None], view: View) -> Tensor | TopK:
    """Put stored rows together as a network would have returned them; zeros in padding and in missing rows."""
    here = [row for row in rows if row is not None]
    found = torch.tensor([row is not None for row in rows])
    tokens = any(len(next(iter(row.values()))) > 1 for row in here)
    if tokens:
        found = view["attention_mask"].bool() & found[:, None]
    parts = {}
    for name, first in here[0].items():
        flat = torch.cat([row[name] for row in here])
        if bool(found.all()):
            parts[name] = flat.reshape(*found.shape, *first.shape[1:])
        else:
            parts[name] = flat.new_zeros(*found.shape, *first.shape[1:])
            parts[name][found] = flat
    return _widened(parts)


def _widened(parts: Mapping[str, Tensor]) -> Tensor | TopK:
    """Return what the objective reads: float32, and classes as indices."""
    values = parts["values"].float()
    return TopK(values, parts["classes"].long()) if "classes" in parts else values


def _merged(stored: Tensor | TopK, fresh: Tensor | TopK, missing: Tensor) -> Tensor | TopK:
    """Put fresh rows in their places among the stored ones."""
    if isinstance(stored, TopK):
        return TopK(*(_merged(ours, theirs, missing) for ours, theirs in zip(stored, fresh, strict=True)))
    return stored.index_copy(0, missing, fresh)
