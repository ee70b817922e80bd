"""A synthetic language of a hidden Markov chain whose states form four groups: sentences are classed by the groups they show.

It is the language of the small-scale proofs for Turc et al. 2019 (arXiv 1908.08962), Wang et al. 2020 (arXiv 2002.10957),
Su et al. 2021 (arXiv 2106.02241) and He et al. 2021 (arXiv 2109.11105): 12 states, 20 words a state, 24 words a sentence,
two transition matrices. What the best model reaches follows from the forward-backward algorithm (Rabiner 1989), and for the
classes from state sequences drawn from their posterior (Scott 2002, JASA 97).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdbench.data.noise import uniform

STATES, GROUPS, OWN_WORDS, LENGTH = 12, 4, 20, 24
PER_GROUP = STATES // GROUPS
WORDS = STATES * OWN_WORDS
DIALECTS = "AB"
STAY, STAY_SHIFTED = 0.85, 0.65
WIDE = 14
_SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
_STREAMS = {"train": 1, "validation": 2, "test": 3}
_SHIFTED, _PAIRS = 8, 16  # added to a stream

Row = dict[str, Any]


class StateGroups:
    """The language of one seed.

    State ``s`` belongs to the group ``s // 3`` and has 20 words of its own, ``20 s + i``. It writes one of them with the
    probability ``1 - overlap`` and one of the words of state ``s + 4`` (modulo 12; always of another group) with the
    probability ``overlap``, both with weights ``rand^2``. So a word tells its state up to two, and the neighbours decide;
    the vocabulary has 240 words whatever the overlap. With 0.2 both have to be learnt: the words, which text without labels
    teaches, and the transitions; with much more a small network learns little from a thousand steps of masked tokens.

    A step stays in its group with the probability 0.85; where it goes is ``rand^4`` inside the group and ``rand^6`` outside,
    normalised, in each of the two matrices. The groups are alike: a step from group g to group h depends on ``h - g`` modulo
    4 alone. With a uniform first state the four classes are therefore exactly equally frequent.

    Args:
        seed: of the language; the sentences of a split have a stream of their own.
        overlap: how often a state writes a word of another one; 0: words show their states.
        shifted: two other transition matrices over the same words, which stay in a group with the probability 0.65: another
            domain of the same language.
    """

    def __init__(self, seed: int = 0, overlap: float = 0.2, shifted: bool = False) -> None:
        if not 0 <= overlap < 0.5:
            raise ValueError(f"overlap is a probability below 0.5, got {overlap}")
        self.seed, self.shifted = seed, shifted
        generator = np.random.Generator(np.random.PCG64([seed, 0]))
        order = generator.permutation(len(_SYLLABLES) ** 2)[:WORDS]
        self.words = [_SYLLABLES[each // len(_SYLLABLES)] + _SYLLABLES[each % len(_SYLLABLES)] for each in order]
        self.emissions = np.zeros((STATES, WORDS))
        weights = generator.random((STATES, 2, OWN_WORDS)) ** 2
        weights /= weights.sum(-1, keepdims=True)
        for state, (own, borrowed) in enumerate(weights):
            lender = (state + PER_GROUP + 1) % STATES
            self.emissions[state, OWN_WORDS * state : OWN_WORDS * (state + 1)] = (1 - overlap) * own
            self.emissions[state, OWN_WORDS * lender : OWN_WORDS * (lender + 1)] = overlap * borrowed
        self.transitions = [_transitions(generator, stay) for stay in (STAY, STAY_SHIFTED)][int(shifted)]
        self._number = {word: place for place, word in enumerate(self.words)}

    # ---- rows ----

    def rows(self, split: str, count: int) -> list[Row]:
        """Return sentences; row i depends on the seed, the domain, the split and i alone.

        ``text`` and ``words``; ``states`` ``s0`` to ``s11``; ``dialect``: which of the two matrices; and three classes that
        are functions of the states:

        - ``group``, ``g0`` to ``g3``: the group that most words of the sentence belong to; of several, the one that occurs
          first;
        - ``half``, ``h0`` or ``h1``: whether that is one of the groups 0 and 1 or one of 2 and 3;
        - ``eighth``: the group and whether it has at least 14 of the 24 words: ``g0+`` or ``g0-``, and so on.
        """
        states, dialects, words = self._draw(_STREAMS[split] + _SHIFTED * self.shifted, np.arange(count))
        group, most = dominant(states)
        return [
            {
                "text": " ".join(written),
                "words": written,
                "states": [f"s{each}" for each in path],
                "dialect": DIALECTS[dialect],
                "group": f"g{of}",
                "half": f"h{of // 2}",
                "eighth": f"g{of}{'+' if many >= WIDE else '-'}",
            }
            for written, path, dialect, of, many in zip(
                self._written(words), states.tolist(), dialects.tolist(), group.tolist(), most.tolist(), strict=True
            )
        ]

    def pairs(self, split: str, count: int) -> list[Row]:
        """Return pairs of sentences; half of them ``same``: of one group; row i depends on the same as a sentence.

        ``first`` and ``second`` are texts, ``same`` is ``yes`` or ``no``. As the groups are alike, a sentence of any wanted
        group is a drawn one whose states are all moved on by as many groups as it takes.
        """
        stream, index = _STREAMS[split] + _SHIFTED * self.shifted + _PAIRS, np.arange(count)
        first, _, first_words = self._draw(stream, 2 * index)
        same = uniform(self.seed, stream, index, LENGTH, 0) < 0.5
        other = 1 + (uniform(self.seed, stream, index, LENGTH, 1) * (GROUPS - 1)).astype(int)
        wanted = (dominant(first)[0] + np.where(same, 0, other)) % GROUPS
        _, _, second_words = self._draw(stream, 2 * index + 1, wanted)
        return [
            {"first": " ".join(left), "second": " ".join(right), "same": "yes" if alike else "no"}
            for left, right, alike in zip(
                self._written(first_words), self._written(second_words), same.tolist(), strict=True
            )
        ]

    def _draw(
        self, stream: int, index: np.ndarray, wanted: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return states ``[N, 24]``, dialects ``[N]`` and words ``[N, 24]``, of the wanted group where one is wanted."""
        noise = uniform(self.seed, stream, index[:, None, None], np.arange(LENGTH + 1)[:, None], np.arange(2))
        dialects = (noise[:, LENGTH, 0] < 0.5).astype(int)
        states = np.empty((len(index), LENGTH), dtype=int)
        states[:, 0] = noise[:, 0, 0] * STATES
        followed = self.transitions.cumsum(-1)
        for place in range(1, LENGTH):
            states[:, place] = _chosen(followed[dialects, states[:, place - 1]], noise[:, place, 0])
        if wanted is not None:
            states = (states + PER_GROUP * (wanted - dominant(states)[0])[:, None]) % STATES
        return states, dialects, _chosen(self.emissions.cumsum(-1)[states], noise[:, :LENGTH, 1])

    def _written(self, words: np.ndarray) -> list[list[str]]:
        return [[self.words[each] for each in row] for row in words.tolist()]

    # ---- the best that can be done ----

    def posterior_states(self, words: Sequence[Sequence[str]]) -> np.ndarray:
        """Return ``p(state | sentence)`` ``[N, L, 12]`` of sentences of L words each, both matrices weighed.

        Its argmax is the most accurate tagger that there is.
        """
        forward, backward = self._passes(self._numbers(words))
        joint = (forward * backward).sum(1)
        return joint / joint.sum(-1, keepdims=True)

    def masked_log_likelihoods(self, words: Sequence[Sequence[str]]) -> np.ndarray:
        """Return ``log p(word | all other words)`` ``[N, L]`` in nats, a masked language model at its best."""
        forward, backward = self._passes(self._numbers(words))
        reached = np.full_like(forward, 1 / (2 * STATES))
        reached[:, :, 1:] = np.einsum("ndts,dsr->ndtr", forward[:, :, :-1], self.transitions)
        return np.log((forward * backward).sum((1, 3)) / (reached * backward).sum((1, 3)))

    def drawn_states(self, words: Sequence[Sequence[str]], draws: int, seed: int = 0) -> np.ndarray:
        """Return ``[N, draws, L]`` state sequences drawn from ``p(states | sentence)``: filtered forward, drawn backward."""
        forward, _ = self._passes(self._numbers(words))
        generator = np.random.Generator(np.random.PCG64(seed))
        shape, length = (len(forward), draws), forward.shape[2]
        row = np.arange(len(forward))[:, None]
        dialects = _drawn(np.broadcast_to(forward[:, None, :, -1].sum(-1), (*shape, 2)), generator)
        states = np.empty((*shape, length), dtype=int)
        states[..., -1] = _drawn(forward[row, dialects, -1], generator)
        for place in range(length - 2, -1, -1):
            onward = self.transitions.transpose(0, 2, 1)[dialects, states[..., place + 1]]
            states[..., place] = _drawn(forward[row, dialects, place] * onward, generator)
        return states

    def best_scores(self, rows: list[Row], draws: int = 100) -> dict[str, float]:
        """Return what the best models that know the language reach on ``rows``; accuracies from 0 to 1.

        ``states``, ``group``, ``half`` and ``eighth``: accuracy of the most probable state of each word, and of the class
        that is most frequent among ``draws`` state sequences of the posterior; ``masked_cross_entropy`` with one masked word
        a sentence, in nats.
        """
        words = [row["words"] for row in rows]
        told = np.array([[int(each[1:]) for each in row["states"]] for row in rows])
        group, most = self._classes(words, draws)
        eighth = 2 * group + (most >= WIDE)
        found = {
            "group": (_votes(group, GROUPS).argmax(-1), [int(row["group"][1]) for row in rows]),
            "half": (_votes(group // 2, 2).argmax(-1), [int(row["half"][1]) for row in rows]),
            "eighth": (
                _votes(eighth, 2 * GROUPS).argmax(-1),
                [2 * int(row["eighth"][1]) + (row["eighth"][2] == "+") for row in rows],
            ),
        }
        return {
            "states": float((self.posterior_states(words).argmax(-1) == told).mean()),
            **{name: float((guessed == np.array(right)).mean()) for name, (guessed, right) in found.items()},
            "masked_cross_entropy": float(-self.masked_log_likelihoods(words).mean()),
        }

    def best_pair_accuracy(self, pairs: list[Row], draws: int = 100) -> float:
        """Return how many pairs the best model that knows the language tells right, from 0 to 1.

        Two ordinary sentences are of one group with the probability 1/4, two of a pair with 1/2; so the answer is *yes*
        where ``sum_g p(g | first) p(g | second) > 1/4``.
        """
        left, right = (
            _votes(self._classes([row[side].split() for row in pairs], draws)[0], GROUPS) / draws
            for side in ("first", "second")
        )
        guessed = (left * right).sum(-1) > 1 / GROUPS
        return float((guessed == np.array([row["same"] == "yes" for row in pairs])).mean())

    def _classes(self, words: Sequence[Sequence[str]], draws: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the group of drawn state sequences, and how many words it has, ``[N, draws]`` each."""
        parts = [words[first : first + 250] for first in range(0, len(words), 250)]
        drawn = np.concatenate([self.drawn_states(part, draws, place) for place, part in enumerate(parts)])
        group, most = dominant(drawn.reshape(-1, LENGTH))
        return group.reshape(-1, draws), most.reshape(-1, draws)

    def _numbers(self, words: Sequence[Sequence[str]]) -> np.ndarray:
        return np.array([[self._number[word] for word in sentence] for sentence in words])

    def _passes(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the forward and the backward probabilities ``[N, 2 matrices, L, 12]``."""
        seen, length = self.emissions.T[words], words.shape[1]
        forward, backward = np.ones((2, len(words), 2, length, STATES))
        forward[:, :, 0] = seen[:, None, 0] / (2 * STATES)
        for place in range(1, length):
            reached = np.einsum("nds,dsr->ndr", forward[:, :, place - 1], self.transitions)
            forward[:, :, place] = reached * seen[:, None, place]
        for place in range(length - 2, -1, -1):
            coming = seen[:, None, place + 1] * backward[:, :, place + 1]
            backward[:, :, place] = np.einsum("dsr,ndr->nds", self.transitions, coming)
        return forward, backward  # unscaled: 24 words do not underflow in float64


def dominant(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the group that most of the states ``[N, L]`` belong to, and how many: ``[N]`` each.

    Of groups that occur equally often it is the one that occurs first.
    """
    member = (states // PER_GROUP)[..., None] == np.arange(GROUPS)
    counts, length = member.sum(1), states.shape[1]
    first = np.where(counts > 0, member.argmax(1), length)
    group = ((length + 1) * counts - first).argmax(-1)
    return group, counts.max(-1)


def sentences(split: str, count: int) -> list[Row]:
    """Return sentences of the language."""
    return StateGroups().rows(split, count)


def shifted_sentences(split: str, count: int) -> list[Row]:
    """Return sentences of the same words in the other domain."""
    return StateGroups(shifted=True).rows(split, count)


def sentence_pairs(split: str, count: int) -> list[Row]:
    """Return pairs of sentences, half of them of one group."""
    return StateGroups().pairs(split, count)


def _transitions(generator: np.random.Generator, stay: float) -> np.ndarray:
    """Return two matrices ``[2, 12, 12]``; ``stay`` is the probability of a step inside the group."""
    inside = generator.random((2, PER_GROUP, 1, PER_GROUP)) ** 4
    outside = generator.random((2, PER_GROUP, GROUPS - 1, PER_GROUP)) ** 6
    inside *= stay / inside.sum((2, 3), keepdims=True)
    outside *= (1 - stay) / outside.sum((2, 3), keepdims=True)
    steps = np.concatenate([inside, outside], axis=2)  # [matrix, from, groups onward, to]
    onward = (np.arange(GROUPS) - np.arange(GROUPS)[:, None]) % GROUPS  # [from group, to group]
    return steps[:, :, onward].transpose(0, 2, 1, 3, 4).reshape(2, STATES, STATES)


def _chosen(cumulated: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return where each number of ``drawn`` ``[...]`` falls in cumulated probabilities ``[..., K]`` that end near 1."""
    return np.minimum((cumulated <= drawn[..., None]).sum(-1), cumulated.shape[-1] - 1)


def _drawn(weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw one of the last axis of ``weights`` ``[..., K]`` in proportion to them."""
    cumulated = weights.cumsum(-1)
    return _chosen(cumulated / cumulated[..., -1:], generator.random(weights.shape[:-1]))


def _votes(classes: np.ndarray, count: int) -> np.ndarray:
    """Return how often each class occurs in each row of ``[N, draws]``: ``[N, count]``."""
    return (classes[..., None] == np.arange(count)).sum(1)
