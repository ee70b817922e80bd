"""Hindi pairs of sentences: STS Benchmark translated by machine, as github.com/l3cube-pune/MarathiNLP publishes it."""

from pathlib import Path

from kdbench.data.readers.english import PART, pair_row
from kdbench.data.readers.published import table
from kdbench.data.registry import Row, local_file

COLUMNS = ("genre", "file", "year", "number", "score", "sentence", "sentence")


def local_stsb(folder: Path, split: str) -> list[Row]:
    """Return the published split."""
    path = local_file(folder, f"sts-{PART[split]}-hi.tsv")
    return [pair_row(first, second, score, where) for where, (*_, score, first, second) in table(path, COLUMNS)]
