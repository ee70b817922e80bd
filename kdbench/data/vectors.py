"""DataModules of plain vectors of numbers."""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from kdbench.data.base import DataOptions, Item, Row, TaskData, class_numbers, field, numbered
from kdbench.errors import UserError


class VectorClassification(TaskData):
    """One class a vector; the view of every network is ``features``.

    Args:
        dataset: see :class:`~kdbench.data.base.TaskData`.
        label: the field of the row that holds the class.
        features: the field of the numbers, as many in every row; those of an image follow one another.
        value_range: two numbers that are brought to -1 and 1, ``[0, 255]`` for images; by default values stay as they are.
        options: see :class:`~kdbench.data.base.TaskData`.
    """

    task = "classification"
    batch_sizes = 64, 512
    draws = 1

    def __init__(
        self,
        dataset: str,
        label: str = "label",
        features: str = "features",
        value_range: list[float] | None = None,
        **options: Unpack[DataOptions],
    ) -> None:
        super().__init__(dataset, **options)
        self.label, self.features, self.value_range = label, features, checked_range(value_range)

    def read_labels(self, rows: dict[str, list[Row]]) -> list[str]:
        """Return every value of the label, in order."""
        self.number = class_numbers(rows, self.label)
        return [str(value) for value in self.number]

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return the numbers as float32 and the number of the class.

        Raises:
            UserError: the field holds no numbers, or not as many in every row.
        """
        try:
            values = torch.from_numpy(np.array([field(row, self.features) for row in rows], dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"The field '{self.features}' of '{self.dataset}' is no vector of equally many numbers in every row: {error}."
            ) from error
        vectors = ranged(values, self.value_range).flatten(1)
        return [
            {"features": vector, "label": self.number[field(row, self.label)]}
            for vector, row in zip(vectors, rows, strict=True)
        ]

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return ``inputs.features`` ``[B, D]`` and the classes ``[B]``."""
        return {
            **numbered(chosen),
            "inputs": {"features": torch.stack([item["features"] for item, _ in chosen])},
            "labels": torch.tensor([item["label"] for item, _ in chosen]),
        }


def checked_range(value_range: list[float] | None) -> list[float] | None:
    """Return a range of values; raise ValueError unless it is the lowest and the highest."""
    if value_range is not None and (len(value_range) != 2 or value_range[0] >= value_range[1]):
        raise ValueError(f"value_range is the lowest and the highest value, got {value_range}")
    return value_range


def ranged(values: Tensor, value_range: list[float] | None) -> Tensor:
    """Return values with the ends of their range brought to -1 and 1; without a range they stay as they are."""
    if value_range is None:
        return values
    lowest, highest = value_range
    return (values - lowest) * (2 / (highest - lowest)) - 1
