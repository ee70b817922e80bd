"""The data sets by name: what each is, where its rows come from, and the fingerprint of its content."""

import functools
import hashlib
import importlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.errors import UserError, nearest
from kdbench.files import file_digest

SPLITS = ("train", "validation", "test")
SOURCES = ("embedded", "local", "hub")
FOLDER = "KDBENCH_DATA"

Row = dict[str, Any]


class Hub(NamedTuple):
    """Where a data set lies on the hub: its id, the folder of its configuration and the revision that is read."""

    id: str
    config: str
    revision: str


@dataclass(frozen=True)
class Card:
    """What is known of a data set.

    Args:
        name: how experiments name it.
        task: ``text``, ``tagging``, ``classification`` or ``similarity``.
        languages: ISO 639-1 codes.
        licence: of the published data.
        description: one line.
        loaders: the function ``module:name`` of each source that the set has: ``embedded(split, count)``,
            ``local(folder, split)`` and ``hub(hub, split)``, each returning rows; imported only when it is used.
        splits: rows of train, validation and test, for the sources where they are fixed.
        embedded: what the generator is and the best score that its rows allow; nothing where there is none.
        hub: where it lies on the hub.
        local: its folder under ``KDBENCH_DATA``.
        files: its files in that folder, each plain or with ``.gz`` at the end.
    """

    name: str
    task: str
    languages: tuple[str, ...]
    licence: str
    description: str
    loaders: dict[str, str]
    splits: dict[str, tuple[int, int, int]]
    embedded: str = ""
    hub: Hub | None = None
    local: str | None = None
    files: tuple[str, ...] = ()


def load(name: str, source: str, split: str) -> list[Row]:
    """Return the rows of one split; never of another source than the one asked for.

    Raises:
        UserError: for an unknown name, source or split, for data that are missing, damaged or empty.
    """
    if split not in SPLITS:
        raise UserError(f"There is no split '{split}': choose one of {', '.join(SPLITS)}.")
    card, loader = _loader(name, source)
    if source == "embedded":
        rows = loader(split, card.splits[source][SPLITS.index(split)])
    elif source == "local":
        rows = loader(_folder(card), split)
    else:
        rows = loader(card.hub, split)
    if not rows:
        raise UserError(f"The split '{split}' of '{name}' from the source '{source}' has no row: complete its data.")
    return rows


@functools.cache
def _embedded_hash(name: str) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(json.dumps([split, load(name, "embedded", split)], sort_keys=True).encode())
    return digest.hexdigest()


def fingerprint(name: str, source: str) -> str:
    """Return 16 hex digits that change with the content: rows (embedded), file bytes (local) or id and revision (hub).

    Raises:
        UserError: for an unknown name or source, or for files that are missing.
    """
    card, _ = _loader(name, source)
    if source == "embedded":
        content = _embedded_hash(name)
    elif source == "local":
        paths = [local_file(_folder(card), each) for each in card.files]
        content = " ".join(file_digest(path) for path in paths)
    else:
        content = " ".join(card.hub)
    return hashlib.sha256(f"{name} {source} {content}".encode()).hexdigest()[:16]


def hub_ids(name: str) -> list[str]:
    """Return the ids that the source ``hub`` would fetch, without fetching."""
    card, _ = _loader(name, "hub")
    return [card.hub.id]


def card_of(name: str) -> Card:
    """Return the card of a data set; raise :class:`UserError` for an unknown name."""
    if name not in CARDS:
        raise UserError(f"There is no data set '{name}'.{nearest(name, CARDS)} 'kdbench list data' shows all.")
    return CARDS[name]


def local_file(folder: Path, name: str) -> Path:
    """Return the file of that name in a folder, plain or gzipped; raise :class:`UserError` where there is none."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(f"There is no file {folder / name} (nor the same with .gz): put the published file there.")


def _loader(name: str, source: str) -> tuple[Card, Callable[..., list[Row]]]:
    card = card_of(name)
    if source not in SOURCES:
        raise UserError(f"There is no source '{source}'.{nearest(source, SOURCES)} Choose {', '.join(card.loaders)}.")
    if source not in card.loaders:
        raise UserError(f"'{name}' has no source '{source}': choose {' or '.join(card.loaders)}.")
    module, _, attribute = card.loaders[source].partition(":")
    return card, getattr(importlib.import_module(module), attribute)


def _folder(card: Card) -> Path:
    root = os.environ.get(FOLDER)
    if not root:
        raise UserError(
            f"'{card.name}' from the source 'local' needs {FOLDER}: set it to the folder that holds '{card.local}'."
        )
    folder = Path(root).expanduser().absolute() / card.local
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: set {FOLDER} to the folder that holds '{card.local}'.")
    return folder


def _published(language: str, readers: str) -> dict[str, str]:
    return {
        "local": f"kdbench.data.{language}:local_{readers}",
        "hub": f"kdbench.data.{language}_hub:hub_{readers}",
    }


def _sources(embedded: str, readers: str) -> dict[str, str]:
    return {"embedded": f"kdbench.data.generators.romanian:{embedded}", **_published("romanian", readers)}


PARQUET = "refs/convert/parquet"  # the hub's own conversion: the datasets library no longer runs loading scripts
RRT_FILES = tuple(f"ro_rrt-ud-{part}.conllu" for part in ("train", "dev", "test"))
RONEC_FILES = ("valid.json", "test.json")
LAROSEDA_FILES = ("positive_reviews.json", "negative_reviews.json", "laroseda_test.json")
ROSTS_FILES = tuple(f"RO-STS.{part}.tsv" for part in ("train", "dev", "test"))
MOROCO_FILES = ("dev.txt", "dev.labels", "test.txt", "test.labels")
RO_FILES = {
    "rrt": RRT_FILES,
    "ronec": RONEC_FILES,
    "laroseda": LAROSEDA_FILES,
    "rosts": ROSTS_FILES,
    "moroco_tweets": MOROCO_FILES,
}
TSV_FILES = ("train.tsv", "dev.tsv", "test.tsv")
EN_FILES = {"sst2": TSV_FILES, "stsb": TSV_FILES, "banking77": ("train.csv", "test.csv", "categories.json")}

CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        Card(
            name="ro/text",
            task="text",
            languages=("ro",),
            licence="as the sets that it is made of",
            description="raw Romanian for masked language modelling (local: the training texts of the sets; hub: Wikipedia)",
            embedded="Sentences of all the Romanian generators; their entropy is not known in closed form.",
            loaders=_sources("sentences", "text"),
            splits={"embedded": (4000, 400, 400)},
            hub=Hub("wikimedia/wikipedia", "20231101.ro", PARQUET),
            local="ro",
            files=tuple(f"{folder}/{file}" for folder, files in RO_FILES.items() for file in files),
        ),
        Card(
            name="ro/rrt",
            task="tagging",
            languages=("ro",),
            licence="CC BY-SA 4.0",
            description="UPOS and XPOS tags of the Romanian reference treebank (UD_Romanian-RRT)",
            embedded="Clauses of a grammar with agreement; best score 100: every tag follows from the words.",
            loaders=_sources("tagged", "rrt"),
            splits={"embedded": (800, 200, 300), "local": (5217, 752, 729), "hub": (8043, 752, 729)},
            hub=Hub("universal-dependencies/universal_dependencies", "ro_rrt", PARQUET),
            local="ro/rrt",
            files=RRT_FILES,
        ),
        Card(
            name="ro/ronec",
            task="tagging",
            languages=("ro",),
            licence="MIT",
            description="named entities of 15 classes (RONEC v2)",
            embedded="Sentences with names from closed lists and dates; best score 100.",
            loaders=_sources("entities", "ronec"),
            splits={"embedded": (800, 200, 300), "local": (1131, 199, 2000), "hub": (9000, 1330, 2000)},
            hub=Hub("community-datasets/ronec", "ronec", PARQUET),
            local="ro/ronec",
            files=RONEC_FILES,
        ),
        Card(
            name="ro/laroseda",
            task="classification",
            languages=("ro",),
            licence="CC BY-NC-SA 4.0",
            description="product reviews with 1, 2, 4 or 5 stars (LaRoSeDa)",
            embedded="Reviews whose sentences, contrasts and negations included, tell the stars; best score 100.",
            loaders=_sources("reviews", "laroseda"),
            splits={"embedded": (800, 200, 300), "local": (10200, 1800, 3000), "hub": (10200, 1800, 3000)},
            hub=Hub("universityofbucharest/laroseda", "laroseda", PARQUET),
            local="ro/laroseda",
            files=LAROSEDA_FILES,
        ),
        Card(
            name="ro/rosts",
            task="similarity",
            languages=("ro",),
            licence="CC BY-SA 4.0",
            description="pairs of sentences with a similarity from 0 to 5 (RO-STS)",
            embedded="Pairs scored by the parts that they share, synonyms counting as shared; best correlation 100.",
            loaders=_sources("pairs", "rosts"),
            splits={"embedded": (800, 200, 300), "local": (5749, 1500, 1379), "hub": (5749, 1500, 1379)},
            hub=Hub("dumitrescustefan/ro_sts", "ro_sts", PARQUET),
            local="ro/rosts",
            files=ROSTS_FILES,
        ),
        Card(
            name="ro/moroco",
            task="classification",
            languages=("ro",),
            licence="CC BY-NC-SA 4.0",
            description="Romanian against Moldavian news (MOROCO; locally MOROCO-Tweets), entities replaced by $NE$",
            embedded="News with regional words, some of them misleading by design, names replaced by $NE$; best accuracy 90.2.",
            loaders=_sources("dialects", "moroco"),
            splits={"embedded": (800, 200, 300), "local": (4022, 215, 1000), "hub": (21719, 5921, 5924)},
            hub=Hub("github.com/butnaruandrei/MOROCO", "MOROCO/preprocessed/all", "master"),
            local="ro/moroco_tweets",
            files=MOROCO_FILES,
        ),
        Card(
            name="en/text",
            task="text",
            languages=("en",),
            licence="as the sets that it is made of",
            description="raw English for pre-training (local: the training texts of the sets; hub: a 41st of Wikipedia)",
            loaders=_published("english", "text"),
            splits={},
            hub=Hub("wikimedia/wikipedia", "20231101.en", "main"),
            local="en",
            files=tuple(f"{folder}/{file}" for folder, files in EN_FILES.items() for file in files),
        ),
        Card(
            name="en/sst2",
            task="classification",
            languages=("en",),
            licence="not stated",
            description="sentiment of sentences of film reviews (Stanford Sentiment Treebank, two classes)",
            loaders=_published("english", "sst2"),
            splits={"local": (6920, 872, 1821), "hub": (6920, 872, 1821)},
            hub=Hub("SetFit/sst2", "default", PARQUET),
            local="en/sst2",
            files=EN_FILES["sst2"],
        ),
        Card(
            name="en/stsb",
            task="similarity",
            languages=("en",),
            licence="CC BY-SA 4.0",
            description="pairs of sentences with a similarity from 0 to 5 (STS Benchmark)",
            loaders=_published("english", "stsb"),
            splits={"local": (5749, 1500, 1379), "hub": (5749, 1500, 1379)},
            hub=Hub("mteb/stsbenchmark-sts", "default", PARQUET),
            local="en/stsb",
            files=EN_FILES["stsb"],
        ),
        Card(
            name="en/banking77",
            task="classification",
            languages=("en",),
            licence="CC BY 4.0",
            description="questions to a bank with 77 intents (BANKING77); a tenth of its training rows is for validation",
            loaders=_published("english", "banking77"),
            splits={"local": (9003, 1000, 3080), "hub": (9003, 1000, 3080)},
            hub=Hub("PolyAI/banking77", "default", PARQUET),
            local="en/banking77",
            files=EN_FILES["banking77"],
        ),
        Card(
            name="synthetic/hidden_markov",
            task="text",
            languages=(),
            licence="Apache-2.0",
            description="a synthetic language with two dialects and capitals, known to the last probability",
            embedded="A hidden Markov chain; the best tagger (forward-backward) finds 88.3% of the test states.",
            loaders={"embedded": "kdbench.data.generators.hidden_markov_text:sentences"},
            splits={"embedded": (2000, 400, 600)},
        ),
        Card(
            name="synthetic/skewed_lengths",
            task="text",
            languages=(),
            licence="Apache-2.0",
            description="the same language in sentences of 8 to 126 words, most of them short: what padding costs",
            embedded="A hidden Markov chain; the best masked model has a cross-entropy of 2.78 nats a word, case included.",
            loaders={"embedded": "kdbench.data.generators.hidden_markov_text:skewed_sentences"},
            splits={"embedded": (2000, 200, 400)},
        ),
        Card(
            name="synthetic/state_groups",
            task="classification",
            languages=(),
            licence="Apache-2.0",
            description="a synthetic language of 12 states in 4 groups: states of words, and 2, 4 or 8 classes of sentences",
            embedded="A hidden Markov chain; the best models find 99.0% of the test states and 98.7% of the groups.",
            loaders={"embedded": "kdbench.data.generators.state_groups:sentences"},
            splits={"embedded": (12000, 1000, 2000)},
        ),
        Card(
            name="synthetic/state_groups_shifted",
            task="classification",
            languages=(),
            licence="Apache-2.0",
            description="the same words and states with other transitions: the language of state_groups in another domain",
            embedded="A hidden Markov chain; the best models of it find 96.6% of the test states and 93.0% of the groups.",
            loaders={"embedded": "kdbench.data.generators.state_groups:shifted_sentences"},
            splits={"embedded": (12000, 1000, 2000)},
        ),
        Card(
            name="synthetic/state_pairs",
            task="classification",
            languages=(),
            licence="Apache-2.0",
            description="pairs of sentences of the language of state_groups: is the dominant group the same?",
            embedded="Pairs of sentences of a hidden Markov chain; the best model tells 98.2% of the test pairs.",
            loaders={"embedded": "kdbench.data.generators.state_groups:sentence_pairs"},
            splits={"embedded": (12000, 1000, 2000)},
        ),
        Card(
            name="synthetic/gaussian_tree",
            task="classification",
            languages=(),
            licence="Apache-2.0",
            description="vectors of 32 numbers in 20 classes on a tree; a tenth of the training labels is wrong",
            embedded="Gaussians around the leaves of a tree; Bayes' rule tells 82.3% of the test classes.",
            loaders={"embedded": "kdbench.data.generators.gaussian_classes:vectors"},
            splits={"embedded": (2000, 1000, 4000)},
        ),
    )
}
