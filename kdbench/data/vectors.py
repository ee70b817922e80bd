"""DataModules of plain vectors of numbers."""

from collections.abc import Sequence
from typing import Any

import torch

from kdbench.data.base import Item, Row, TaskData, class_numbers, field, numbered
from kdbench.data.samplers import Deal
from kdbench.errors import UserError


class VectorClassification(TaskData):
    """One class a vector; the view of every network is ``features``.

    Args:
        dataset: see :class:`~kdbench.data.base.TaskData`.
        label: the field of the row that holds the class.
        features: the field of the numbers, as many in every row.
        source: see :class:`~kdbench.data.base.TaskData`.
        batch_size: see :class:`~kdbench.data.base.TaskData`.
        eval_batch_size: see :class:`~kdbench.data.base.TaskData`.
        num_workers: see :class:`~kdbench.data.base.TaskData`.
        deal: see :class:`~kdbench.data.base.TaskData`.
        train_rows: see :class:`~kdbench.data.base.TaskData`.
    """

    task = "classification"
    draws = 1

    def __init__(
        self,
        dataset: str,
        label: str = "label",
        features: str = "features",
        source: str = "embedded",
        batch_size: int = 64,
        eval_batch_size: int = 512,
        num_workers: int = 0,
        deal: Deal = "snake",
        train_rows: int | None = None,
    ) -> None:
        super().__init__(dataset, source, batch_size, eval_batch_size, num_workers, deal, train_rows)
        self.label, self.features = label, features

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
            vectors = torch.tensor([field(row, self.features) for row in rows], dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"The field '{self.features}' of '{self.dataset}' is no vector of equally many numbers in every row: {error}."
            ) from error
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
