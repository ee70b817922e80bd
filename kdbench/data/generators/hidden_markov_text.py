"""A synthetic language of a hidden Markov chain with two dialects and capitals, known to the last probability.

States emit overlapping words, two transition matrices are two dialects (drawn per sentence), and some states write their
words with a capital. The cased vocabulary folds onto the uncased one with equal segmentation.

The language is that of the small-scale proof for Avram et al. 2022 (arXiv 2112.12650); the first state of a sentence is
uniform. Every score that a model can reach follows from the forward-backward algorithm (Rabiner 1989).
"""

import bisect
from typing import Any

import numpy as np

STATES, WORDS, LENGTH, EMITTED = 10, 30, 16, 12
DIALECTS = "AB"
_SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
_STREAMS = {"train": 1, "validation": 2, "test": 3}


class HiddenMarkovText:
    """The language of one seed.

    State ``s`` emits the words ``(3 s + i) mod 30``, i = 0..11, with weights ``rand^3``; the transitions are ``rand^6``
    with rows normalised, one matrix a dialect; a word has a capital with probability 0.9 in states with ``s mod 4 = 0``,
    else 0.05.

    Args:
        seed: of the language; the sentences of a split have a stream of their own.
        longest: sentences have log-normal lengths, ``clip(round(exp(N(ln(longest / 4), 0.7))), 8, longest)`` words, so that
            about two thirds of a padded batch are padding (Zhai et al. 2023, arXiv 2210.03052, as measured here); None:
            16 words each.

    Attributes:
        words: the 30 words, in lower case.
        cased: 62 tokens: ``[PAD]``, ``[MASK]``, the words, the words with a capital.
        uncased: 32 tokens: ``[PAD]``, ``[MASK]``, the words.
        fold: the number in ``uncased`` of each token of ``cased``.
    """

    def __init__(self, seed: int = 0, longest: int | None = None) -> None:
        self.seed, self.longest = seed, longest
        generator = np.random.Generator(np.random.PCG64([seed, 0]))
        order = generator.permutation(len(_SYLLABLES) ** 2)[:WORDS]
        self.words = [_SYLLABLES[each // len(_SYLLABLES)] + _SYLLABLES[each % len(_SYLLABLES)] for each in order]
        self.emissions = np.zeros((STATES, WORDS))
        for state in range(STATES):
            weights = generator.random(EMITTED) ** 3
            self.emissions[state, (3 * state + np.arange(EMITTED)) % WORDS] = weights / weights.sum()
        transitions = generator.random((2, STATES, STATES)) ** 6
        self.transitions = transitions / transitions.sum(-1, keepdims=True)
        self.capital = np.where(np.arange(STATES) % 4 == 0, 0.9, 0.05)
        self.uncased = ["[PAD]", "[MASK]", *self.words]
        self.cased = [*self.uncased, *(word.capitalize() for word in self.words)]
        self.fold = [*range(2 + WORDS), *range(2, 2 + WORDS)]
        self._number = {word: place for place, word in enumerate(self.words)}
        self._emitted, self._followed = _cumulated(self.emissions), _cumulated(self.transitions)

    def rows(self, split: str, count: int) -> list[dict[str, Any]]:
        """Return ``{"text", "words", "states", "dialect", "capitals"}``; row i depends on the seed, split and i alone.

        ``capitals`` is the share of words with a capital.
        """
        return [self._row(split, index) for index in range(count)]

    def _row(self, split: str, index: int) -> dict[str, Any]:
        generator = np.random.Generator(np.random.PCG64([self.seed, _STREAMS[split], index]))
        length = LENGTH
        if self.longest is not None:
            drawn = np.exp(generator.normal(np.log(self.longest / 4), 0.7))
            length = int(np.clip(np.round(drawn), 8, self.longest))
        dialect = int(generator.random() < 0.5)
        state = int(generator.integers(STATES))
        states, words = [], []
        for emitted, raised, followed in generator.random((length, 3)).tolist():
            word = self.words[bisect.bisect(self._emitted[state], emitted)]
            states.append(f"s{state}")
            words.append(word.capitalize() if raised < self.capital[state] else word)
            state = bisect.bisect(self._followed[dialect][state], followed)
        return {
            "text": " ".join(words),
            "words": words,
            "states": states,
            "dialect": DIALECTS[dialect],
            "capitals": sum(word[0].isupper() for word in words) / length,
        }

    def posterior_states(self, words: list[str]) -> np.ndarray:
        """Return ``p(state | sentence)`` ``[words, 10]`` by the forward-backward algorithm, both dialects weighed.

        Its argmax is the most accurate tagger that there is.
        """
        forward, backward = self._passes(words)
        joint = (forward * backward).sum(0)
        return joint / joint.sum(-1, keepdims=True)

    def posterior_dialects(self, words: list[str]) -> np.ndarray:
        """Return ``p(dialect | sentence)`` ``[2]`` by the forward algorithm; its argmax is the most accurate guess."""
        forward, _ = self._passes(words)
        return forward[:, -1].sum(-1) / forward[:, -1].sum()

    def log_likelihood(self, words: list[str]) -> float:
        """Return ``log p(words)`` in nats by the forward algorithm, a model of the next word at its best."""
        forward, _ = self._passes(words)
        return float(np.log(forward[:, -1].mean(0).sum()))

    def masked_log_likelihoods(self, words: list[str]) -> np.ndarray:
        """Return ``log p(word | all other words)`` ``[words]`` in nats, a masked language model at its best."""
        forward, backward = self._passes(words)
        sentence = (forward * backward).sum((0, 2))
        reached = np.full_like(forward, 1 / STATES)
        reached[:, 1:] = forward[:, :-1] @ self.transitions
        return np.log(sentence / (reached * backward).sum((0, 2)))

    def best_scores(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Return what the best models that know the language reach on ``rows``; accuracies and F1 from 0 to 1.

        ``state_accuracy`` and ``state_macro_f1`` of the most probable state of each word, ``dialect_accuracy``,
        ``masked_cross_entropy`` with one masked word a sentence and ``next_cross_entropy`` of a left-to-right model, both
        in nats a word with its case.
        """
        states = np.array([int(each[1:]) for row in rows for each in row["states"]])
        guessed = np.concatenate([self.posterior_states(row["words"]).argmax(-1) for row in rows])
        found = np.zeros((STATES, STATES))
        np.add.at(found, (states, guessed), 1)
        present = found.sum(0) + found.sum(1) > 0
        f1 = 2 * found.diagonal()[present] / (found.sum(0) + found.sum(1))[present]
        dialects = [DIALECTS[self.posterior_dialects(row["words"]).argmax()] == row["dialect"] for row in rows]
        masked = np.concatenate([self.masked_log_likelihoods(row["words"]) for row in rows])
        return {
            "state_accuracy": float(found.trace() / found.sum()),
            "state_macro_f1": float(f1.mean()),
            "dialect_accuracy": float(np.mean(dialects)),
            "masked_cross_entropy": float(-masked.mean()),
            "next_cross_entropy": -sum(self.log_likelihood(row["words"]) for row in rows) / len(masked),
        }

    def _passes(self, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the forward and the backward probabilities ``[2 dialects, words, 10]``."""
        raised = np.array([[word[0].isupper()] for word in words])
        seen = self.emissions[:, [self._number[word.lower()] for word in words]].T
        seen = seen * np.where(raised, self.capital, 1 - self.capital)
        forward, backward = np.ones((2, 2, len(words), STATES))
        forward[:, 0] = seen[0] / STATES
        for place in range(1, len(words)):
            forward[:, place] = np.einsum("ds,dst->dt", forward[:, place - 1], self.transitions) * seen[place]
        for place in range(len(words) - 2, -1, -1):
            backward[:, place] = np.einsum("dst,dt->ds", self.transitions, seen[place + 1] * backward[:, place + 1])
        return forward, backward  # unscaled: 126 words do not underflow in float64


def sentences(split: str, count: int) -> list[dict[str, Any]]:
    """Return sentences of 16 words."""
    return HiddenMarkovText().rows(split, count)


def skewed_sentences(split: str, count: int) -> list[dict[str, Any]]:
    """Return sentences of 8 to 126 words, most of them short."""
    return HiddenMarkovText(longest=126).rows(split, count)


def _cumulated(probabilities: np.ndarray) -> list[Any]:
    """Return cumulated probabilities that end with 1, for drawing by bisection."""
    cumulated = probabilities.cumsum(-1)
    return (cumulated / cumulated[..., -1:]).tolist()
