"""DataModules of labelled text: classification, tagging, similarity."""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch

from kdbench.data import registry
from kdbench.data.augmentation import Augmentation
from kdbench.data.base import Item, Row, class_numbers, field
from kdbench.data.corruption import IGNORED
from kdbench.data.text import PlainViews, TextOptions, pad, text_fields, view_key
from kdbench.data.tokenizers import encode_words, split_words
from kdbench.errors import UserError


class TextClassification(PlainViews):
    """One class a text, or a pair of texts joined by the tokenizer.

    Args:
        dataset: see :class:`TextData`.
        label: the field of the row that holds the class.
        text: the field of the text, or two fields that are joined as a pair.
        classes: names of classes and the values of the field that belong to each; default: every value is a class.
        transfer: the data set whose training texts are learnt from instead, without labels; the classes, validation and
            test stay those of ``dataset``.
        augment: how changed copies of the training texts are made. In each epoch a row comes as itself or as one of its
            copies, in turn; a copy has no label (``-100``, which the cross-entropy leaves out), the teacher labels it.
        options: see :class:`TextData`.
    """

    task = "classification"

    def __init__(
        self,
        dataset: str,
        label: str,
        text: str | list[str] = "text",
        classes: dict[str, list[str | int]] | None = None,
        transfer: str | None = None,
        augment: Augmentation | None = None,
        **options: Unpack[TextOptions],
    ) -> None:
        super().__init__(dataset, **options)
        self.label, self.classes = label, classes
        self.transfer, self.augment = transfer, augment
        self.draws = 1 + (augment.copies if augment else 0)
        self.fields = text_fields(text)

    def read_labels(self, rows: dict[str, list[Row]]) -> list[str]:
        """Return the classes as named, or every value of the field in order."""
        values = class_numbers(rows, self.label)
        if self.classes is None:
            self.number = values
            return [str(value) for value in values]
        self.number = {value: place for place, own in enumerate(self.classes.values()) for value in own}
        for value in values:
            if value not in self.number:
                raise UserError(
                    f"'{self.dataset}' has the label {value!r}, which no class of {list(self.classes)} holds."
                )
        return list(self.classes)

    def training_rows(self) -> list[Row]:
        """Return the training split, or the texts to transfer to, without their labels."""
        if self.transfer is None:
            return super().training_rows()
        rows = registry.load(self.transfer, self.source, "train")
        return [{name: field(row, name) for name in self.fields} for row in rows]

    def setup(self, stage: str) -> None:
        """Also make the copies of the training texts."""
        super().setup(stage)
        train = self.items["train"]
        if self.augment is None or "copies" in train[0]:
            return
        rows = self.training_rows()[: self.train_rows]
        words = [split_words(field(row, name)) for row in rows for name in self.fields]
        self.augment.prepare(words, self.trainer.strategy.root_device)
        for draw in range(1, self.draws):
            texts = iter(" ".join(self.augment(text, number, draw)) for number, text in enumerate(words))
            copies = self.encode([{name: next(texts) for name in self.fields} for _ in rows])
            for item, copy in zip(train, copies, strict=True):
                item.setdefault("copies", []).append(copy)

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return the pieces of every view and the number of the class, -100 for a row without one."""
        labels = [self.number[row[self.label]] if self.label in row else IGNORED for row in rows]
        return [item | {"label": label} for item, label in zip(self.pieces(rows), labels, strict=True)]

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return the views and the classes ``[B]``."""
        if split == "train" and self.draws > 1:
            chosen = [self._version(item, draw) for item, draw in chosen]
        batch = self.as_batch(split, chosen, ["inputs"])
        return batch | {"labels": torch.tensor([item["label"] for item, _ in chosen])}

    def _version(self, item: Item, draw: int) -> tuple[Item, int]:
        """Return a row or one of its copies; in one epoch some rows come as themselves and others as copies."""
        draw = (draw + item["id"]) % self.draws
        return (item | item["copies"][draw - 1] if draw else item), draw


class TokenTagging(PlainViews):
    """One class a word, learnt and read at its first piece.

    Args:
        dataset: see :class:`TextData`.
        label: the field of the row that holds the words' classes.
        options: see :class:`TextData`; words beyond ``max_length`` in any view are not scored.
    """

    task = "tagging"

    def __init__(self, dataset: str, label: str, **options: Unpack[TextOptions]) -> None:
        super().__init__(dataset, **options)
        self.label = label

    def texts(self, row: Row) -> list[str]:
        """Return the words as one text."""
        return [" ".join(row["words"])]

    def read_labels(self, rows: dict[str, list[Row]]) -> list[str]:
        """Return the tag set of all splits: a tag that training lacks is still a class, and every miss counts."""
        return sorted({tag for split in rows.values() for row in split for tag in field(row, self.label)})

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return the pieces, the first piece of each word and the words' classes; words cut in any view are left out."""
        number = {tag: place for place, tag in enumerate(self.labels)}
        words = [row["words"] for row in rows]
        views = {view: encode_words(tok, words, self.max_length) for view, tok in self.tokenizers.items()}
        items = []
        for place, row in enumerate(rows):
            labels = np.array([number[tag] for tag in field(row, self.label)])
            item: Item = {}
            kept = np.ones(len(labels), dtype=bool)
            for view, coded in views.items():
                ids, word_index = coded[place]
                first = np.full(len(labels), -1)
                seen, at = np.unique(word_index, return_index=True)
                first[seen[seen >= 0]] = at[seen >= 0]
                kept &= first >= 0
                item[view_key("inputs", view)], item[view_key("first", view)] = ids, first
            item["labels"] = np.where(kept, labels, IGNORED)
            items.append(item | {"length": len(item["inputs"])})
        return [item for item in items if (item["labels"] != IGNORED).any()]

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return the views, the classes of words ``[B, W]`` and, for training, of the student's pieces ``[B, S]``."""
        batch = self.as_batch(split, chosen, ["inputs"])
        words = pad([item["labels"] for item, _ in chosen], IGNORED)
        for view in self.view_names(split):
            first = pad([item[view_key("first", view)] for item, _ in chosen], 0)
            starts = batch[view]["attention_mask"].argmax(1, keepdim=True)  # not 0 where the tokenizer pads on the left
            batch[view_key("first_piece", view)] = torch.from_numpy(np.maximum(first, 0)) + starts
        pieces = np.full(tuple(batch["inputs"]["input_ids"].shape), IGNORED)
        rows, places = np.nonzero(words != IGNORED)
        pieces[rows, batch["first_piece"].numpy()[rows, places]] = words[rows, places]
        return batch | {"word_labels": torch.from_numpy(words), "labels": torch.from_numpy(pieces)}


class TextSimilarity(PlainViews):
    """Two texts, each encoded alone, and a score of their similarity.

    Args:
        dataset: see :class:`TextData`.
        first: the field of the first text.
        second: the field of the second text.
        score: the field of the score, from 0 to 5.
        options: see :class:`TextData`.
    """

    task = "similarity"

    def __init__(
        self,
        dataset: str,
        first: str = "first",
        second: str = "second",
        score: str = "score",
        **options: Unpack[TextOptions],
    ) -> None:
        super().__init__(dataset, **options)
        self.fields = [first, second]
        self.score = score

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return the pieces of both texts in every view, and the score."""
        scores = [float(field(row, self.score)) for row in rows]
        return [item | {"score": score} for item, score in zip(self.apart(rows), scores, strict=True)]

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return both texts' views and the scores ``[B]``."""
        batch = self.as_batch(split, chosen, ["first", "second"])
        return batch | {"labels": torch.tensor([item["score"] for item, _ in chosen])}
