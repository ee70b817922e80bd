"""DataModule of samples of a density, points or images, for networks that learn to draw such samples."""

import zlib
from collections.abc import Callable
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from kdbench.data.base import DataOptions, Item, Row, TaskData, class_numbers, field
from kdbench.data.generators.density_mixtures import DensityMixture
from kdbench.data.samplers import WholeBatches
from kdbench.data.vectors import checked_range, ranged
from kdbench.errors import UserError

MIXTURES: dict[str, Callable[[], DensityMixture]] = {"synthetic/ring": DensityMixture.ring}
"""The data sets whose density is a known mixture."""


class DensitySamples(TaskData):
    """Samples without noise; the view of every network is ``sample`` and, where there are classes, ``label``.

    The noise and its level ``sigma`` are the methods' own. What they draw for a batch, they draw from its ``noise_seed``, a
    function of the seed, the split, the draw and the first row of the batch alone: a resumed fit draws what an unbroken one
    would have drawn, and every rank of a distributed one something else.

    Batches of validation and test hold ``other`` besides, a view of as many training rows: how far these are from the rows
    themselves is the noise floor of every distance between samples.

    Args:
        dataset: see :class:`~kdbench.data.base.TaskData`.
        samples: the field of the row that holds the sample: numbers, or an image ``[C, H, W]``.
        label: the field of the class, for networks that are told it; by default none is.
        value_range: two numbers that are brought to -1 and 1, ``[0, 255]`` for images; by default values stay as they are.
        options: see :class:`~kdbench.data.base.TaskData`.
    """

    task = "density"
    batch_sizes = 512, 2048
    draws = None

    def __init__(
        self,
        dataset: str,
        samples: str = "point",
        label: str | None = None,
        value_range: list[float] | None = None,
        **options: Unpack[DataOptions],
    ) -> None:
        super().__init__(dataset, **options)
        self.samples, self.label, self.value_range = samples, label, checked_range(value_range)
        self._columns: dict[str, dict[str, Tensor]] = {}
        """The columns of each split, so that a batch is one look-up."""
        self.mixture = MIXTURES[dataset]() if dataset in MIXTURES else None
        """The density itself, where it is a known mixture."""

    def read_labels(self, rows: dict[str, list[Row]]) -> list[str] | None:
        """Return every value of the label, in order."""
        if self.label is None:
            return None
        self.number = class_numbers(rows, self.label)
        return [str(value) for value in self.number]

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return the sample, of bytes where it is an image, else float32, and the number of the class.

        Raises:
            UserError: the field holds no numbers, or not as many in every row.
        """
        try:
            values = np.array([field(row, self.samples) for row in rows])
            values = torch.from_numpy(values if values.dtype == np.uint8 else values.astype(np.float32))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"The field '{self.samples}' of '{self.dataset}' holds no samples of one shape: {error}."
            ) from error
        if self.label is None:
            return [{"sample": value} for value in values]
        numbers = torch.tensor([self.number[field(row, self.label)] for row in rows])
        return [{"sample": value, "label": number} for value, number in zip(values, numbers, strict=True)]

    def reader(self, split: str) -> "RowNumbers":
        """Return the numbers of the rows alone: a batch is looked up in the columns at once."""
        return RowNumbers(len(self.items[split]))

    def sampler(self, split: str) -> Callable[..., WholeBatches]:
        """Return what puts the rows of a split in order."""
        return WholeBatches

    def collate(self, split: str, chosen: tuple[np.ndarray, int]) -> dict[str, Any]:
        """Return ``inputs.sample`` ``[B, ...]``, ``inputs.label`` ``[B]`` and ``noise_seed``; outside training also ``other``."""
        rows, draw = torch.from_numpy(chosen[0]), chosen[1]
        batch = {
            "id": rows,
            "draw": torch.full_like(rows, draw),
            "inputs": self._view(split, rows),
            "noise_seed": zlib.crc32(f"{self.seed} {split} {draw} {chosen[0][0]}".encode()),
        }
        if split != "train":
            batch["other"] = self._view("train", rows % len(self.items["train"]))
        return batch

    def example(self) -> dict[str, Any]:
        """Return one small batch of training rows."""
        return self.collate("train", (np.arange(2), 0))

    def speed_batch(self) -> dict[str, Any]:
        """Return one full batch of training rows, taken for samples at the noise level 1, to measure speed on."""
        batch = self.collate("train", (np.arange(min(self.batch_size, len(self.items["train"]))), 0))
        return {**batch, "inputs": {**batch["inputs"], "sigma": torch.ones(len(batch["id"]))}}

    def table(self, split: str) -> dict[str, Tensor]:
        """Return the view of all rows of a split."""
        return self._view(split, slice(None))

    def _view(self, split: str, rows: Tensor | slice) -> dict[str, Tensor]:
        if split not in self._columns:
            items = self.items[split]
            names = ["sample"] if self.label is None else ["sample", "label"]
            self._columns[split] = {name: torch.stack([item[name] for item in items]) for name in names}
        view = {name: column[rows] for name, column in self._columns[split].items()}
        return view | {"sample": ranged(view["sample"].float(), self.value_range)}


class RowNumbers(torch.utils.data.Dataset):
    """Batches of rows by their numbers, asked for together with their draw."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitems__(self, asked: tuple[np.ndarray, int]) -> tuple[np.ndarray, int]:
        return asked
