"""Reading data as others have published them: files that are plain or gzipped, and one clear error where they are damaged."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.data.readers.normalise import duplicate_key
from kdbench.data.registry import local_file
from kdbench.errors import UserError


def content(path: Path) -> str:
    """Return the text of a file, plain or gzipped; raise :class:`UserError` with the line when it is no UTF-8."""
    try:
        found = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return found.decode("utf-8")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(path, f"a broken gzip file ({error})") from error
    except UnicodeDecodeError as error:
        line = found[: error.start].count(b"\n") + 1
        raise damaged(f"{path}, line {line}", "not UTF-8 text") from error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers from 1; only line feeds end a line, as texts may hold other separators."""
    found = content(path).removesuffix("\n")
    for number, line in enumerate(found.split("\n") if found else []):
        yield number + 1, line.removesuffix("\r")


def table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the place of each line and what its columns hold, which tabs separate; raise :class:`UserError` if one is missing."""
    for number, line in lines(path):
        where, cells = f"{path}, line {number}", line.split("\t")
        if len(cells) != len(columns):
            raise damaged(where, f"{len(cells)} columns instead of {', '.join(columns)}")
        yield where, cells


def parsed(path: Path) -> Any:
    """Return what a JSON file holds."""
    try:
        return json.loads(content(path))
    except json.JSONDecodeError as error:
        raise damaged(f"{path}, line {error.lineno}", f"not valid JSON ({error.msg})") from error


def check_label(label: Any, known: Collection[Any], where: str) -> None:
    """Raise :class:`UserError` for a label that the data set does not have."""
    if not isinstance(label, (str, int)) or label not in known:
        raise damaged(where, f"the label {label!r} is none of {', '.join(map(str, sorted(known)))}")


def similarity(score: Any, where: str) -> float:
    """Return a score from 0 to 5 as a number."""
    try:
        number = float(score)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 5:
        raise damaged(where, f"{score!r} is no score from 0 to 5")
    return number


def stamps(folder: Path, files: Mapping[str, Sequence[str]]) -> tuple[tuple[int, int], ...]:
    """Return times and sizes of files in folders of a folder; what was read of them holds as long as these do."""
    paths = [local_file(folder / part, name) for part, names in files.items() for name in names]
    return tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in paths)


def distinct(texts: Iterable[str], scored: Iterable[str]) -> list[str]:
    """Return the texts in their order, of those alike the first, without those that are also scored."""
    seen = {duplicate_key(text) for text in scored} | {""}
    kept = {duplicate_key(text): text for text in reversed(list(texts))}
    return [text for key, text in reversed(kept.items()) if key not in seen]


def held_out(text: str) -> str:
    """Return the split that a raw text belongs to: of 100 hash values 5 are validation, 5 test, the rest train."""
    place = digest(text) % 100
    return "validation" if place < 5 else "test" if place < 10 else "train"


def digest(text: str) -> int:
    """Return 64 bits of a hash of a text, whitespace left out."""
    return int.from_bytes(hashlib.sha256(duplicate_key(text).encode()).digest()[:8])


def damaged(where: str | Path, what: str) -> UserError:
    """Return the error of data that are not as published, to be raised."""
    return UserError(f"{where}: {what}; replace it with the published data.")
