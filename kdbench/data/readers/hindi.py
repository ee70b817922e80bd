"""Hindi pairs of sentences: STS Benchmark translated by machine, as github.com/l3cube-pune/MarathiNLP publishes it."""

from pathlib import Path

from kdbench.data.readers.english import PART, pair_row
from kdbench.data.readers.published import damaged, lines
from kdbench.data.registry import Row, local_file

COLUMNS = 7  # genre, file, year, number, score, sentence, sentence


def local_stsb(folder: Path, split: str) -> list[Row]:
    """Return the published split."""
    path = local_file(folder, f"sts-{PART[split]}-hi.tsv")
    rows = []
    for number, line in lines(path):
        columns = line.split("\t")
        if len(columns) != COLUMNS:
            raise damaged(f"{path}, line {number}", f"{len(columns)} columns instead of {COLUMNS}")
        score, first, second = columns[4:]
        rows.append(pair_row(first, second, score, f"{path}, line {number}"))
    return rows
