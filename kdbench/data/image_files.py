"""Encoded images: read with Pillow, all at once or one by one when they are needed."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kdbench.data.readers.published import damaged

if TYPE_CHECKING:
    from PIL.Image import Image


class EncodedImage(Protocol):
    """An image that is read when it is needed."""

    @property
    def where(self) -> str:
        """Where it lies, for people."""

    def read(self) -> bytes:
        """Return the bytes of the file."""


@dataclass(frozen=True)
class ImageFile:
    """An image in a file."""

    path: Path

    @property
    def where(self) -> str:
        """The path."""
        return str(self.path)

    def read(self) -> bytes:
        """Return the bytes of the file."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise damaged(self.path, error.strerror or str(error)) from error


@dataclass(frozen=True)
class ImageCell:
    """An image in a table of the datasets library that gives ``{"bytes", "path"}``."""

    table: Any
    column: str
    row: int

    @property
    def where(self) -> str:
        """The table and the row."""
        return f"{self.table.info.dataset_name}, row {self.row + 1}"

    def read(self) -> bytes:
        """Return the bytes of the cell."""
        return self.table[self.row][self.column]["bytes"]


def opened(data: bytes, where: str) -> "Image":
    """Return an image in RGB; raise :class:`UserError` that says where it lies when it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise damaged(where, f"no image that Pillow can read{why}") from error


def as_array(image: "Image") -> np.ndarray:
    """Return the pixels, uint8 ``[3, H, W]``."""
    return np.asarray(image).transpose(2, 0, 1)


def centre_of(image: "Image", size: int, share: float) -> "Image":
    """Return the middle of an image, ``size`` pixels square, its shorter edge resized to ``size / share`` before."""
    from PIL.Image import Resampling

    shorter = round(size / share)
    scale = shorter / min(image.size)
    width, height = (shorter if edge == min(image.size) else int(scale * edge) for edge in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), Resampling.BILINEAR).crop((left, top, left + size, top + size))


def decode_all(encoded: Sequence[bytes], where: Callable[[int], str]) -> np.ndarray:
    """Return images of one size as one array, uint8 ``[N, 3, H, W]``.

    Args:
        encoded: the bytes of N images.
        where: says where the image of a number lies.

    Raises:
        UserError: an image cannot be read, or is of another size than the first.
    """
    found = np.empty((0,), dtype=np.uint8)
    for number, data in enumerate(encoded):
        pixels = as_array(opened(data, where(number)))
        if number == 0:
            found = np.empty((len(encoded), *pixels.shape), dtype=np.uint8)
        if pixels.shape != found.shape[1:]:
            raise damaged(where(number), f"an image of {pixels.shape[1:]} pixels among images of {found.shape[2:]}")
        found[number] = pixels
    return found
