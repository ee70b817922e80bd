"""The store of teacher targets: what a teacher says of a row is computed once and read by every later run, arm, seed and job.

A *column* holds the values of one tap of one teacher in a folder named by its *key*, a hash of all that decides them: the
teacher's weights, the tap, the precision, the form in which they are kept. The *name* of a row is a hash of what the teacher
sees of it, padding left out. Another tokenizer, data set, cut or masking makes other names, so a stale target cannot even be
found; two runs that show a teacher the same text share what it said.

Rows lie in *blocks*: safetensors files, written whole, never changed, each named by the hash of its own bytes and carrying
its column's key. So any number of processes read and write at once without a lock, and a block that is cut short, altered or
foreign is found out when it is first read, removed, and its rows are computed again.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdbench.files import whole_file, write_text

log = logging.getLogger(__name__)

CARD = "card.json"
BLOCK_BYTES = 32 * 2**20
"""Rows are gathered in memory until they fill a block; a kill loses no more than these, and they are computed again."""

Row = Mapping[str, Tensor]
"""The parts of one row's value by name, ``[n, ...]`` each: n tokens, or n = 1 for a value of the whole row."""


def names_of(view: Mapping[str, Tensor]) -> np.ndarray:
    """Return the name of each row of a view, uint64 ``[B, 2]``: 128 bits of BLAKE2b of its real content.

    Where the view has an ``attention_mask`` ``[B, S]``, only what it marks counts, so that padding changes no name.
    """
    mask = view["attention_mask"].bool() if "attention_mask" in view else None
    names = np.empty((len(next(iter(view.values()))), 2), dtype=np.uint64)
    parts = [(key, value.contiguous()) for key, value in sorted(view.items()) if key != "attention_mask"]
    for row in range(len(names)):
        digest = hashlib.blake2b(digest_size=16)
        for key, value in parts:
            own = value[row]
            if mask is not None and value.shape[: mask.dim()] == mask.shape:
                own = own[mask[row]]
            digest.update(f"{key} {own.dtype} {tuple(own.shape)} ".encode())
            digest.update(own.numpy().tobytes())
        names[row] = np.frombuffer(digest.digest(), dtype=np.uint64)
    return names


class Column:
    """The stored values of one tap of one teacher.

    Args:
        home: the folder of all columns.
        decides: all that decides the values, as JSON; its hash is the column's key.
        about: what people want to know of the column (:func:`columns` shows it); no part of the key.
        limit: bytes that all columns together may take; the least recently used columns make room, and when that is not
            enough, rows are no longer kept (and are computed each time).
    """

    def __init__(self, home: Path, decides: Mapping[str, Any], about: Mapping[str, Any], limit: int) -> None:
        text = json.dumps(decides, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:20]
        self.home, self.folder, self.limit = home, home / self.key, limit
        self._card = json.dumps({**about, "decides": decides}, indent=1) + "\n"
        self.closed: str | None = None
        """Why nothing more is kept, when something went wrong."""
        self._blocks: dict[str, _Block] = {}
        self._index = _Index.of({})
        self._waiting: dict[bytes, Row] = {}
        self._waiting_bytes = 0
        self._lock: IO[bytes] | None = None
        if self.folder.is_dir():
            self._enter()
        self.refresh()

    def __len__(self) -> int:
        """Rows that can be read."""
        return len(self._index.first)

    @property
    def bytes(self) -> int:
        """The size of the blocks."""
        return sum(block.path.stat().st_size for block in self._blocks.values() if block.path.exists())

    def refresh(self) -> None:
        """Look for blocks that other processes have written or removed."""
        present = {path.name: path for path in self.folder.glob("*.safetensors")} if self.folder.is_dir() else {}
        if present.keys() == self._blocks.keys():
            return
        known, self._blocks = self._blocks, {}
        for name, path in sorted(present.items()):
            self._blocks[name] = known.get(name) or _Block(path)
            if name not in known and not self._blocks[name].open(self.key):
                self._discard(name)
        self._index = _Index.of(self._blocks)

    def read(self, names: np.ndarray) -> list[Row | None]:
        """Return the rows of these names ``[B, 2]``, None where one is not stored."""
        rows: list[Row | None] = []
        for block, place in self._index.find(names):
            row = None
            if block is not None and block in self._blocks:
                if self._blocks[block].sound():
                    row = self._blocks[block].row(place)
                else:
                    self._discard(block)
                    self._index = _Index.of(self._blocks)
                    return self.read(names)
            rows.append(row)
        return rows

    def add(self, names: np.ndarray, rows: Sequence[Row]) -> None:
        """Keep rows; those that are stored already are left alone."""
        if self.closed is not None:
            return
        for name, (block, _), row in zip(names, self._index.find(names), rows, strict=True):
            if block is None and name.tobytes() not in self._waiting:
                kept = {part: value.detach().to("cpu", copy=True) for part, value in row.items()}
                self._waiting[name.tobytes()] = kept
                self._waiting_bytes += sum(value.nbytes for value in kept.values())
        if self._waiting_bytes >= BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait as a block, but for those that another process has written meanwhile."""
        self.refresh()
        waiting, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        keys = list(waiting)
        names = np.frombuffer(b"".join(keys), dtype=np.uint64).reshape(-1, 2)
        keys = [key for key, (block, _) in zip(keys, self._index.find(names), strict=True) if block is None]
        if not keys or self.closed is not None:
            return
        content = _encode(self.key, keys, [waiting[key] for key in keys])
        self._enter()
        try:
            self._make_room(len(content))
            with whole_file(self.folder / f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors") as file:
                file.write(content)
        except OSError as error:
            self._close(error)
        self.refresh()

    def release(self) -> None:
        """Let others prune the column."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _enter(self) -> None:
        """Say that the column is used; whoever prunes waits for none of its users."""
        if self._lock is not None or self.closed is not None:
            return
        try:
            write_text(self.folder / CARD, self._card)
            self._lock = (self.folder / ".lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_SH)  # shared by all users; who prunes wants it alone
        except OSError as error:
            self._close(error)

    def _make_room(self, needed: int) -> None:
        excess = sum(each.bytes for each in columns(self.home)) + needed - self.limit
        if excess > 0 and prune(self.home, excess, spare=self.key) < excess:
            raise OSError(errno.EDQUOT, f"the limit of {self.limit / 1e9:.1f} GB is reached")

    def _close(self, error: OSError) -> None:
        self.closed = error.strerror or str(error)
        log.warning(
            "Teacher targets are no longer kept in '%s': %s. The run goes on without.", self.folder, self.closed
        )

    def _discard(self, name: str) -> None:
        block = self._blocks.pop(name)
        with contextlib.suppress(OSError):  # a store that may only be read keeps it; nobody believes it
            block.path.unlink(missing_ok=True)
        log.warning(
            "The block '%s' of teacher targets is damaged: it is removed, its rows are computed anew.", block.path
        )


class _Block:
    """One file of rows; opened at once, its bytes compared with its name when the first row is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checked: bool | None = None

    def open(self, key: str) -> bool:
        """Map the file, and tell whether it can be read at all and belongs to the column."""
        try:
            with safe_open(self.path, framework="pt") as file:
                if (file.metadata() or {}).get("key") != key:
                    return False
                self.names = file.get_tensor("names").numpy().view(np.uint64)
                self.ends = file.get_tensor("ends").numpy()
                named = [name for name in file.keys() if name.startswith("part.")]  # noqa: SIM118 - no mapping
                self.parts = {name.removeprefix("part."): file.get_tensor(name) for name in named}
        except (SafetensorError, OSError, ValueError):
            return False
        return True

    def sound(self) -> bool:
        """Tell whether the file holds the bytes that it was written with; looked at once."""
        if self._checked is None:
            try:
                with self.path.open("rb") as file:
                    self._checked = hashlib.file_digest(file, "sha256").hexdigest()[:32] == self.path.stem
            except OSError:
                self._checked = False
        return self._checked

    def row(self, place: int) -> Row:
        """Return the parts of one row, as views of the mapped file."""
        begin = int(self.ends[place - 1]) if place else 0
        return {name: part[begin : int(self.ends[place])] for name, part in self.parts.items()}


@dataclass(frozen=True)
class _Index:
    """Where each name lies: parallel arrays ordered by the first half of the name."""

    first: np.ndarray
    second: np.ndarray
    block: np.ndarray
    place: np.ndarray
    blocks: list[str]

    @classmethod
    def of(cls, blocks: Mapping[str, _Block]) -> "_Index":
        names = np.concatenate([np.empty((0, 2), np.uint64), *(block.names for block in blocks.values())])
        number = np.repeat(np.arange(len(blocks)), [len(block.names) for block in blocks.values()])
        place = np.concatenate([np.empty(0, np.int64), *(np.arange(len(block.names)) for block in blocks.values())])
        order = np.argsort(names[:, 0], kind="stable")
        return cls(names[order, 0], names[order, 1], number[order], place[order], list(blocks))

    def find(self, names: np.ndarray) -> list[tuple[str | None, int]]:
        """Return block and place of each name, ``(None, -1)`` where there is none."""
        if not len(self.first):
            return [(None, -1)] * len(names)
        at = np.minimum(np.searchsorted(self.first, names[:, 0]), len(self.first) - 1)
        found = (self.first[at] == names[:, 0]) & (self.second[at] == names[:, 1])
        return [
            (self.blocks[self.block[each]], int(self.place[each])) if here else (None, -1)
            for each, here in zip(at, found, strict=True)
        ]


def _encode(key: str, names: Sequence[bytes], rows: Sequence[Row]) -> bytes:
    lengths = [len(next(iter(row.values()))) for row in rows]
    tensors = {f"part.{part}": torch.cat([row[part] for row in rows]) for part in rows[0]}
    tensors["names"] = torch.frombuffer(bytearray(b"".join(names)), dtype=torch.int64).reshape(-1, 2)
    tensors["ends"] = torch.tensor(lengths).cumsum(0)
    return save(tensors, metadata={"key": key})


@dataclass(frozen=True)
class Stored:
    """What lies in the folder of one column."""

    folder: Path
    card: dict[str, Any]
    bytes: int
    used: float
    """When a run last opened it, in seconds since the epoch."""

    def rows(self) -> int:
        """Count the rows."""
        return sum(map(_rows_in, self.folder.glob("*.safetensors")))


def columns(home: Path) -> list[Stored]:
    """Return every column under ``home``, the least recently used first."""
    found = []
    for card in home.glob(f"*/{CARD}"):
        try:
            told, used = json.loads(card.read_text(encoding="utf-8")), card.stat().st_mtime
            size = sum(block.stat().st_size for block in card.parent.glob("*.safetensors"))
        except (OSError, ValueError):  # removed or half removed by another process
            continue
        found.append(Stored(card.parent, told, size, used))
    return sorted(found, key=lambda each: each.used)


def prune(home: Path, free: int, spare: str = "") -> int:
    """Remove the least recently used columns that no process uses until ``free`` bytes are freed; return how many were."""
    freed = 0
    for each in columns(home):
        if freed >= free:
            break
        if each.folder.name == spare:
            continue
        with (each.folder / ".lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(each.folder, ignore_errors=True)
            freed += each.bytes
    return freed


def _rows_in(block: Path) -> int:
    try:
        with safe_open(block, framework="pt") as file:
            return file.get_slice("ends").get_shape()[0]
    except (SafetensorError, OSError):
        return 0
