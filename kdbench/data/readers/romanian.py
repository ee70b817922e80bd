"""The Romanian sets of Avram et al. (2022, arXiv 2112.12650): their rows, and readers of the files as published.

Rows of every source go through one function a set, which checks the labels and writes comma-below letters.
"""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kdbench.data.cards import RO_FILES
from kdbench.data.readers.normalise import clean
from kdbench.data.readers.published import (
    check_label,
    damaged,
    distinct,
    held_out,
    lines,
    parsed,
    similarity,
    stamps,
    table,
)
from kdbench.data.registry import SPLITS, Row, local_file

# fmt: off
UPOS = frozenset({
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM",
    "PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X",
})
ENTITIES = (
    "PERSON", "ORG", "GPE", "LOC", "NAT_REL_POL", "EVENT", "LANGUAGE", "WORK_OF_ART",
    "DATETIME", "PERIOD", "MONEY", "QUANTITY", "NUMERIC", "ORDINAL", "FACILITY",
)
# fmt: on
NER = frozenset({"O", *(f"{edge}-{entity}" for entity in ENTITIES for edge in "BI")})
STARS = frozenset({1, 2, 4, 5})
DIALECTS = frozenset({"RO", "MD"})
TREEBANK = {"train": "train", "validation": "dev", "test": "test"}
MOROCO_TEST = 1000  # the last tweets of the published test file; the others train


# ---- rows, from either source ----


def tagged_row(words: list[str], upos: list[str], xpos: list[str], where: str) -> Row:
    """Return a sentence with its universal and its language-specific tags."""
    _check(upos, UPOS, where)
    _check_lengths(words, upos, where)
    return {"words": [_text(word, where) for word in words], "upos": list(upos), "xpos": list(xpos)}


def entity_row(words: list[str], ner: list[str], where: str) -> Row:
    """Return a sentence with its entities as BIO2 tags."""
    _check(ner, NER, where)
    _check_lengths(words, ner, where)
    return {"words": [_text(word, where) for word in words], "ner": list(ner)}


def review_row(title: str, content: str, stars: str | int, where: str) -> Row:
    """Return a review with its stars as a number."""
    number = int(stars) if str(stars).isdecimal() else stars
    check_label(number, STARS, where)
    return {"title": _text(title, where), "content": _text(content, where), "stars": number}


def pair_row(first: str, second: str, score: str | float, where: str) -> Row:
    """Return a pair with its similarity from 0 to 5."""
    return {"first": _text(first, where), "second": _text(second, where), "score": similarity(score, where)}


def dialect_row(text: str, dialect: str, where: str) -> Row:
    """Return a text with its dialect; the label is never a part of the text."""
    check_label(dialect, DIALECTS, where)
    return {"text": _text(text, where), "dialect": dialect}


# ---- local files ----


def local_rrt(folder: Path, split: str) -> list[Row]:
    """Return the treebank's own split."""
    return [row for row, _ in _trees(folder, split)]


def local_ronec(folder: Path, split: str) -> list[Row]:
    """Return test, or the published validation file: its last 15% for validation, the rest for training."""
    return [row for row, _ in _annotated(folder, split)]


def local_laroseda(folder: Path, split: str) -> list[Row]:
    """Return the official test reviews, or the other reviews: of both polarities the first 15% for validation."""
    positive, negative, test = RO_FILES["laroseda"]
    tested = _reviews(folder, test)
    if split == "test":
        return list(tested.values())
    both = [_reviews(folder, positive), _reviews(folder, negative)]
    if unknown := set(tested) - set(both[0]) - set(both[1]):
        raise damaged(local_file(folder, test), f"review {min(unknown)} is in neither {positive} nor {negative}")
    rows = []
    for reviews in both:
        kept = [row for index, row in reviews.items() if index not in tested]
        cut = len(kept) * 15 // 100
        rows += kept[:cut] if split == "validation" else kept[cut:]
    return rows


def local_rosts(folder: Path, split: str) -> list[Row]:
    """Return the published split."""
    path = local_file(folder, f"RO-STS.{TREEBANK[split]}.tsv")
    columns = ("score", "sentence", "sentence")
    return [pair_row(first, second, score, where) for where, (score, first, second) in table(path, columns)]


def local_moroco(folder: Path, split: str) -> list[Row]:
    """Return the development tweets for validation; the last 1,000 test tweets for test, the others for training."""
    stem = "dev" if split == "validation" else "test"
    path, labels = local_file(folder, f"{stem}.txt"), local_file(folder, f"{stem}.labels")
    rows = []
    named = [label for _, label in lines(labels)]
    for number, line in lines(path):
        text, _, column = line.rpartition("\t")
        if number > len(named) or column != named[number - 1]:
            raise damaged(f"{path}, line {number}", f"the last column does not agree with {labels}")
        rows.append(dialect_row(text, column, f"{path}, line {number}"))
    if len(rows) != len(named):
        raise damaged(path, f"{len(rows)} lines, but {labels} has {len(named)}")
    if split == "validation":
        return rows
    return rows[-MOROCO_TEST:] if split == "test" else rows[:-MOROCO_TEST]


def local_text(folder: Path, split: str) -> list[Row]:
    """Return the distinct training texts of the five sets, 5% for validation and 5% for test by the hash of the text.

    A text that is also in the validation or test split of any of the sets is left out.
    """
    return [{"text": text} for text in _texts(folder, stamps(folder, RO_FILES)) if held_out(text) == split]


@functools.lru_cache(maxsize=1)
def _texts(folder: Path, stamp: tuple[tuple[int, int], ...]) -> list[str]:
    """Return the training texts; ``stamp`` (times and sizes of the files) makes the cache forget changed files."""
    reviews, pairs, tweets = folder / "laroseda", folder / "rosts", folder / "moroco_tweets"
    by_split = {
        split: [
            *(text for _, text in _trees(folder / "rrt", split)),
            *(text for _, text in _annotated(folder / "ronec", split)),
            *(row["content"] for row in local_laroseda(reviews, split)),
            *(row[side] for row in local_rosts(pairs, split) for side in ("first", "second")),
            *(row["text"] for row in local_moroco(tweets, split)),
        ]
        for split in SPLITS
    }
    scored = by_split["validation"] + by_split["test"]
    scored += [row["title"] for split in ("validation", "test") for row in local_laroseda(reviews, split)]
    return distinct(by_split["train"], scored)


def _trees(folder: Path, split: str) -> Iterator[tuple[Row, str]]:
    """Yield the sentences of a CoNLL-U file with their texts, without multiword ranges (1-2) and empty nodes (1.1)."""
    path = local_file(folder, f"ro_rrt-ud-{TREEBANK[split]}.conllu")
    words: list[tuple[str, ...]] = []
    text = ""
    for number, line in [*lines(path), (0, "")]:
        if line.startswith("# text = "):
            text = line.removeprefix("# text = ")
        elif not line:
            if words:
                form, upos, xpos = (list(column) for column in zip(*words, strict=True))
                yield tagged_row(form, upos, xpos, f"{path}"), clean(text or " ".join(form))
            words, text = [], ""
        elif not line.startswith("#"):
            columns = line.split("\t")
            if len(columns) != 10 or not columns[0].replace("-", "").replace(".", "").isdecimal():
                raise damaged(f"{path}, line {number}", "no word of 10 tab-separated columns")
            if columns[0].isdecimal():
                check_label(columns[3], UPOS, f"{path}, line {number}")
                words.append((columns[1], columns[3], columns[4]))


def _annotated(folder: Path, split: str) -> list[tuple[Row, str]]:
    path = local_file(folder, "test.json" if split == "test" else "valid.json")
    rows = []
    for place, entry in enumerate(
        _entries(path, parsed(path), dict.fromkeys(("tokens", "ner_tags", "space_after"), list))
    ):
        row = entity_row(entry["tokens"], entry["ner_tags"], f"{path}, entry {place + 1}")
        _check_lengths(entry["tokens"], entry["space_after"], f"{path}, entry {place + 1}")
        spaced = zip(entry["tokens"], entry["space_after"], strict=True)
        rows.append((row, clean("".join(word + " " * bool(after) for word, after in spaced))))
    if split == "test":
        return rows
    cut = len(rows) - len(rows) * 15 // 100
    return rows[cut:] if split == "validation" else rows[:cut]


def _reviews(folder: Path, name: str) -> dict[str, Row]:
    path = local_file(folder, name)
    content = parsed(path)
    entries = content.get("reviews") if isinstance(content, dict) else None
    rows = {}
    fields = {"index": (str, int), "title": str, "content": str, "starRating": (str, int)}
    for place, entry in enumerate(_entries(path, entries, fields)):
        where = f"{path}, review {place + 1}"
        rows[entry["index"]] = review_row(entry["title"], entry["content"], entry["starRating"], where)
    return rows


# ---- reading and checking ----


def _entries(path: Path, entries: Any, fields: dict[str, type | tuple[type, ...]]) -> list[Row]:
    if not isinstance(entries, list):
        raise damaged(path, "not the published list of entries")
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or not set(fields) <= set(entry):
            raise damaged(f"{path}, entry {place + 1}", f"without the fields {', '.join(fields)}")
        for field, kind in fields.items():
            if not isinstance(entry[field], kind):
                raise damaged(f"{path}, entry {place + 1}", f"{field} is {entry[field]!r}")
    return entries


def _text(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise damaged(where, f"{text!r} is no text")
    return clean(text)


def _check(labels: Iterable[Any], known: frozenset[Any], where: str) -> None:
    for label in labels:
        check_label(label, known, where)


def _check_lengths(words: list[str], facts: list[Any], where: str) -> None:
    if len(words) != len(facts):
        raise damaged(where, f"{len(words)} words, but tags or spaces for {len(facts)}")
