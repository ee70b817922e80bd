"""Files: written whole or not at all, and known by their content."""

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Give a binary file to write; afterwards it lies on the disk and stands at ``path``, unless an error came between.

    A kill at any moment leaves what stood at ``path`` before. An error leaves no litter behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101 - mkstemp makes files that nobody else may read
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex; the bytes are read again only when its time or size has changed."""
    state = path.stat()
    return _digest_of(path.absolute(), state.st_mtime_ns, state.st_size)


@functools.cache
def _digest_of(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
