"""What all DataModules of text share: tokenizers, one view a tokenizer, batches of like length.

``inputs`` is the student's view; a network with another vocabulary has a view of its own name.
"""

from collections.abc import Sequence
from string import Formatter
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from kdbench.data.alignment import same_vocabulary
from kdbench.data.base import DataOptions, Item, Row, TaskData, field, numbered
from kdbench.data.tokenizers import TokenizerTraining
from kdbench.errors import UserError


class TextOptions(DataOptions, total=False):
    """What every DataModule of text takes besides its data set, with the meanings and defaults of :class:`TextData`."""

    max_length: int
    tokenizer: TokenizerTraining | None
    group_by_length: bool | None


class TextData(TaskData):
    """What all text data share: rows of a registered data set, one view a tokenizer, length-grouped batches.

    Args:
        dataset: a name of the registry (``kdbench list data``).
        max_length: the longest text in pieces, special ones included; longer ones are cut.
        tokenizer: how a vocabulary is trained from the training texts, for networks that bring none.
        group_by_length: batches of similar length, drawn anew each epoch, or plain shuffled ones. By default they are
            grouped unless a loss compares the rows of a batch with one another.
        options: see :class:`~kdbench.data.base.TaskData`; vocabulary and word counts are those of all training rows.
    """

    fields: Sequence[str] = ("text",)
    """The fields of a row that hold its texts."""

    def __init__(
        self,
        dataset: str,
        max_length: int = 128,
        tokenizer: TokenizerTraining | None = None,
        group_by_length: bool | None = None,
        **options: Unpack[DataOptions],
    ) -> None:
        super().__init__(dataset, **options)
        if max_length < 4:
            raise ValueError(f"max_length leaves no room for a text: {max_length}")
        self.max_length = max_length
        self.tokenizer = tokenizer
        self.group_by_length = group_by_length

    def texts(self, row: Row) -> list[str]:
        """Return the texts of a row, for training a vocabulary."""
        return [field(row, name) for name in self.fields]

    def settle_views(self) -> None:
        """Take or train the student's tokenizer; give a view of its own to each network with another vocabulary."""
        brought = self.trainer.lightning_module.tokenizers()
        student = brought.pop("student")
        if student is None:
            if self.tokenizer is None:
                raise UserError(
                    "The student brings no vocabulary: give 'data.tokenizer', for example "
                    "{class_path: TrainWordPiece, init_args: {vocab_size: 2000, lowercase: false}}."
                )
            student = self.tokenizer.train(text for row in self.rows["train"] for text in self.texts(row))
        self.tokenizers, self.views = {"inputs": student}, {"student": "inputs"}
        for name, tokenizer in brought.items():
            own = tokenizer is not None and not same_vocabulary(student, tokenizer)
            self.views[name] = name if own else "inputs"
            if own:
                self.tokenizers[name] = tokenizer

    def grouping(self, items: list[Item], shuffle: bool, compares: bool) -> tuple[list[int] | None, int]:
        """Return the lengths of the rows, and 50 batches or 1; lengths also tell how a shuffled batch is dealt to devices."""
        grouped = not compares if self.group_by_length is None else self.group_by_length
        return [item["length"] for item in items] if shuffle or grouped else None, 50 if grouped else 1


class PlainViews(TextData):
    """Texts whose views are just ids and mask: nothing is masked, and nothing about them is random."""

    draws = 1

    def pieces(self, rows: list[Row]) -> list[Item]:
        """Return the pieces of each row's text, or of its two texts as a pair, in every view."""
        columns = [[field(row, name) for row in rows] for name in self.fields]
        items: list[Item] = [{} for _ in rows]
        for view, tokenizer in self.tokenizers.items():
            coded = tokenizer(*columns, truncation=True, max_length=self.max_length)["input_ids"]
            for item, ids in zip(items, coded, strict=True):
                item[view_key("inputs", view)] = np.asarray(ids)
        return [item | {"length": len(item["inputs"])} for item in items]

    def apart(self, rows: list[Row], openings: Sequence[str] | None = None) -> list[Item]:
        """Return the pieces of each row's two texts, ``first`` and ``second``, every one encoded alone, in every view.

        Each may have an opening, a template over the fields of the row, which is joined to it as a pair and never cut.
        """
        items: list[Item] = [{} for _ in rows]
        for place, role in enumerate(("first", "second")):
            columns = [[field(row, self.fields[place]) for row in rows]]
            if openings is not None:
                columns.insert(0, [filled(openings[place], row) for row in rows])
            how = "only_second" if openings is not None else True
            for view, tokenizer in self.tokenizers.items():
                coded = tokenizer(*columns, truncation=how, max_length=self.max_length)["input_ids"]
                for item, ids in zip(items, coded, strict=True):
                    item[view_key(role, view)] = np.asarray(ids)
        return [item | {"length": max(len(item["first"]), len(item["second"]))} for item in items]

    def as_batch(self, split: str, chosen: Sequence[tuple[Item, int]], roles: Sequence[str]) -> dict[str, Any]:
        """Return id, draw and, for every role and view, the padded ids."""
        batch: dict[str, Any] = numbered(chosen)
        for view in self.view_names(split):
            for role in roles:
                coded = [item[view_key(role, view)] for item, _ in chosen]
                lengths = np.array([len(each) for each in coded])
                name = view if role == "inputs" else view_key(role, view)
                left = self.tokenizers[view].padding_side == "left"
                batch[name] = as_view(pad(coded, self.tokenizers[view].pad_token_id, left), lengths, left)
        return batch


def text_fields(text: str | list[str]) -> list[str]:
    """Return the fields of a text, or of a pair of texts; raise ValueError for any other number."""
    fields = [text] if isinstance(text, str) else list(text)
    if len(fields) not in (1, 2):
        raise ValueError(f"a text is one field or a pair of two, got {fields}")
    return fields


def filled(template: str, row: Row) -> str:
    """Return a template with the fields of a row that it names in braces; raise :class:`UserError` where there is none."""
    return "".join(
        text + (str(field(row, name)) if name is not None else "") for text, name, _, _ in Formatter().parse(template)
    )


def pad(arrays: Sequence[np.ndarray], value: int, left: bool = False) -> np.ndarray:
    """Return arrays of different lengths as one ``[B, S]`` int64 array, filled up with ``value`` on the right, or the left."""
    padded = np.full((len(arrays), max(len(each) for each in arrays)), value, dtype=np.int64)
    for row, each in zip(padded, arrays, strict=True):
        row[len(row) - len(each) if left else 0 :][: len(each)] = each
    return padded


def as_view(ids: np.ndarray, lengths: np.ndarray, left: bool = False) -> dict[str, Tensor]:
    """Return a network's view: the ids, padded on the right, or the left, and the mask of the real ones."""
    places = np.arange(ids.shape[1])[None]
    mask = places >= ids.shape[1] - lengths[:, None] if left else places < lengths[:, None]
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def view_key(name: str, view: str) -> str:
    """Return the name of a batch field that belongs to a view; the student's own carries no suffix."""
    return name if view == "inputs" else f"{name}.{view}"
