import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from kdbench.data.cards import CARDS
from kdbench.data.generators.hidden_markov_text import LENGTH, STATES, WORDS, HiddenMarkovText
from kdbench.data.registry import load

LANGUAGE = HiddenMarkovText()


def probability(path, dialect, words):
    """Return ``p(path, words | dialect)``, a product over the chain."""
    value = 1 / STATES
    for place, (state, word) in enumerate(zip(path, words, strict=True)):
        value *= LANGUAGE.transitions[dialect, path[place - 1], state] if place else 1.0
        value *= LANGUAGE.emissions[state, LANGUAGE.words.index(word.lower())]
        value *= LANGUAGE.capital[state] if word[0].isupper() else 1 - LANGUAGE.capital[state]
    return value


def enumerated(words):
    """Return ``p(dialect, path, words)`` ``[2, 10, ..., 10]`` over all paths."""
    table = np.zeros((2, *[STATES] * len(words)))
    for dialect in range(2):
        for path in itertools.product(range(STATES), repeat=len(words)):
            table[(dialect, *path)] = probability(path, dialect, words) / 2
    return table


def sample(length, index=0):
    return LANGUAGE.rows("train", index + 1)[index]["words"][:length]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_forward_backward_is_the_sum_over_all_paths(index):
    words = sample(3, index)
    table = enumerated(words)
    total = table.sum()
    states = [table.sum(tuple(axis for axis in range(4) if axis != place + 1)) / total for place in range(3)]
    np.testing.assert_allclose(LANGUAGE.posterior_states(words), states, rtol=1e-10)
    np.testing.assert_allclose(LANGUAGE.posterior_dialects(words), table.sum((1, 2, 3)) / total, rtol=1e-10)
    assert LANGUAGE.log_likelihood(words) == pytest.approx(np.log(total), rel=1e-12)


def test_masked_words_are_normalised_over_the_cased_vocabulary():
    words = sample(LENGTH)
    for place in (0, 7, LENGTH - 1):
        others = [[*words[:place], token, *words[place + 1 :]] for token in LANGUAGE.cased[2:]]
        with np.errstate(divide="ignore"):  # no state writes some words here
            likelihoods = np.exp([LANGUAGE.log_likelihood(each) for each in others])
            masked = np.exp([LANGUAGE.masked_log_likelihoods(each)[place] for each in others])
        assert masked.sum() == pytest.approx(1.0, rel=1e-10)
        np.testing.assert_allclose(masked, likelihoods / likelihoods.sum(), rtol=1e-9, atol=1e-15)


def test_the_language_is_that_of_the_card():
    for state in range(STATES):
        assert set(np.flatnonzero(LANGUAGE.emissions[state])) == {(3 * state + i) % 30 for i in range(12)}
    np.testing.assert_allclose(LANGUAGE.emissions.sum(-1), 1)
    np.testing.assert_allclose(LANGUAGE.transitions.sum(-1), 1)
    assert LANGUAGE.capital.tolist() == [0.9, 0.05, 0.05, 0.05, 0.9, 0.05, 0.05, 0.05, 0.9, 0.05]
    assert len(set(LANGUAGE.words)) == WORDS and all(word.isalpha() and word.islower() for word in LANGUAGE.words)
    assert len(set(LANGUAGE.cased)) == len(LANGUAGE.fold) == 62 and len(LANGUAGE.uncased) == 32
    assert [LANGUAGE.uncased[each].lower() for each in LANGUAGE.fold] == [each.lower() for each in LANGUAGE.cased]


def test_samples_have_the_frequencies_of_the_language():
    rows = LANGUAGE.rows("train", 3000)
    states = np.array([[int(each[1:]) for each in row["states"]] for row in rows])
    dialects = np.array(["AB".index(row["dialect"]) for row in rows])
    raised = np.array([[word[0].isupper() for word in row["words"]] for row in rows])
    numbers = np.array([[LANGUAGE.words.index(word.lower()) for word in row["words"]] for row in rows])
    assert dialects.mean() == pytest.approx(0.5, abs=0.04)
    for state in range(STATES):
        here = states == state
        assert raised[here].mean() == pytest.approx(LANGUAGE.capital[state], abs=0.03)
        emitted = np.bincount(numbers[here], minlength=WORDS) / here.sum()
        np.testing.assert_allclose(emitted, LANGUAGE.emissions[state], atol=0.03)
        for dialect in range(2):
            of = here[:, :-1] & (dialects == dialect)[:, None]
            followed = np.bincount(states[:, 1:][of], minlength=STATES) / of.sum()
            np.testing.assert_allclose(followed, LANGUAGE.transitions[dialect, state], atol=0.05)


@given(st.integers(0, 5), st.sampled_from(["train", "validation", "test"]), st.integers(1, 12))
def test_a_row_depends_on_seed_split_and_number_alone(seed, split, count):
    rows = HiddenMarkovText(seed).rows(split, 12)
    assert HiddenMarkovText(seed).rows(split, count) == rows[:count]
    for row in rows:
        assert len(row["words"]) == len(row["states"]) == LENGTH and row["text"] == " ".join(row["words"])
        assert row["capitals"] == sum(word != word.lower() for word in row["words"]) / LENGTH


def test_splits_and_languages_differ():
    texts = [{row["text"] for row in LANGUAGE.rows(split, 200)} for split in ("train", "validation", "test")]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    assert HiddenMarkovText(1).words != LANGUAGE.words


def test_best_scores():
    rows = LANGUAGE.rows("test", 600)
    scores = LANGUAGE.best_scores(rows)
    guessed = [f"s{each}" for row in rows for each in LANGUAGE.posterior_states(row["words"]).argmax(-1)]
    told = [state for row in rows for state in row["states"]]
    assert scores["state_macro_f1"] == pytest.approx(f1_score(told, guessed, average="macro"))
    assert scores["state_accuracy"] == pytest.approx(0.883125)
    # what is expected of Bayes' rule is what is measured
    expected = np.mean([LANGUAGE.posterior_states(row["words"]).max(-1) for row in rows])
    assert scores["state_accuracy"] == pytest.approx(expected, abs=0.015)
    # seeing both sides helps, and nothing does worse than a uniform choice of the 60 words
    assert 2.7 < scores["masked_cross_entropy"] < scores["next_cross_entropy"] < np.log(60)
    assert scores["dialect_accuracy"] > 0.98


def test_skewed_sentences_leave_two_thirds_of_a_padded_batch_empty():
    rows = load("synthetic/skewed_lengths", "embedded", "test")
    lengths = np.array([len(row["words"]) for row in rows])
    assert lengths.min() == 8
    assert lengths.max() == 126
    assert 0.25 < lengths.mean() / 126 < 0.4
    best = HiddenMarkovText(longest=126).best_scores(rows)
    assert f"{best['masked_cross_entropy']:.2f} nats" in CARDS["synthetic/skewed_lengths"].embedded
