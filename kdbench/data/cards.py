"""The cards of the data sets: what each is, where its rows come from, what is known of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


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
        task: ``text``, ``tagging``, ``classification``, ``similarity``, ``retrieval``, ``density`` or ``mixtures``.
        languages: ISO 639-1 codes.
        licence: of the published data.
        description: one line.
        loaders: the function of each source that the set has: ``embedded(split, count)``, without a count where the number of
            rows is not fixed, ``local(folder, split)`` and ``hub(hub, split)``, each returning rows; or where it is in this
            package, ``room.module:name``, to be imported only when it is used.
        splits: rows of train, validation and test, for the sources where they are fixed.
        embedded: what the generator is and the best score that its rows allow; nothing where there is none.
        hub: where it lies on the hub.
        local: its folder under ``KDBENCH_DATA``.
        files: its files in that folder, each plain or with ``.gz`` at the end, or folders of files.
    """

    name: str
    task: str
    languages: tuple[str, ...]
    licence: str
    description: str
    loaders: Mapping[str, str | Callable[..., list[dict[str, Any]]]]
    splits: dict[str, tuple[int, int, int]]
    embedded: str = ""
    hub: Hub | None = None
    local: str | None = None
    files: tuple[str, ...] = ()


def _published(room: str, readers: str) -> dict[str, str]:
    return {
        "local": f"readers.{room}:local_{readers}",
        "hub": f"readers.{room}_hub:hub_{readers}",
    }


def _sources(embedded: str, readers: str) -> dict[str, str]:
    return {"embedded": f"generators.romanian:{embedded}", **_published("romanian", readers)}


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
CIFAR_FILES = ("train.parquet", "test.parquet")

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
            name="code/stdlib_functions",
            task="retrieval",
            languages=("en",),
            licence="PSF-2.0",
            description="docstrings and functions of Python's own standard library, no package in two splits",
            embedded="Real code of the interpreter that runs (Python 3.11: 2,708 / 332 / 333 pairs); the best score is not known.",
            loaders={"embedded": "readers.stdlib:functions"},
            splits={},
        ),
        Card(
            name="code/synthconl",
            task="retrieval",
            languages=("en",),
            licence="as CodeSearchNet's repositories; translations by Qwen2.5-Coder",
            description="text to code, and code to its translation into another language (SynthCoNL); repositories are split",
            loaders={"hub": "readers.code_hub:hub_synthconl"},
            splits={},
            hub=Hub("modularStarEncoder/SynthCoNL", "data", "800231d337ba895f4e49ea948ce498184ab448b6"),
        ),
        Card(
            name="en/python_docs",
            task="text",
            languages=("en",),
            licence="PSF-2.0",
            description="paragraphs of the reference that every Python carries, no topic in two splits",
            embedded="Real prose of the interpreter that runs; the best score is not known.",
            loaders={"embedded": "readers.python_docs:paragraphs"},
            splits={"embedded": (1150, 140, 120)},
        ),
        Card(
            name="en/tinyshakespeare",
            task="text",
            languages=("en",),
            licence="MIT",
            description="Shakespeare's plays in windows of 128 characters, in the order of the file",
            loaders={"local": "readers.writings:local_shakespeare"},
            splits={"local": (7842, 435, 435)},
            local="en/tinyshakespeare",
            files=("input.txt",),
        ),
        Card(
            name="en/gsm8k",
            task="text",
            languages=("en",),
            licence="MIT",
            description="school problems in words with worked answers (GSM8K); a tenth of its training rows is for validation",
            loaders=_published("writings", "gsm8k"),
            splits={"local": (6726, 747, 1319), "hub": (6726, 747, 1319)},
            hub=Hub("openai/gsm8k", "main", "main"),
            local="en/gsm8k",
            files=("train.jsonl", "test.jsonl"),
        ),
        Card(
            name="hi/stsb",
            task="similarity",
            languages=("hi",),
            licence="not stated",
            description="pairs of Hindi sentences with a similarity from 0 to 5 (STS Benchmark translated by machine)",
            loaders={"local": "readers.hindi:local_stsb"},
            splits={"local": (5749, 1500, 1379)},
            local="hi/stsb",
            files=tuple(f"sts-{part}-hi.tsv" for part in ("train", "dev", "test")),
        ),
        Card(
            name="mt/text",
            task="text",
            languages=("mt",),
            licence="CC BY-SA 4.0",
            description="sentences of the Maltese treebank (UD_Maltese-MUDT)",
            loaders={"local": "readers.maltese:local_text"},
            splits={"local": (1123, 433, 518)},
            local="mt/mudt",
            files=tuple(f"mt_mudt-ud-{part}.conllu" for part in ("train", "dev", "test")),
        ),
        Card(
            name="en/dolly",
            task="text",
            languages=("en",),
            licence="Apache-2.0",
            description="instructions and responses (Dolly 15k as MiniLLM splits it)",
            loaders={"hub": "readers.writings_hub:hub_dolly"},
            splits={},
            hub=Hub("MiniLLM/dolly", ".", "d131636138be0ff3fd0901c12c1739844d337279"),
        ),
        Card(
            name="synthetic/markov_language",
            task="text",
            languages=(),
            licence="Apache-2.0",
            description="texts of 34 words out of 24, each drawn by a law of the two words before it",
            embedded="A Markov chain of order 2; the best language model has a cross-entropy of 1.65 nats a word after two.",
            loaders={"embedded": "generators.markov_language:texts"},
            splits={"embedded": (4096, 512, 512)},
        ),
        Card(
            name="synthetic/markov_domains",
            task="text",
            languages=(),
            licence="Apache-2.0",
            description="texts of four domains, and of a target that two of them resemble; one law a domain",
            embedded="Markov chains of order 1; the best language model of the target has 2.53 nats a word after the first.",
            loaders={"embedded": "generators.markov_domains:texts"},
            splits={"embedded": (8000, 200, 400)},
        ),
        Card(
            name="text/pile_domains",
            task="text",
            languages=("en",),
            licence="as the texts that it is made of",
            description="a sample of 17 domains of the Pile without copyrighted texts (RegMix); half of its validation is for test",
            loaders={"hub": "readers.pile_hub:hub_domains"},
            splits={},
            hub=Hub("sail/regmix-data-sample", ".", "main"),
        ),
        Card(
            name="mixtures/pile",
            task="mixtures",
            languages=("en",),
            licence="MIT",
            description="mixtures of 17 domains of the Pile and the losses of 1M, 60M and 1B models trained on them (RegMix)",
            loaders={"local": "readers.mixture_tables:local_mixtures"},
            splits={"local": (512, 0, 576)},
            local="regmix",
            files=tuple(
                f"{split}_{what}_{size}.csv"
                for split, sizes in (("train", ("1m",)), ("test", ("1m", "60m", "1B")))
                for size in sizes
                for what in ("mixture", "pile_loss")
            ),
        ),
        Card(
            name="synthetic/letters",
            task="text",
            languages=(),
            licence="Apache-2.0",
            description="a language without meaning: words of Latin letters that follow one another by their own law",
            embedded="Words drawn alone by Zipf's law; the best language model has a cross-entropy of 6.38 nats a word.",
            loaders={"embedded": "generators.letter_languages:first"},
            splits={"embedded": (6000, 500, 500)},
        ),
        Card(
            name="synthetic/letters_2",
            task="text",
            languages=(),
            licence="Apache-2.0",
            description="another language of Latin letters, whose letters follow by another law",
            embedded="Words drawn alone by Zipf's law; the best language model has a cross-entropy of 6.38 nats a word.",
            loaders={"embedded": "generators.letter_languages:second"},
            splits={"embedded": (6000, 500, 500)},
        ),
        Card(
            name="synthetic/letters_cyrillic",
            task="text",
            languages=(),
            licence="Apache-2.0",
            description="a language of the same kind in Cyrillic letters",
            embedded="Words drawn alone by Zipf's law; the best language model has a cross-entropy of 6.38 nats a word.",
            loaders={"embedded": "generators.letter_languages:third"},
            splits={"embedded": (6000, 500, 500)},
        ),
        Card(
            name="synthetic/hidden_markov",
            task="text",
            languages=(),
            licence="Apache-2.0",
            description="a synthetic language with two dialects and capitals, known to the last probability",
            embedded="A hidden Markov chain; the best tagger (forward-backward) finds 88.3% of the test states.",
            loaders={"embedded": "generators.hidden_markov_text:sentences"},
            splits={"embedded": (2000, 400, 600)},
        ),
        Card(
            name="synthetic/skewed_lengths",
            task="text",
            languages=(),
            licence="Apache-2.0",
            description="the same language in sentences of 8 to 126 words, most of them short: what padding costs",
            embedded="A hidden Markov chain; the best masked model has a cross-entropy of 2.78 nats a word, case included.",
            loaders={"embedded": "generators.hidden_markov_text:skewed_sentences"},
            splits={"embedded": (2000, 200, 400)},
        ),
        Card(
            name="synthetic/state_groups",
            task="classification",
            languages=(),
            licence="Apache-2.0",
            description="a synthetic language of 12 states in 4 groups: states of words, and 2, 4 or 8 classes of sentences",
            embedded="A hidden Markov chain; the best models find 99.0% of the test states and 98.7% of the groups.",
            loaders={"embedded": "generators.state_groups:sentences"},
            splits={"embedded": (12000, 1000, 2000)},
        ),
        Card(
            name="synthetic/state_groups_shifted",
            task="classification",
            languages=(),
            licence="Apache-2.0",
            description="the same words and states with other transitions: the language of state_groups in another domain",
            embedded="A hidden Markov chain; the best models of it find 96.6% of the test states and 93.0% of the groups.",
            loaders={"embedded": "generators.state_groups:shifted_sentences"},
            splits={"embedded": (12000, 1000, 2000)},
        ),
        Card(
            name="synthetic/state_pairs",
            task="classification",
            languages=(),
            licence="Apache-2.0",
            description="pairs of sentences of the language of state_groups: is the dominant group the same?",
            embedded="Pairs of sentences of a hidden Markov chain; the best model tells 98.2% of the test pairs.",
            loaders={"embedded": "generators.state_groups:sentence_pairs"},
            splits={"embedded": (12000, 1000, 2000)},
        ),
        Card(
            name="synthetic/gaussian_tree",
            task="classification",
            languages=(),
            licence="Apache-2.0",
            description="vectors of 32 numbers in 20 classes on a tree; a tenth of the training labels is wrong",
            embedded="Gaussians around the leaves of a tree; Bayes' rule tells 82.3% of the test classes.",
            loaders={"embedded": "generators.gaussian_classes:vectors"},
            splits={"embedded": (2000, 1000, 4000)},
        ),
        Card(
            name="synthetic/ring",
            task="density",
            languages=(),
            licence="Apache-2.0",
            description="points of eight narrow Gaussians on a circle of radius 1, to be sampled by diffusion models",
            embedded="A mixture of Gaussians; fresh points have a sliced Wasserstein distance of 0.014 from the test points.",
            loaders={"embedded": "generators.density_mixtures:ring"},
            splits={"embedded": (20000, 2000, 2000)},
        ),
        Card(
            name="synthetic/class_templates",
            task="classification",
            languages=(),
            licence="Apache-2.0",
            description="images of 3x16x16 in 10 classes: smooth patterns, shifted, under strong noise",
            embedded="Templates under Gaussian noise; Bayes' rule tells 100.0% of the test classes.",
            loaders={"embedded": "generators.class_templates:waves_images"},
            splits={"embedded": (4000, 1000, 4000)},
        ),
        Card(
            name="synthetic/class_templates_20",
            task="classification",
            languages=(),
            licence="Apache-2.0",
            description="images of 1x16x16 in 20 classes: three round spots each, under strong noise",
            embedded="Templates under Gaussian noise; Bayes' rule tells 93.8% of the test classes.",
            loaders={"embedded": "generators.class_templates:spots_images"},
            splits={"embedded": (4000, 1000, 2000)},
        ),
        Card(
            name="synthetic/painted_scenes",
            task="classification",
            languages=(),
            licence="Apache-2.0",
            description="images of 3x16x16 in 20 classes: five textures with a disc in one of four quarters, under noise",
            embedded="Textures of random phase and a disc under Gaussian noise; Bayes' rule tells 99.4% of the test classes.",
            loaders={"embedded": "generators.painted_scenes:images"},
            splits={"embedded": (4000, 1000, 2000)},
        ),
        Card(
            name="vision/digits",
            task="classification",
            languages=(),
            licence="CC BY 4.0",
            description="handwritten digits of 8x8 pixels that scikit-learn carries (UCI optical recognition)",
            embedded="Real images; the best possible score is not known.",
            loaders={"embedded": "readers.digits:images"},
            splits={"embedded": (1000, 297, 500)},
        ),
        Card(
            name="vision/cifar10",
            task="classification",
            languages=(),
            licence="not stated",
            description="photographs of 3x32x32 in 10 classes (CIFAR-10); a tenth of its training rows is for validation",
            loaders=_published("vision", "cifar10"),
            splits={"local": (45000, 5000, 10000), "hub": (45000, 5000, 10000)},
            hub=Hub("uoft-cs/cifar10", "plain_text", "main"),
            local="cifar10",
            files=CIFAR_FILES,
        ),
        Card(
            name="vision/cifar100",
            task="classification",
            languages=(),
            licence="not stated",
            description="photographs of 3x32x32 in 100 classes (CIFAR-100); a tenth of its training rows is for validation",
            loaders=_published("vision", "cifar100"),
            splits={"local": (45000, 5000, 10000), "hub": (45000, 5000, 10000)},
            hub=Hub("uoft-cs/cifar100", "cifar100", "main"),
            local="cifar100",
            files=CIFAR_FILES,
        ),
        Card(
            name="vision/imagenet",
            task="classification",
            languages=(),
            licence="ImageNet terms of access: research only",
            description="photographs in 1000 classes (ILSVRC 2012); a hundredth of its training rows is for validation",
            loaders=_published("vision", "imagenet"),
            splits={"local": (1268356, 12811, 50000), "hub": (1268356, 12811, 50000)},
            hub=Hub("ILSVRC/imagenet-1k", "data", "main"),
            local="imagenet",
            files=("train", "val"),
        ),
        Card(
            name="vision/coco_latents",
            task="density",
            languages=("en",),
            licence="captions CC BY 4.0, images by their Flickr terms",
            description="photographs of COCO as latents of Stable Diffusion XL, each with its caption",
            loaders={"hub": "readers.coco:hub_latents"},
            splits={"hub": (1000, 200, 1000)},
            hub=Hub("sayakpaul/coco-30-val-2014", "default", "main"),
        ),
    )
}
