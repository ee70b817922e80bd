"""The DataModule of texts without labels."""

from collections.abc import Sequence
from typing import Any, Unpack

from kdbench.data.base import Item, Row
from kdbench.data.text import PlainViews, TextOptions, text_fields


class PlainText(PlainViews):
    """Texts as they are, nothing masked and nothing to predict: for a student that copies inner states.

    Args:
        dataset: see :class:`TextData`.
        text: the field of the text, or two fields that are joined as a pair.
        options: see :class:`TextData`.
    """

    task = "unlabelled"

    def __init__(self, dataset: str, text: str | list[str] = "text", **options: Unpack[TextOptions]) -> None:
        super().__init__(dataset, **options)
        self.fields = text_fields(text)

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return the pieces of every view."""
        return self.pieces(rows)

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return the views."""
        return self.as_batch(split, chosen, ["inputs"])
