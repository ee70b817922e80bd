"""English prose that every Python carries: the reference behind ``help()``, a row a paragraph."""

import functools
import pydoc_data.topics as documentation

from kdbench.data.readers.published import digest
from kdbench.data.registry import SPLITS, Row

WORDS = 8  # of a paragraph, at least
TENTHS = (8, 1, 1)


def paragraphs(split: str, count: int) -> list[Row]:
    """Return the first ``count`` paragraphs of a split; a topic is in one split only, and so is a paragraph."""
    return _rows()[split][:count]


@functools.cache
def _rows() -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {split: [] for split in SPLITS}
    shares = dict(zip(SPLITS, TENTHS, strict=True))
    seen: set[str] = set()
    for topic in sorted(documentation.topics, key=digest):
        rows = []
        for paragraph in documentation.topics[topic].split("\n\n"):
            text = " ".join(paragraph.split())
            if len(text.split()) >= WORDS and text not in seen:
                seen.add(text)
                rows.append({"text": text, "topic": topic})
        found[min(SPLITS, key=lambda split: (len(found[split]) + len(rows)) / shares[split])] += rows
    return found
