"""The DataModule of texts without labels."""

from collections.abc import Sequence
from typing import Any

from kdbench.data.base import Item, Row
from kdbench.data.samplers import Deal
from kdbench.data.text import PlainViews, text_fields
from kdbench.data.tokenizers import TokenizerTraining


class PlainText(PlainViews):
    """Texts as they are, nothing masked and nothing to predict: for a student that copies inner states.

    Args:
        dataset: see :class:`TextData`.
        text: the field of the text, or two fields that are joined as a pair.
        source: see :class:`TextData`.
        batch_size: see :class:`TextData`.
        max_length: see :class:`TextData`.
        tokenizer: see :class:`TextData`.
        group_by_length: see :class:`TextData`.
        eval_batch_size: see :class:`TextData`.
        num_workers: see :class:`TextData`.
        deal: see :class:`TextData`.
        train_rows: see :class:`TextData`.
    """

    task = "unlabelled"

    def __init__(
        self,
        dataset: str,
        text: str | list[str] = "text",
        source: str = "embedded",
        batch_size: int = 32,
        max_length: int = 128,
        tokenizer: TokenizerTraining | None = None,
        group_by_length: bool | None = None,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        deal: Deal = "snake",
        train_rows: int | None = None,
    ) -> None:
        super().__init__(
            dataset,
            source,
            batch_size,
            max_length,
            tokenizer,
            group_by_length,
            eval_batch_size,
            num_workers,
            deal,
            train_rows,
        )
        self.fields = text_fields(text)

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return the pieces of every view."""
        return self.pieces(rows)

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return the views."""
        return self.as_batch(split, chosen, ["inputs"])
