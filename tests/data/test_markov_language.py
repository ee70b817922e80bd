"""The Markov language: its law, its rows and the best that a model can do."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from kdbench.data.cards import CARDS
from kdbench.data.generators.markov_language import LETTERS, MarkovLanguage
from kdbench.data.registry import load

LANGUAGE = MarkovLanguage()


def numbers(rows):
    return np.array([[LETTERS.index(word) for word in row["text"].split()] for row in rows])


def test_the_law_is_that_of_cubed_exponentials():
    assert LANGUAGE.law.shape == (24, 24, 24)
    np.testing.assert_allclose(LANGUAGE.law.sum(-1), 1)
    generator = np.random.Generator(np.random.PCG64([0, 0]))
    drawn = (-np.log(1 - generator.random((24, 24, 24)))) ** 3
    np.testing.assert_allclose(LANGUAGE.law, drawn / drawn.sum(-1, keepdims=True))
    assert kstest(np.exp(-np.cbrt(drawn.flatten())), "uniform").pvalue > 1e-3


def test_texts_follow_the_law():
    texts = numbers(LANGUAGE.rows("train", 4096))
    assert texts.shape == (4096, 34)
    assert chisquare(np.bincount(texts[:, :2].flatten(), minlength=24)).pvalue > 1e-3
    pairs = 24 * texts[:, :-2] + texts[:, 1:-1]
    frequent = np.bincount(pairs.flatten()).argsort()[-20:]
    for pair in frequent:
        after = np.bincount(texts[:, 2:][pairs == pair], minlength=24)
        law = LANGUAGE.law[pair // 24, pair % 24]
        common = law * after.sum() > 5
        observed = [*after[common], after[~common].sum()]
        expected = [*law[common] * after.sum(), law[~common].sum() * after.sum()]
        assert chisquare(observed, expected).pvalue > 1e-4


@given(st.integers(0, 3), st.sampled_from(["train", "validation", "test"]), st.integers(1, 5))
def test_a_row_depends_on_seed_split_and_number_alone(seed, split, count):
    rows = MarkovLanguage(seed).rows(split, 5)
    assert MarkovLanguage(seed).rows(split, count) == rows[:count]
    assert len({json.dumps(row) for row in rows}) == 5


def test_seeds_and_splits_differ():
    assert not np.allclose(MarkovLanguage(1).law, LANGUAGE.law)
    assert len({LANGUAGE.rows(split, 1)[0]["text"] for split in ("train", "validation", "test")}) == 3


def test_the_entropy_is_the_lowest_cross_entropy():
    rows = load("synthetic/markov_language", "embedded", "test")
    entropy = LANGUAGE.entropy()
    assert f"{entropy:.2f} nats a word" in CARDS["synthetic/markov_language"].embedded
    assert LANGUAGE.best_scores(rows)["cross_entropy"] == pytest.approx(entropy, abs=0.03)
    assert MarkovLanguage(1).best_scores(rows)["cross_entropy"] > entropy + 1
    by_hand = -(LANGUAGE.law * np.log(LANGUAGE.law)).sum(-1).mean()
    assert LANGUAGE.entropy(1) == pytest.approx(by_hand), "the first two words are any alike"


def test_the_most_likely_word_is_the_best_guess():
    rows = load("synthetic/markov_language", "embedded", "test")
    found = LANGUAGE.best_scores(rows)["accuracy"]
    texts = numbers(rows)
    expected = LANGUAGE.law.max(-1)[texts[:, :-2], texts[:, 1:-1]].mean()
    assert found == pytest.approx(expected, abs=0.015)
