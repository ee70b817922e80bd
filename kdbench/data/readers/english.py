"""English sets that most encoder papers share: their rows, and readers of the files as published.

Stanford Sentiment Treebank in two classes of whole sentences (Socher et al. 2013), STS Benchmark (Cer et al. 2017, arXiv
1708.00055) and BANKING77 (Casanueva et al. 2020, arXiv 2003.04807). Rows of every source go through one function a set.
"""

import csv
import functools
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

from kdbench.data.cards import EN_FILES
from kdbench.data.readers.published import (
    check_label,
    content,
    damaged,
    digest,
    distinct,
    held_out,
    lines,
    parsed,
    similarity,
    stamps,
    table,
)
from kdbench.data.registry import SPLITS, Row, local_file

SENTIMENTS = {"0": "negative", "1": "positive"}
PART = {"train": "train", "validation": "dev", "test": "test"}
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b"))


# ---- rows, from either source ----


def clean(text: Any, where: str) -> str:
    """Return the text without invisible marks, every run of whitespace as one space."""
    if not isinstance(text, str):
        raise damaged(where, f"{text!r} is no text")
    return " ".join(text.translate(_INVISIBLE).split())


def sentiment_row(text: str, sentiment: str | int, where: str) -> Row:
    """Return a sentence with ``negative`` or ``positive``, published as 0 or 1."""
    check_label(str(sentiment), SENTIMENTS, where)
    return {"text": clean(text, where), "label": SENTIMENTS[str(sentiment)]}


def pair_row(first: str, second: str, score: str | float, where: str) -> Row:
    """Return a pair with its similarity from 0 to 5."""
    return {"first": clean(first, where), "second": clean(second, where), "score": similarity(score, where)}


def intent_row(text: str, intent: str, known: Collection[str], where: str) -> Row:
    """Return a question to a bank with its intent, one of ``known``."""
    check_label(intent, known, where)
    return {"text": clean(text, where), "label": intent}


def intents(published: list[Row], split: str) -> list[Row]:
    """Return a split of BANKING77, of the published test or training rows: every tenth training row is for validation.

    The training file lists class by class, so its rows are put in the order of a hash of their texts: then the first n of
    them are a sample.
    """
    if split == "test":
        return published
    if split == "validation":
        return published[9::10]
    kept = [row for place, row in enumerate(published) if place % 10 != 9]
    return sorted(kept, key=lambda row: (digest(row["text"]), row["label"]))


# ---- local files ----


def local_sst2(folder: Path, split: str) -> list[Row]:
    """Return the published split."""
    path = local_file(folder, f"{PART[split]}.tsv")
    rows = []
    for number, line in lines(path):
        text, tab, label = line.rpartition("\t")
        if not tab:
            raise damaged(f"{path}, line {number}", "no tab between text and label")
        rows.append(sentiment_row(text, label, f"{path}, line {number}"))
    return rows


def local_stsb(folder: Path, split: str) -> list[Row]:
    """Return the published split."""
    path = local_file(folder, f"{PART[split]}.tsv")
    columns = ("score", "sentence", "sentence")
    return [pair_row(first, second, score, where) for where, (score, first, second) in table(path, columns)]


def local_banking77(folder: Path, split: str) -> list[Row]:
    """Return the published test split, or a part of the training split (:func:`intents`)."""
    categories = local_file(folder, "categories.json")
    known = parsed(categories)
    if not isinstance(known, list) or not all(isinstance(each, str) for each in known):
        raise damaged(categories, "not the published list of intents")
    path = local_file(folder, "test.csv" if split == "test" else "train.csv")
    reader = csv.reader(io.StringIO(content(path), newline=""), strict=True)
    rows = []
    try:
        if next(reader, None) != ["text", "category"]:
            raise damaged(f"{path}, line 1", "the header is not text,category")
        for columns in reader:
            where = f"{path}, line {reader.line_num}"
            if len(columns) != 2:
                raise damaged(where, f"{len(columns)} columns instead of text, category")
            rows.append(intent_row(*columns, known, where))
    except csv.Error as error:
        raise damaged(f"{path}, line {reader.line_num}", f"not valid CSV ({error})") from error
    return intents(rows, split)


def local_text(folder: Path, split: str) -> list[Row]:
    """Return the distinct training texts of the three sets, 5% for validation and 5% for test by the hash of the text.

    A text that is also in the validation or test split of any of the sets is left out.
    """
    return [{"text": text} for text in _texts(folder, stamps(folder, EN_FILES)) if held_out(text) == split]


@functools.lru_cache(maxsize=1)
def _texts(folder: Path, stamp: tuple[tuple[int, int], ...]) -> list[str]:
    """Return the training texts; ``stamp`` (times and sizes of the files) makes the cache forget changed files."""
    by_split = {
        split: [
            *(row["text"] for row in local_sst2(folder / "sst2", split)),
            *(row[side] for row in local_stsb(folder / "stsb", split) for side in ("first", "second")),
            *(row["text"] for row in local_banking77(folder / "banking77", split)),
        ]
        for split in SPLITS
    }
    return distinct(by_split["train"], by_split["validation"] + by_split["test"])
