"""Languages without meaning: each has an alphabet, letters that follow one another by its own law, and words by Zipf's."""

from functools import cache
from typing import Any

import numpy as np

WORDS = 3000
ALPHABETS = ("abcdefghijklmnopqrstuvwxyz", "абвгдежзиклмнопрстуфхцчшыя", "αβγδεζηθικλμνξοπρστυφχψω")
_STREAMS = {"train": 1, "validation": 2, "test": 3}

Row = dict[str, Any]


class LetterLanguage:
    """Sentences of 5 to 14 words out of 3,000; the word of rank r has the frequency ``1 / (r + 2.7)``, over their sum.

    A word is a walk of 2 to 9 letters over an alphabet; the probabilities of the letter after each letter are one draw of
    a Dirichlet distribution of concentration 0.15, so that two languages of one alphabet share few pairs of letters.

    Args:
        number: which language; its alphabet is Latin, Cyrillic or Greek in turn.
        seed: of all languages.
    """

    def __init__(self, number: int, seed: int = 0) -> None:
        self.number, self.seed = number, seed
        generator = np.random.Generator(np.random.PCG64([seed, number]))
        letters = ALPHABETS[number % len(ALPHABETS)]
        follows = generator.dirichlet(np.full(len(letters), 0.15), size=len(letters) + 1).cumsum(1)
        words: dict[str, None] = {}
        while len(words) < WORDS:
            place, word = len(letters), ""
            for _ in range(int(generator.integers(2, 10))):
                place = min(int(np.searchsorted(follows[place], generator.random())), len(letters) - 1)
                word += letters[place]
            words[word] = None
        self.words = list(words)
        weights = 1 / (np.arange(WORDS) + 2.7)
        self.law = (weights / weights.sum()).cumsum()

    def rows(self, split: str, count: int) -> list[Row]:
        """Return ``{"text"}``; row i depends on the language, the split and i alone."""
        return [self._row(split, index) for index in range(count)]

    def _row(self, split: str, index: int) -> Row:
        generator = np.random.Generator(np.random.PCG64([self.seed, self.number, _STREAMS[split], index]))
        places = np.searchsorted(self.law, generator.random(int(generator.integers(5, 15))))
        return {"text": " ".join(self.words[min(place, WORDS - 1)] for place in places.tolist())}


@cache
def _language(number: int) -> LetterLanguage:
    return LetterLanguage(number)


def first(split: str, count: int) -> list[Row]:
    """Return rows of the language 0, in Latin letters."""
    return _language(0).rows(split, count)


def second(split: str, count: int) -> list[Row]:
    """Return rows of the language 3, in Latin letters too."""
    return _language(3).rows(split, count)


def third(split: str, count: int) -> list[Row]:
    """Return rows of the language 1, in Cyrillic letters."""
    return _language(1).rows(split, count)
