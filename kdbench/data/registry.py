"""The data sets by name (:mod:`~kdbench.data.cards`): their rows from each source, and the fingerprint of their content."""

import functools
import hashlib
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdbench.data.cards import CARDS, Card
from kdbench.errors import UserError, nearest
from kdbench.files import file_digest

SPLITS = ("train", "validation", "test")
SOURCES = ("embedded", "local", "hub")
FOLDER = "KDBENCH_DATA"

Row = dict[str, Any]


def load(name: str, source: str, split: str) -> list[Row]:
    """Return the rows of one split; never of another source than the one asked for.

    Raises:
        UserError: for an unknown name, source or split, for data that are missing, damaged or empty.
    """
    if split not in SPLITS:
        raise UserError(f"There is no split '{split}': choose one of {', '.join(SPLITS)}.")
    card, loader = _loader(name, source)
    if source == "embedded":
        sizes = card.splits.get(source)
        rows = loader(split, sizes[SPLITS.index(split)]) if sizes else loader(split)
    elif source == "local":
        rows = loader(_folder(card), split)
    else:
        rows = loader(card.hub, split)
    if not rows:
        raise UserError(f"The split '{split}' of '{name}' from the source '{source}' has no row: complete its data.")
    return rows


@functools.cache
def _embedded_hash(name: str) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        rows = json.dumps([split, load(name, "embedded", split)], sort_keys=True, default=_array_digest)
        digest.update(rows.encode())
    return digest.hexdigest()


def _array_digest(array: Any) -> list[Any]:
    """Return what stands for a numpy array in a fingerprint: its type, its shape and a hash of its content."""
    return [array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).hexdigest()]


def _listing_digest(folder: Path) -> str:
    """Return a hash of the names and sizes of all files in a folder, too many to read."""
    files = (path for path in folder.rglob("*") if path.is_file())
    found = sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def fingerprint(name: str, source: str) -> str:
    """Return 16 hex digits that change with the content: rows (embedded), file bytes (local) or id and revision (hub).

    Of a folder of files, their names and sizes count.

    Raises:
        UserError: for an unknown name or source, or for files that are missing.
    """
    card, _ = _loader(name, source)
    if source == "embedded":
        content = _embedded_hash(name)
    elif source == "local":
        paths = [local_file(_folder(card), each) for each in card.files]
        content = " ".join(file_digest(path) if path.is_file() else _listing_digest(path) for path in paths)
    else:
        content = " ".join(card.hub)
    return hashlib.sha256(f"{name} {source} {content}".encode()).hexdigest()[:16]


def hub_ids(name: str) -> list[str]:
    """Return the ids that the source ``hub`` would fetch, without fetching."""
    card, _ = _loader(name, "hub")
    return [card.hub.id]


def check_source(name: str, source: str) -> None:
    """Raise :class:`UserError` unless there is such a data set, and it has such a source."""
    _loader(name, source)


def card_of(name: str) -> Card:
    """Return the card of a data set; raise :class:`UserError` for an unknown name."""
    if name not in CARDS:
        raise UserError(f"There is no data set '{name}'.{nearest(name, CARDS)} 'kdbench list data' shows all.")
    return CARDS[name]


def local_file(folder: Path, name: str) -> Path:
    """Return the file (plain or gzipped) or folder of that name in a folder; raise :class:`UserError` where there is none."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise UserError(f"There is no file {folder / name} (nor the same with .gz): put the published file there.")


def _loader(name: str, source: str) -> tuple[Card, Callable[..., list[Row]]]:
    card = card_of(name)
    if source not in SOURCES:
        raise UserError(f"There is no source '{source}'.{nearest(source, SOURCES)} Choose {', '.join(card.loaders)}.")
    if source not in card.loaders:
        raise UserError(f"'{name}' has no source '{source}': choose {' or '.join(card.loaders)}.")
    loader = card.loaders[source]
    if isinstance(loader, str):
        module, _, attribute = loader.partition(":")
        loader = getattr(importlib.import_module(f"kdbench.data.{module}"), attribute)
    return card, loader


def _folder(card: Card) -> Path:
    root = os.environ.get(FOLDER)
    if not root:
        raise UserError(
            f"'{card.name}' from the source 'local' needs {FOLDER}: set it to the folder that holds '{card.local}'."
        )
    folder = Path(root).expanduser().absolute() / card.local
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: set {FOLDER} to the folder that holds '{card.local}'.")
    return folder
