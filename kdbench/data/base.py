"""What all DataModules share: the rows of a registered data set, their splits, views, batches and loaders.

A batch is a plain dict: ``id`` (row number in its split), ``draw`` (which random version of the row), labels, and the
views: the keyword arguments of one network each. ``inputs`` is the student's.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypedDict

import lightning.pytorch as pl
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kdbench.data import registry
from kdbench.data.samplers import Deal, GroupedBatches, ResumableLoader
from kdbench.errors import UserError, nearest

Row = dict[str, Any]
Item = dict[str, Any]
SPLITS_OF = {
    "fit": ("train", "validation"),
    "validate": ("train", "validation"),
    "test": ("train", "test"),
    "predict": ("train", "test"),
}
"""The splits that a stage of Lightning needs; the training rows always, for what is learnt from them (a vocabulary)."""


class DataOptions(TypedDict, total=False):
    """What every DataModule takes besides its data set, with the meanings and defaults of :class:`TaskData`."""

    source: str
    batch_size: int | None
    eval_batch_size: int | None
    num_workers: int
    deal: Deal
    train_rows: int | None


class TaskData(pl.LightningDataModule):
    """Rows of a registered data set, encoded once, in resumable batches.

    Args:
        dataset: a name of the registry (``kdbench list data``).
        source: ``embedded``, ``local`` (a folder named by ``KDBENCH_DATA``) or ``hub``.
        batch_size: rows in a training batch, on each device; by default as many as ``batch_sizes`` says.
        eval_batch_size: rows in a batch of validation and test; likewise.
        num_workers: processes that make batches; 0 makes them in the training process.
        deal: how the rows of a global batch are dealt to several devices (:class:`GroupedBatches`); where a loss compares
            rows, they are dealt as they come, and a short last batch is left out.
        train_rows: learn from the first so many training rows alone; labels are still those of all.
    """

    task: ClassVar[str]
    batch_sizes: ClassVar[tuple[int, int]] = 32, 64
    """Rows in a batch of training and of evaluation, unless others are asked for."""
    draws: int | None
    """How many random versions a row has; None: a new one in every epoch."""

    def __init__(
        self,
        dataset: str,
        source: str = "embedded",
        batch_size: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        deal: Deal = "snake",
        train_rows: int | None = None,
    ) -> None:
        super().__init__()
        usual, usual_in_evaluation = self.batch_sizes
        self.batch_size = usual if batch_size is None else batch_size
        self.eval_batch_size = usual_in_evaluation if eval_batch_size is None else eval_batch_size
        if self.batch_size < 1 or self.eval_batch_size < 1:
            raise ValueError(
                f"a batch has at least one row, got batch_size {self.batch_size} and {self.eval_batch_size}"
            )
        if train_rows is not None and train_rows < 1:
            raise ValueError(f"train_rows is at least 1, got {train_rows}")
        self.dataset, self.source = dataset, source
        self.num_workers, self.deal = num_workers, deal
        self.train_rows = train_rows
        self.labels: list[str] | None = None
        self.views: dict[str, str] = {}
        """The view of each network, by the network's name."""
        self.tokenizers: dict[str, PreTrainedTokenizerBase | None] = {}
        """What makes each view; None where no tokenizer does."""
        self.items: dict[str, list[Item]] = {}

    @property
    def versions(self) -> int | None:
        """How many versions of a row the networks see, None without end: what the teacher cache can keep."""
        return self.draws

    # ---- what a task says ----

    def read_labels(self, rows: dict[str, list[Row]]) -> list[str] | None:
        """Return the names of the classes, or None where there are none."""
        return None

    def training_rows(self) -> list[Row]:
        """Return the rows that are learnt from, by default those of the training split."""
        return self.rows["train"]

    def settle_views(self) -> None:
        """Fill in ``views`` and ``tokenizers``; by default one view, without a tokenizer, serves all networks."""
        networks = self.trainer.lightning_module.tokenizers()
        self.tokenizers, self.views = {"inputs": None}, dict.fromkeys(networks, "inputs")

    def preprocessor(self, view: str) -> dict[str, Any] | None:
        """Return how a view is made of images, as a ``preprocessor_config.json`` tells it; None for other data."""
        return None

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return what the batches need of every row: its views and labels."""
        raise NotImplementedError

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return the batch of some rows, each with its draw."""
        raise NotImplementedError

    def named(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a batch whose views name what networks see, as the teacher cache knows it; by default the views themselves."""
        return batch

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch as the networks see it, when it is on their device; by default it is as it was collated."""
        return batch

    def reader(self, split: str) -> torch.utils.data.Dataset:
        """Return what gives the collation the rows that it is asked for, each with its draw."""
        return Rows(self.items[split])

    def sampler(self, split: str) -> Callable[..., GroupedBatches]:
        """Return what puts the rows of a split in order."""
        return GroupedBatches

    def grouping(self, items: list[Item], shuffle: bool, compares: bool) -> tuple[list[int] | None, int]:
        """Return the lengths of the rows, and of how many batches those of like length are put together.

        Args:
            items: the encoded rows.
            shuffle: whether the batches are for training.
            compares: whether a loss compares the rows of a batch with one another.
        """
        return None, 1

    # ---- Lightning's hooks ----

    def setup(self, stage: str) -> None:
        """Read the rows, settle the views of all networks, encode every split that is needed."""
        if not self.views:
            content = registry.fingerprint(self.dataset, self.source)
            about = content, os.environ.get(registry.FOLDER)
            self.rows = {split: _rows(self.dataset, self.source, split, about) for split in registry.SPLITS}
            self.labels = self.read_labels(self.rows)
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
            self.settle_views()
        for split in SPLITS_OF[stage]:
            if split not in self.items:
                rows = self.training_rows()[: self.train_rows] if split == "train" else self.rows[split]
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

    def _loader(self, split: str, batch_size: int, shuffle: bool) -> ResumableLoader:
        items = self.items[split]
        compares = shuffle and self.trainer.lightning_module.compares_rows
        lengths, group = self.grouping(items, shuffle, compares)
        sampler = self.sampler(split)(
            rows=len(items),
            batch_size=batch_size,
            lengths=lengths,
            group=group,
            seed=self.seed,
            shuffle=shuffle,
            drop_last=compares,  # the value of such a loss depends on the number of rows
            draws=self.draws if shuffle else 1,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            deal="interleaved" if compares else self.deal,
        )
        return ResumableLoader(
            self.reader(split), batch_sampler=sampler, collate_fn=Collate(self, split), num_workers=self.num_workers
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

    def __getitems__(self, asked: list[tuple[int, int]]) -> list[tuple[Item, int]]:
        return [(self.items[row], draw) for row, draw in asked]


class Collate:
    """The collation of one split, as worker processes need it."""

    def __init__(self, data: TaskData, split: str) -> None:
        self.data, self.split = data, split

    def __call__(self, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return the batch."""
        return self.data.collate(self.split, chosen)


@functools.lru_cache(maxsize=24)
def _rows(dataset: str, source: str, split: str, about: tuple[str, str | None]) -> list[Row]:
    """Return the rows of a split, read once in a process that fits many runs; ``about`` is their fingerprint and folder."""
    return registry.load(dataset, source, split)


def numbered(chosen: Sequence[tuple[Item, int]]) -> dict[str, Tensor]:
    """Return the beginning of a batch: ``id`` and ``draw`` of its rows, ``[B]`` each."""
    return {
        "id": torch.tensor([item["id"] for item, _ in chosen]),
        "draw": torch.tensor([draw for _, draw in chosen]),
    }


def class_numbers(rows: dict[str, list[Row]], label: str) -> dict[Any, int]:
    """Return the number of each value of a label over all splits, in the order of the values."""
    values = sorted({field(row, label) for split in rows.values() for row in split})
    return {value: place for place, value in enumerate(values)}


def field(row: Row, name: str) -> Any:
    """Return a field of a row; raise :class:`UserError` when the data set has none of that name."""
    try:
        return row[name]
    except KeyError:
        raise UserError(f"The rows have no field '{name}', only {sorted(row)}.{nearest(name, row)}") from None
