"""Reading data from the hub through the datasets library, and one clear error where it cannot be reached."""

from collections.abc import Iterator
from typing import Any

from kdbench.data.cards import Hub
from kdbench.data.registry import Row
from kdbench.errors import UserError


def fetch(hub: Hub, split: str) -> Iterator[tuple[str, Row]]:
    """Yield where a row is and the row, class numbers as their names."""
    table = load(hub.id, hub.id, split, data_dir=hub.config, revision=hub.revision)
    named = {column: feature for column in table.features if (feature := _names(table.features[column])) is not None}
    for place, row in enumerate(table):
        decoded = {column: feature.int2str(row[column]) for column, feature in named.items()}
        yield f"{hub.id} ({split}), row {place + 1}", row | decoded


def load(
    name: str,
    path: str,
    split: str,
    data_dir: str | None = None,
    data_files: dict[str, str] | None = None,
    revision: str | None = None,
) -> Any:
    """Return a table of the datasets library; raise :class:`UserError` with ``name`` when it cannot be had."""
    import datasets

    try:
        return datasets.load_dataset(path, data_dir=data_dir, data_files=data_files, revision=revision, split=split)
    except Exception as error:  # the client's own, httpx's, fsspec's and the system's errors have no common base
        raise unreachable(name, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error


def unreachable(name: str, why: str) -> UserError:
    """Return the error of data that could not be fetched, to be raised."""
    return UserError(
        f"The data set '{name}' could not be fetched ({why}): "
        "connect this machine to the network, or choose another source."
    )


def _names(feature: Any) -> Any:
    """Return the class names of a column of classes or of lists of classes."""
    inner = getattr(feature, "feature", feature)
    return inner if hasattr(inner, "int2str") else None
