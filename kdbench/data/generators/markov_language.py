"""A language in which two words decide the law of the next, known to the last probability.

It is the language of the small-scale proofs for the distillation of language models: whatever a network says of the next word
can be held against the truth.
"""

import bisect
from typing import Any

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwx"
LENGTH = 34
_STREAMS = {"train": 1, "validation": 2, "test": 3}

Row = dict[str, Any]


class MarkovLanguage:
    """A Markov chain of order 2 over 24 words.

    The law of the word after a and b is ``A[a, b] = e / sum(e)`` with ``e = (-log u)^3`` and u uniform in (0, 1]: a few words
    are likely, most are not. The first two words of a text are any alike.

    Args:
        seed: of the law; the texts of a split have a stream of their own.

    Attributes:
        law: A, ``[24, 24, 24]``.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        generator = np.random.Generator(np.random.PCG64([seed, 0]))
        weights = (-np.log(1 - generator.random((len(LETTERS),) * 3))) ** 3
        self.law = weights / weights.sum(-1, keepdims=True)
        cumulated = self.law.cumsum(-1)
        self._cumulated = (cumulated / cumulated[..., -1:]).tolist()

    def rows(self, split: str, count: int) -> list[Row]:
        """Return ``{"text"}`` of 34 words, the letters a to x; row i depends on the seed, the split and i alone."""
        return [self._row(split, index) for index in range(count)]

    def _row(self, split: str, index: int) -> Row:
        generator = np.random.Generator(np.random.PCG64([self.seed, _STREAMS[split], index]))
        words = generator.integers(len(LETTERS), size=2).tolist()
        for number in generator.random(LENGTH - 2).tolist():
            words.append(bisect.bisect(self._cumulated[words[-2]][words[-1]], number))
        return {"text": " ".join(LETTERS[word] for word in words)}

    def entropy(self, words: int = LENGTH - 2) -> float:
        """Return the mean entropy of so many words after the first two, in nats: no model has a lower cross-entropy."""
        entropies = -(self.law * np.log(np.maximum(self.law, 1e-300))).sum(-1)
        pairs, total = np.full_like(entropies, 1 / entropies.size), 0.0
        for _ in range(words):
            total += float((pairs * entropies).sum())
            pairs = np.einsum("ab,abc->bc", pairs, self.law)
        return total / words

    def best_scores(self, rows: list[Row]) -> dict[str, float]:
        """Return what the law itself reaches on the words of ``rows`` after the first two.

        ``cross_entropy`` in nats a word, ``accuracy`` of the most likely word, from 0 to 1.
        """
        texts = np.array([[LETTERS.index(word) for word in row["text"].split()] for row in rows])
        laws, words = self.law[texts[:, :-2], texts[:, 1:-1]], texts[:, 2:]
        likely = np.take_along_axis(laws, words[..., None], -1)
        return {
            "cross_entropy": float(-np.log(likely).mean()),
            "accuracy": float((laws.argmax(-1) == words).mean()),
        }


def texts(split: str, count: int) -> list[Row]:
    """Return texts of the language."""
    return MarkovLanguage().rows(split, count)
