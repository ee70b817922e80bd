"""The English sets from the hub, as the same rows as the local files give."""

from kdbench.data.cards import Hub
from kdbench.data.readers.english import clean, intent_row, intents, pair_row, sentiment_row
from kdbench.data.readers.fetched import fetch, load
from kdbench.data.readers.published import held_out
from kdbench.data.registry import Row


def hub_sst2(hub: Hub, split: str) -> list[Row]:
    """Return the published split; GLUE has the phrases of the trees in training and no labels in test."""
    return [sentiment_row(row["text"], row["label"], where) for where, row in fetch(hub, split)]


def hub_stsb(hub: Hub, split: str) -> list[Row]:
    """Return the published split."""
    return [pair_row(row["sentence1"], row["sentence2"], row["score"], where) for where, row in fetch(hub, split)]


def hub_banking77(hub: Hub, split: str) -> list[Row]:
    """Return the published test split, or a part of the training split (:func:`intents`)."""
    published = [
        intent_row(row["text"], row["label"], [row["label"]], where)
        for where, row in fetch(hub, "test" if split == "test" else "train")
    ]
    return intents(published, split)


def hub_text(hub: Hub, split: str) -> list[Row]:
    """Return the paragraphs of the first of 41 files of English Wikipedia, 5% for validation and 5% for test by their hash.

    All files would be some fifty million paragraphs, more than a list of rows should hold.
    """
    first = {"train": f"{hub.config}/train-00000-of-*.parquet"}
    table = load(hub.id, hub.id, "train", data_files=first, revision=hub.revision)
    paragraphs = (
        clean(line, f"{hub.id}, row {place + 1}") for place, row in enumerate(table) for line in row["text"].split("\n")
    )
    return [{"text": text} for text in paragraphs if text and held_out(text) == split]
