"""A synthetic language of a hidden Markov chain with two dialects and capitals, known to the last probability.

States emit overlapping words, two transition matrices are two dialects (drawn per sentence), and some states write their
words with a capital. The cased vocabulary folds onto the uncased one with equal segmentation.
"""

from typing import Any

import numpy as np

STATES, WORDS, LENGTH, EMITTED = 10, 30, 16, 12
_SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
_STREAMS = {"train": 1, "validation": 2, "test": 3}


class HiddenMarkovText:
    """The language of one seed.

    State ``s`` emits the words ``(3 s + i) mod 30``, i = 0..11, with weights ``rand^3``; the transitions are ``rand^6``
    with rows normalised, one matrix a dialect; a word has a capital with probability 0.9 in states with ``s mod 4 = 0``,
    else 0.05. All sentences have 16 words.

    Args:
        seed: of the language; the sentences of a split have a stream of their own.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
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

    def rows(self, split: str, count: int) -> list[dict[str, Any]]:
        """Return ``{"text", "words", "states", "dialect", "capitals"}``; row i depends on the seed, split and i alone."""
        return [self._row(split, index) for index in range(count)]

    def _row(self, split: str, index: int) -> dict[str, Any]:
        generator = np.random.Generator(np.random.PCG64([self.seed, _STREAMS[split], index]))
        dialect = int(generator.random() < 0.5)
        states, words = [], []
        state = int(generator.integers(STATES))
        for _ in range(LENGTH):
            word = self.words[int(generator.choice(WORDS, p=self.emissions[state]))]
            states.append(state)
            words.append(word.capitalize() if generator.random() < self.capital[state] else word)
            state = int(generator.choice(STATES, p=self.transitions[dialect, state]))
        return {
            "text": " ".join(words),
            "words": words,
            "states": [f"s{each}" for each in states],
            "dialect": "AB"[dialect],
            "capitals": sum(word[0].isupper() for word in words) / LENGTH,
        }

    def posterior_states(self, words: list[str]) -> np.ndarray:
        """Return ``p(state | sentence)`` ``[words, 10]`` by the forward-backward algorithm, both dialects weighed.

        Its argmax is the best tagger that there is.
        """
        number = {word: place for place, word in enumerate(self.words)}
        seen = np.stack(
            [
                self.emissions[:, number[word.lower()]] * (self.capital if word[0].isupper() else 1 - self.capital)
                for word in words
            ]
        )
        total = np.zeros((len(words), STATES))
        for transition in self.transitions:
            forward, backward = np.zeros_like(total), np.ones_like(total)
            forward[0] = seen[0] / STATES
            for place in range(1, len(words)):
                forward[place] = (forward[place - 1] @ transition) * seen[place]
            for place in range(len(words) - 2, -1, -1):
                backward[place] = transition @ (seen[place + 1] * backward[place + 1])
            total += forward * backward  # unscaled: 16 words do not underflow in float64
        return total / total.sum(-1, keepdims=True)
