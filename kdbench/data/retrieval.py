"""The DataModule of retrieval: pairs of texts that belong together."""

from collections.abc import Sequence
from typing import Any, Unpack

from kdbench.data.base import Item, Row, field
from kdbench.data.noise import uniform
from kdbench.data.renaming import rename_words
from kdbench.data.text import PlainViews, TextOptions
from kdbench.losses.base import check_share


class TextRetrieval(PlainViews):
    """Two texts a row, each encoded alone: the first seeks the second among those of all rows.

    Args:
        dataset: see :class:`TextData`.
        first: the field of the text that seeks.
        second: the field of the text that is sought.
        instructions: an opening of each of the two, with fields of the row in braces, such as ``Represent this {language}
            code snippet for retrieval:``; by default they have none.
        rename: the probability with which a training row's second text comes with other names for the words that come back
            (:func:`~kdbench.data.renaming.rename_words`).
        options: see :class:`TextData`; ``max_length`` is that of each text.
    """

    task = "retrieval"
    batch_sizes = 64, 64

    def __init__(
        self,
        dataset: str,
        first: str = "query",
        second: str = "code",
        instructions: list[str] | None = None,
        rename: float = 0.0,
        **options: Unpack[TextOptions],
    ) -> None:
        super().__init__(dataset, **options)
        if instructions is not None and len(instructions) != 2:
            raise ValueError(f"instructions are two, one for each text, got {instructions}")
        self.fields = [first, second]
        self.instructions, self.rename = instructions, check_share("rename", rename)
        self.draws = None if rename else 1

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return the pieces of both texts in every view, and the row where its words may get other names."""
        items = self.apart(rows, self.instructions)
        return [item | {"row": row} for item, row in zip(items, rows, strict=True)] if self.rename else items

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return both texts' views."""
        if split == "train" and self.rename:
            chosen = [self._version(item, draw) for item, draw in chosen]
        return self.as_batch(split, chosen, ["first", "second"])

    def _version(self, item: Item, draw: int) -> tuple[Item, int]:
        """Return a row as it is, or with other names in its second text."""
        if uniform(self.seed, item["id"], draw) < self.rename:
            second, row = self.fields[1], item["row"]
            renamed = rename_words(field(row, second), self.seed, item["id"], draw)
            item = item | self.apart([row | {second: renamed}], self.instructions)[0]
        return item, draw
