"""Pairs of code from the hub."""

from collections.abc import Iterable

from kdbench.data.cards import Hub
from kdbench.data.readers.fetched import fetch
from kdbench.data.readers.published import digest
from kdbench.data.registry import Row

HELD_OUT = {0: "validation", 1: "test"}  # of 100 hash values of a repository's name


def hub_synthconl(hub: Hub, split: str) -> list[Row]:
    """Return the pairs of a split; only training triples are published, so that repositories are held out here."""
    return pairs((row for _, row in fetch(hub, "train")), split)


def pairs(triples: Iterable[Row], split: str) -> list[Row]:
    """Return two rows for each triple of SynthCoNL in a split: a function's text with its code, and the code translated.

    ``query`` and ``code`` are the pair, ``query_kind`` and ``code_kind`` say what each is, ``package`` is the repository.
    """
    found: list[Row] = []
    for triple in triples:
        package = triple["repository_name"]
        if HELD_OUT.get(digest(package) % 100, "train") != split:
            continue
        texts = [triple[name] for name in ("func_documentation_string", "func1_CSN", "func2")]
        languages = [f"{triple[name]} code snippet" for name in ("language1_CSN", "language2")]
        kinds = ["natural language query", *languages]
        found += [
            {
                "query": texts[place],
                "code": texts[place + 1],
                "query_kind": kinds[place],
                "code_kind": kinds[place + 1],
                "package": package,
            }
            for place in (0, 1)
        ]
    return found
