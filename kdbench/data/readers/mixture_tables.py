"""The published tables of RegMix: mixtures of 17 domains of the Pile, and the losses of the models that were trained on them."""

import csv
from pathlib import Path

from kdbench.data.readers.published import content, damaged
from kdbench.data.registry import Row, local_file

SIZES = {"train": ("1m",), "test": ("1m", "60m", "1B")}
"""The sizes of the models whose losses are told: those to learn from, and those to predict."""
INDEX = "index"


def local_mixtures(folder: Path, split: str) -> list[Row]:
    """Return ``{"size", "mixture", "losses"}``, a share and a loss (nats a token) for each domain, of the models of each size.

    A mixture and its losses are those of one index; where a model has no losses, its row is left out. There is no validation
    split.
    """
    found = []
    for size in SIZES.get(split, ()):
        mixtures = _table(local_file(folder, f"{split}_mixture_{size}.csv"), "train_the_pile_", "")
        losses = _table(local_file(folder, f"{split}_pile_loss_{size}.csv"), "metric/the_pile_", "_val_loss")
        found += [
            {"size": size.lower(), "mixture": mixture, "losses": losses[index]}
            for index, mixture in mixtures.items()
            if index in losses
        ]
    return found


def _table(file: Path, before: str, behind: str) -> dict[str, dict[str, float]]:
    """Return the numbers of each row by its index, their columns without what all names begin and end with."""
    rows = list(csv.DictReader(content(file).splitlines()))
    if not rows or INDEX not in rows[0]:
        raise damaged(file, f"there is no column '{INDEX}', by which mixtures and losses belong together")
    found = {}
    for row in rows:
        index = row.pop(INDEX)
        if index in found:
            raise damaged(file, f"the index {index} is there twice")
        try:
            found[index] = {name.removeprefix(before).removesuffix(behind): float(row[name]) for name in row}
        except (TypeError, ValueError, AttributeError):
            raise damaged(file, f"the row of index {index} has not a number in every column") from None
    return found
