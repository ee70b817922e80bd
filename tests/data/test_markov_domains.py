from collections import Counter

import numpy as np
import pytest

from kdbench.data.generators.markov_domains import LENGTH, PRIOR, TARGET, WORDS, MarkovDomains


@pytest.fixture(scope="module")
def corpus():
    return MarkovDomains()


def numbers(row):
    return [int(word[1:]) for word in row["text"].split()]


def test_rows_are_a_function_of_seed_split_and_place(corpus):
    rows = corpus.rows("train", 20)
    assert corpus.rows("train", 10) == rows[:10] == MarkovDomains(0).rows("train", 10)
    assert MarkovDomains(1).rows("train", 10) != rows[:10]
    assert all(len(numbers(row)) == LENGTH and 0 <= min(numbers(row)) <= max(numbers(row)) < WORDS for row in rows)


def test_the_corpus_has_its_domains_in_their_shares_and_none_of_the_target(corpus):
    found = Counter(row["domain"] for row in corpus.rows("train", 3000))
    assert set(found) == set(PRIOR)
    for domain, share in PRIOR.items():
        assert found[domain] / 3000 == pytest.approx(share, abs=0.03)
    for split in ("validation", "test"):
        assert {row["domain"] for row in corpus.rows(split, 50)} == {TARGET}


def test_texts_follow_the_laws(corpus):
    for name, laws in corpus.laws.items():
        np.testing.assert_allclose(laws.sum(-1), 1)
        assert len(laws) == (2 if name == TARGET else 1)
    counts = np.zeros((WORDS, WORDS))
    for row in corpus.rows("train", 6000):
        if row["domain"] == "harmful":
            np.add.at(counts, tuple(np.array([numbers(row)[:-1], numbers(row)[1:]])), 1)
    law = corpus.laws["harmful"][0]
    often = counts.sum(1) > 500
    assert np.abs(counts[often] / counts[often].sum(1, keepdims=True) - law[often]).max() < 0.08


def test_domains_help_the_target_as_they_are_said_to(corpus):
    """The cross-entropy of the target under each domain's law, a hair of every word added."""
    target = corpus.laws[TARGET].mean(0)

    def cost(*names):
        law = 0.99 * np.mean([corpus.laws[name][0] for name in names], 0) + 0.01 / WORDS
        return -(target * np.log(law)).sum(1).mean()

    assert cost("first", "second") < min(cost("first"), cost("second"))
    assert max(cost("first"), cost("second")) < cost("neutral") < cost("harmful")
    assert cost("first", "second") < cost("first", "second", "neutral") < cost(*PRIOR)


def test_the_best_cross_entropy_is_that_of_the_laws(corpus):
    rows = corpus.rows("test", 400)
    best = corpus.best_cross_entropy(rows)
    assert best == pytest.approx(2.53, abs=0.005)  # as the card says
    alone = [
        np.mean([-np.log(law[numbers(row)[:-1], numbers(row)[1:]]).mean() for row in rows])
        for law in corpus.laws[TARGET]
    ]
    assert best < min(alone)
    law = corpus.laws[TARGET]
    entropy = np.mean([-(each * np.log(np.maximum(each, 1e-300))).sum(1).mean() for each in law])
    assert entropy < best < entropy + np.log(2) / (LENGTH - 1) + 0.15
