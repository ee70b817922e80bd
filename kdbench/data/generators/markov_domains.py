"""A corpus of four domains, two of which help with texts that are of none of them; known to the last probability.

It is the corpus of the small-scale proof of data mixtures: which shares of the domains serve the target best is to be found out.
"""

import bisect
import itertools
from typing import Any

import numpy as np

WORDS = 64
LENGTH = 49
PRIOR = {"first": 0.15, "second": 0.1, "neutral": 0.4, "harmful": 0.35}
"""The share of each domain in the corpus."""
TARGET = "target"
KINSHIP = 0.75
_STREAMS = {"train": 1, "validation": 2, "test": 3}

Row = dict[str, Any]


class MarkovDomains:
    """Texts of 49 words, each drawn by a law of the word before it; the words are ``w0`` to ``w63``.

    A to G are random laws, ``e / sum(e)`` a row, ``e = (-log u)^4`` and u uniform in (0, 1]: a few words are likely to follow,
    most are not. The first word of a text is any alike. What the domains share with the target is half of G, its general part:

    - ``target``: a text follows the law ``(G + A) / 2`` or the law ``(G + B) / 2``, one as often as the other;
    - ``first`` and ``second``: ``(G + 0.75 A + 0.25 C) / 2`` and ``(G + 0.75 B + 0.25 D) / 2``;
    - ``neutral``: ``(G + E) / 2``, which teaches the general part alone;
    - ``harmful``: A with the followers of each word given to the next one, so that what is learnt there is wrong elsewhere.

    The training rows are of the four domains, in the shares of :data:`PRIOR`; those of validation and test are of the target.

    Args:
        seed: of the laws; the texts of a split have a stream of their own.

    Attributes:
        laws: the laws that a text of each domain may follow, ``[n, 64, 64]``.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        generator = np.random.Generator(np.random.PCG64([seed, 0]))
        weights = (-np.log(1 - generator.random((6, WORDS, WORDS)))) ** 4
        a, b, c, d, e, general = weights / weights.sum(-1, keepdims=True)
        self.laws = {
            TARGET: (general + np.stack([a, b])) / 2,
            "first": (general + KINSHIP * a + (1 - KINSHIP) * c)[None] / 2,
            "second": (general + KINSHIP * b + (1 - KINSHIP) * d)[None] / 2,
            "neutral": (general + e)[None] / 2,
            "harmful": np.roll(a, 1, 0)[None],
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
        words = [int(start * WORDS)]
        for number in numbers:
            words.append(min(bisect.bisect(law[words[-1]], number), WORDS - 1))  # the last sum may be a hair below 1
        return {"text": " ".join(f"w{word}" for word in words), "domain": domain}

    def best_cross_entropy(self, rows: list[Row]) -> float:
        """Return what the laws of the target themselves reach on rows of it, in nats a word after the first.

        Which of them a text follows shows as it goes on: each counts by how probable it has made the words so far.
        """
        texts = [[int(word[1:]) for word in row["text"].split()] for row in rows]
        total = sum(np.log(self.laws[TARGET][:, words[:-1], words[1:]].prod(1).mean()) for words in texts)
        return -float(total) / sum(len(words) - 1 for words in texts)


def texts(split: str, count: int) -> list[Row]:
    """Return rows of the corpus."""
    return MarkovDomains().rows(split, count)
