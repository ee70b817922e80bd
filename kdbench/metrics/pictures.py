"""What is shown of a run beside its numbers; how it is drawn is the pages' affair."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Picture:
    """Lines over one axis.

    Attributes:
        title: what is shown, in a few words.
        x_title: what the axis counts.
        y_title: what the lines show, with its unit.
        x: the places, ascending.
        lines: the height at each place, by the name of the line.
    """

    title: str
    x_title: str
    y_title: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class HeatMap:
    """A table of values, the higher the darker.

    Attributes:
        title: what the values are, in a few words.
        x_title: what the columns are.
        y_title: what the rows are.
        x: the names of the columns.
        y: the names of the rows.
        cells: the values of each row.
        low: the value that is drawn lightest.
        high: the value that is drawn darkest.
    """

    title: str
    x_title: str
    y_title: str
    x: Sequence[str]
    y: Sequence[str]
    cells: Sequence[Sequence[float]]
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Images:
    """A table of small grey images.

    Attributes:
        title: what they are, in a few words.
        x_title: what the columns are.
        y_title: what the rows are.
        x: the names of the columns.
        y: the names of the rows.
        size: height and width of one image.
        pixels: a byte each, image after image, row after row of the table, in base64.
    """

    title: str
    x_title: str
    y_title: str
    x: Sequence[str]
    y: Sequence[str]
    size: Sequence[int]
    pixels: str

    @staticmethod
    def encoded(images: np.ndarray) -> str:
        """Return the pixels of images ``[rows, columns, H, W]`` with values from -1 (black) to 1."""
        grey = ((images.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
        return base64.b64encode(grey.tobytes()).decode()


Shown = Picture | HeatMap | Images


def picture_of(told: Mapping[str, Any]) -> Shown:
    """Return the picture that a record tells by its attributes."""
    kind = next((kind for mark, kind in (("cells", HeatMap), ("pixels", Images)) if mark in told), Picture)
    return kind(**told)
