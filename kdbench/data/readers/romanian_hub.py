"""The Romanian sets of Avram et al. (2022, arXiv 2112.12650) from the hub, as the same rows as the local files give."""

from huggingface_hub.constants import HF_HUB_OFFLINE

from kdbench.data.cards import Hub
from kdbench.data.readers.fetched import fetch, load, unreachable
from kdbench.data.readers.normalise import clean
from kdbench.data.readers.published import damaged, held_out
from kdbench.data.readers.romanian import dialect_row, entity_row, pair_row, review_row, tagged_row
from kdbench.data.registry import Row

MOROCO_DIALECTS = {"1": "MD", "2": "RO"}


def hub_text(hub: Hub, split: str) -> list[Row]:
    """Return the paragraphs of Romanian Wikipedia, 5% for validation and 5% for test by the hash of the text."""
    paragraphs = (clean(line) for _, row in fetch(hub, "train") for line in row["text"].split("\n"))
    return [{"text": text} for text in paragraphs if text and held_out(text) == split]


def hub_rrt(hub: Hub, split: str) -> list[Row]:
    """Return the treebank's own split; multiword ranges, whose tag is ``_``, are skipped."""
    rows = []
    for where, row in fetch(hub, split):
        kept = [word for word in zip(row["tokens"], row["upos"], row["xpos"], strict=True) if word[1] != "_"]
        words, upos, xpos = (list(column) for column in zip(*kept, strict=True))
        rows.append(tagged_row(words, upos, xpos, where))
    return rows


def hub_ronec(hub: Hub, split: str) -> list[Row]:
    """Return the published split (v2: 9,000 / 1,330 / 2,000 sentences)."""
    return [entity_row(row["tokens"], row["ner_tags"], where) for where, row in fetch(hub, split)]


def hub_laroseda(hub: Hub, split: str) -> list[Row]:
    """Return the published test reviews, or the published training reviews: their first 15% for validation."""
    published = fetch(hub, "test" if split == "test" else "train")
    rows = [review_row(row["title"], row["content"], row["starRating"], where) for where, row in published]
    cut = len(rows) * 15 // 100
    return {"train": rows[cut:], "validation": rows[:cut], "test": rows}[split]


def hub_rosts(hub: Hub, split: str) -> list[Row]:
    """Return the published split."""
    return [pair_row(row["sentence1"], row["sentence2"], row["score"], where) for where, row in fetch(hub, split)]


def hub_moroco(hub: Hub, split: str) -> list[Row]:
    """Return the published split from the authors' repository: the set on the hub has topics but no dialects."""
    if HF_HUB_OFFLINE:  # the datasets library obeys it for the hub alone
        raise unreachable(hub.id, "HF_HUB_OFFLINE is set")
    repository = hub.id.removeprefix("github.com/")
    return moroco_rows(f"https://raw.githubusercontent.com/{repository}/{hub.revision}/{hub.config}", hub.id, split)


def moroco_rows(base: str, name: str, split: str) -> list[Row]:
    """Return the rows of ``<split>_samples.txt`` and ``<split>_dialect_labels.txt`` under a folder or an address."""
    samples, labels = (
        [
            line["text"].partition("\t")
            for line in load(name, "text", split, data_files={split: f"{base}/{split}_{part}.txt"})
        ]
        for part in ("samples", "dialect_labels")
    )
    if len(samples) != len(labels):
        raise damaged(f"{name} ({split})", f"{len(samples)} samples but {len(labels)} labels")
    rows = []
    for place, ((sample, _, text), (labelled, _, label)) in enumerate(zip(samples, labels, strict=True)):
        where = f"{name} ({split}), row {place + 1}"
        if sample != labelled:
            raise damaged(where, f"sample {sample} has the label of {labelled}")
        rows.append(dialect_row(text, MOROCO_DIALECTS.get(label, label), where))
    return rows
