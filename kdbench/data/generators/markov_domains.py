"""A corpus of four domains, two of which help with texts that are of none of them; known to the last probability.

It is the corpus of the small-scale proof of data mixtures: which shares of the domains serve the target best is to be found out.
"""

import bisect
import itertools
from typing import Any

import numpy as np

WORDS, KNOWN = 64, 48
LENGTH = 49
PRIOR = {"first": 0.15, "second": 0.1, "neutral": 0.4, "harmful": 0.35}
"""The share of each domain in the corpus."""
TARGET = "target"
KINSHIP = 0.75
_STREAMS = {"train": 1, "validation": 2, "test": 3}

Row = dict[str, Any]


class MarkovDomains:
    """Texts of 49 words, each drawn by a law of the word before it; the words are ``w0`` to ``w63``.

    A random law over a set of words is ``e / sum(e)`` a row, ``e = (-log u)^4`` and u uniform in (0, 1]: a few words are likely
    to follow, most are not. The first word of a text is any of its domain's alike.

    - ``target``: a text follows the law A or the law B, both over the words 0 to 47, one as often as the other;
    - ``first`` and ``second``: ``0.75 A + 0.25 C`` and ``0.75 B + 0.25 D``, C and D other random laws over the same words;
    - ``harmful``: A with the followers of each word given to the next one, so that what is learnt there is wrong elsewhere;
    - ``neutral``: a law over the words 48 to 63, of which the target knows nothing.

    The training rows are of the four domains, in the shares of :data:`PRIOR`; those of validation and test are of the target.

    Args:
        seed: of the laws; the texts of a split have a stream of their own.

    Attributes:
        laws: the laws that a text of each domain may follow, ``[n, 64, 64]``.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        generator = np.random.Generator(np.random.PCG64([seed, 0]))
        a, b, c, d = (_random_law(generator, 0, KNOWN) for _ in range(4))
        self.laws = {
            TARGET: np.stack([a, b]),
            "first": (KINSHIP * a + (1 - KINSHIP) * c)[None],
            "second": (KINSHIP * b + (1 - KINSHIP) * d)[None],
            "neutral": _random_law(generator, KNOWN, WORDS)[None],
            "harmful": a[[*range(1, KNOWN), 0, *range(KNOWN, WORDS)]][None],
        }
        self._cumulated = {name: laws.cumsum(-1).tolist() for name, laws in self.laws.items()}
        self._borders = list(itertools.accumulate(PRIOR.values()))[:-1]

    def rows(self, split: str, count: int) -> list[Row]:
        """Return ``{"text", "domain"}``; row i depends on the seed, the split and i alone."""
        return [self._row(split, index) for index in range(count)]

    def _row(self, split: str, index: int) -> Row:
        generator = np.random.Generator(np.random.PCG64([self.seed, _STREAMS[split], index]))
        place, which, start, *numbers = generator.random(LENGTH + 2).tolist()
        domain = list(PRIOR)[bisect.bisect(self._borders, place)] if split == "train" else TARGET
        laws = self._cumulated[domain]
        law = laws[int(which * len(laws))]
        first, last = (KNOWN, WORDS - 1) if domain == "neutral" else (0, KNOWN - 1)
        words = [first + int(start * (last + 1 - first))]
        for number in numbers:
            words.append(min(bisect.bisect(law[words[-1]], number), last))  # the last sum may be a hair below 1
        return {"text": " ".join(f"w{word}" for word in words), "domain": domain}

    def best_cross_entropy(self, rows: list[Row]) -> float:
        """Return what the laws of the target themselves reach on rows of it, in nats a word after the first.

        Which of them a text follows shows as it goes on: each counts by how probable it has made the words so far.
        """
        texts = [[int(word[1:]) for word in row["text"].split()] for row in rows]
        total = sum(np.log(self.laws[TARGET][:, words[:-1], words[1:]].prod(1).mean()) for words in texts)
        return -float(total) / sum(len(words) - 1 for words in texts)


def _random_law(generator: np.random.Generator, first: int, end: int) -> np.ndarray:
    """Return a law ``[64, 64]`` over the words from ``first`` to before ``end``; the rows of other words are empty."""
    law = np.zeros((WORDS, WORDS))
    weights = (-np.log(1 - generator.random((end - first, end - first)))) ** 4
    law[first:end, first:end] = weights / weights.sum(-1, keepdims=True)
    return law


def texts(split: str, count: int) -> list[Row]:
    """Return rows of the corpus."""
    return MarkovDomains().rows(split, count)
