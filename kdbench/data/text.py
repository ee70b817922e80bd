"""What all DataModules of text share: rows, tokenizers, views, batches.

A batch is a plain dict: ``id`` (row number in its split), ``draw`` (which random version of the row), labels, and one
view a tokenizer: ``inputs`` is the student's, a network with another vocabulary has a view of its own name.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kdbench.data import registry
from kdbench.data.alignment import same_vocabulary
from kdbench.data.samplers import Deal, GroupedBatches, ResumableLoader
from kdbench.data.tokenizers import TokenizerTraining
from kdbench.errors import UserError, nearest

Row = dict[str, Any]
Item = dict[str, Any]
SPLITS_OF = {
    "fit": ("train", "validation"),
    "validate": ("train", "validation"),
    "test": ("train", "test"),
    "predict": ("train", "test"),
}
"""The splits that a stage of Lightning needs; the training rows always, for the vocabulary and its counts."""


class TextData(pl.LightningDataModule):
    """What all text data share: rows of a registered data set, one view a tokenizer, length-grouped batches.

    Args:
        dataset: a name of the registry (``kdbench list data``).
        source: ``embedded``, ``local`` (a folder named by ``KDBENCH_DATA``) or ``hub``.
        batch_size: rows in a training batch, on each device.
        max_length: the longest text in pieces, special ones included; longer ones are cut.
        tokenizer: how a vocabulary is trained from the training texts, for networks that bring none.
        group_by_length: batches of similar length, drawn anew each epoch, or plain shuffled ones. By default they are
            grouped unless a loss compares the rows of a batch with one another.
        eval_batch_size: rows in a batch of validation and test.
        num_workers: processes that make batches; 0 makes them in the training process.
        deal: how the rows of a global batch are dealt to several devices (:class:`GroupedBatches`), so that all have equal
            work; where a loss compares rows, they are dealt as they come.
        train_rows: learn from the first so many training rows alone; vocabulary and word counts are still those of all.
    """

    task: ClassVar[str]
    draws: int | None
    """How many random versions a row has; None: a new one in every epoch."""

    def __init__(
        self,
        dataset: str,
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
        super().__init__()
        if batch_size < 1 or eval_batch_size < 1:
            raise ValueError(f"a batch has at least one row, got batch_size {batch_size} and {eval_batch_size}")
        if train_rows is not None and train_rows < 1:
            raise ValueError(f"train_rows is at least 1, got {train_rows}")
        if max_length < 4:
            raise ValueError(f"max_length leaves no room for a text: {max_length}")
        self.dataset, self.source = dataset, source
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.max_length = max_length
        self.tokenizer = tokenizer
        self.group_by_length = group_by_length
        self.num_workers, self.deal = num_workers, deal
        self.train_rows = train_rows
        self.labels: list[str] | None = None
        self.views: dict[str, str] = {}
        self.tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self.items: dict[str, list[Item]] = {}

    # ---- what a task says ----

    def texts(self, row: Row) -> list[str]:
        """Return the texts of a row, for training a vocabulary."""
        raise NotImplementedError

    def read_labels(self, rows: dict[str, list[Row]]) -> list[str] | None:
        """Return the names of the classes, or None where there are none."""
        return None

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return every row as pieces of each view, with its labels."""
        raise NotImplementedError

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return the batch of some rows, each with its draw."""
        raise NotImplementedError

    # ---- Lightning's hooks ----

    def setup(self, stage: str) -> None:
        """Read the rows, settle the tokenizers of all networks, encode every split that is needed."""
        if not self.views:
            content = registry.fingerprint(self.dataset, self.source)
            self.rows = {split: _rows(self.dataset, self.source, split, content) for split in registry.SPLITS}
            self.labels = self.read_labels(self.rows)
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
            self._settle_tokenizers()
        for split in SPLITS_OF[stage]:
            if split not in self.items:
                rows = self.rows[split][: self.train_rows] if split == "train" else self.rows[split]
                self.items[split] = [item | {"id": place} for place, item in enumerate(self.encode(rows))]
                if not self.items[split]:
                    raise UserError(f"The split '{split}' of '{self.dataset}' has no row left to use.")

    def train_dataloader(self) -> ResumableLoader:
        """Return the training batches: a pure function of seed and epoch, resumable in mid-epoch."""
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> ResumableLoader:
        """Return the validation batches."""
        return self._loader("validation", self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> ResumableLoader:
        """Return the test batches."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    def predict_dataloader(self) -> ResumableLoader:
        """Return the test batches."""
        return self.test_dataloader()

    def example(self) -> dict[str, Any]:
        """Return one small batch with every view."""
        return self.collate("test", [(item, 0) for item in self.items["train"][:2]])

    def speed_batch(self) -> dict[str, Any]:
        """Return one full batch of training rows with every view, to measure speed on."""
        return self.collate("test", [(item, 0) for item in self.items["train"][: self.batch_size]])

    # ---- parts ----

    def view_names(self, split: str) -> list[str]:
        """Return the views of a split: in training those of the student and its teachers, else those of all networks."""
        if split != "train":
            return list(self.tokenizers)
        learnt = ("student", *self.trainer.lightning_module.teacher_names)
        return list(dict.fromkeys(self.views[name] for name in learnt))

    def _settle_tokenizers(self) -> None:
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

    def _loader(self, split: str, batch_size: int, shuffle: bool) -> ResumableLoader:
        items = self.items[split]
        compares = shuffle and self.trainer.lightning_module.compares_rows
        grouped = not compares if self.group_by_length is None else self.group_by_length
        sampler = GroupedBatches(
            rows=len(items),
            batch_size=batch_size,
            lengths=[item["length"] for item in items] if shuffle or grouped else None,
            group=50 if grouped else 1,
            seed=self.seed,
            shuffle=shuffle,
            draws=self.draws if shuffle else 1,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            deal="interleaved" if compares else self.deal,
        )
        return ResumableLoader(
            Rows(items), batch_sampler=sampler, collate_fn=Collate(self, split), num_workers=self.num_workers
        )


class Rows(torch.utils.data.Dataset):
    """Encoded rows, each asked for together with its draw."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, asked: tuple[int, int]) -> tuple[Item, int]:
        row, draw = asked
        return self.items[row], draw


class Collate:
    """The collation of one split, as worker processes need it."""

    def __init__(self, data: TextData, split: str) -> None:
        self.data, self.split = data, split

    def __call__(self, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return the batch."""
        return self.data.collate(self.split, chosen)


@functools.lru_cache(maxsize=24)
def _rows(dataset: str, source: str, split: str, content: str) -> list[Row]:
    """Return the rows of a split, read once in a process that fits many runs; ``content`` is their fingerprint."""
    return registry.load(dataset, source, split)


def pad(arrays: Sequence[np.ndarray], value: int) -> np.ndarray:
    """Return arrays of different lengths as one ``[B, S]`` int64 array, filled up with ``value`` on the right."""
    padded = np.full((len(arrays), max(len(each) for each in arrays)), value, dtype=np.int64)
    for row, each in zip(padded, arrays, strict=True):
        row[: len(each)] = each
    return padded


def as_view(ids: np.ndarray, lengths: np.ndarray) -> dict[str, Tensor]:
    """Return a network's view: the padded ids and the mask of the real ones."""
    mask = np.arange(ids.shape[1])[None] < lengths[:, None]
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def field(row: Row, name: str) -> Any:
    """Return a field of a row; raise :class:`UserError` when the data set has none of that name."""
    try:
        return row[name]
    except KeyError:
        raise UserError(f"The rows have no field '{name}', only {sorted(row)}.{nearest(name, row)}") from None


def view_key(name: str, view: str) -> str:
    """Return the name of a batch field that belongs to a view; the student's own carries no suffix."""
    return name if view == "inputs" else f"{name}.{view}"
