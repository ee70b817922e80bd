import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.naive_bayes import MultinomialNB

from kdbench.data.cards import CARDS
from kdbench.data.generators.state_groups import GROUPS, LENGTH, STATES, WIDE, WORDS, StateGroups, dominant
from kdbench.data.registry import load

LANGUAGE = StateGroups()


def enumerated(language, words):
    """Return ``p(matrix, path, words)`` ``[2, 12, 12, 12]`` over all paths of three states, products over the chain."""
    table = np.zeros((2, *[STATES] * len(words)))
    seen = [language.emissions[:, language.words.index(word)] for word in words]
    for matrix in range(2):
        for path in itertools.product(range(STATES), repeat=len(words)):
            value = seen[0][path[0]] / (2 * STATES)
            for place in range(1, len(words)):
                value *= language.transitions[matrix, path[place - 1], path[place]] * seen[place][path[place]]
            table[(matrix, *path)] = value
    return table


def sample(index, length=3):
    return LANGUAGE.rows("train", index + 1)[index]["words"][:length]


def numbers(row):
    return [int(state[1:]) for state in row["states"]]


@pytest.mark.parametrize("index", [0, 1])
def test_forward_backward_is_the_sum_over_all_paths(index):
    words = sample(index)
    table = enumerated(LANGUAGE, words)
    states = [table.sum(tuple(axis for axis in range(4) if axis != place + 1)) / table.sum() for place in range(3)]
    np.testing.assert_allclose(LANGUAGE.posterior_states([words])[0], states, rtol=1e-10, atol=1e-300)


def test_drawn_states_have_the_frequencies_of_the_posterior():
    words = sample(3)
    table = enumerated(LANGUAGE, words).sum(0)
    drawn = LANGUAGE.drawn_states([words, sample(4)], draws=20000)[0]
    counted = np.zeros_like(table)
    np.add.at(counted, tuple(drawn.T), 1 / len(drawn))
    np.testing.assert_allclose(counted, table / table.sum(), atol=0.012)


def test_masked_words_are_normalised_over_the_vocabulary():
    words = sample(0, LENGTH)
    for place in (0, 7, LENGTH - 1):
        others = [[*words[:place], word, *words[place + 1 :]] for word in LANGUAGE.words]
        with np.errstate(divide="ignore"):  # no state that fits here writes some of the words
            masked = np.exp(LANGUAGE.masked_log_likelihoods(others)[:, place])
        assert masked.sum() == pytest.approx(1.0, rel=1e-10)


@pytest.mark.parametrize("shifted", [False, True])
def test_the_language_is_as_told(shifted):
    language = StateGroups(shifted=shifted)
    assert len(set(language.words)) == WORDS == 240 and language.words == LANGUAGE.words
    np.testing.assert_allclose(language.emissions, LANGUAGE.emissions)
    np.testing.assert_allclose(language.emissions.sum(-1), 1)
    np.testing.assert_allclose(language.transitions.sum(-1), 1)
    for state in range(STATES):
        own, lent = language.emissions[state].reshape(STATES, 20)[[state, (state + 4) % STATES]].sum(-1)
        assert (own, lent) == (pytest.approx(0.8), pytest.approx(0.2))
    # the groups are alike, and a step stays in its group as often as told
    moved = np.roll(language.transitions, (3, 3), axis=(1, 2))
    np.testing.assert_allclose(moved, language.transitions)
    inside = np.equal.outer(np.arange(STATES) // 3, np.arange(STATES) // 3)
    np.testing.assert_allclose((language.transitions * inside).sum(-1), 0.65 if shifted else 0.85)


def test_the_other_domain_has_other_transitions_and_sentences():
    shifted = StateGroups(shifted=True)
    assert np.abs(shifted.transitions - LANGUAGE.transitions).max() > 0.3
    texts = [{row["text"] for row in language.rows("test", 200)} for language in (LANGUAGE, shifted)]
    assert not texts[0] & texts[1]


def test_samples_have_the_frequencies_of_the_language():
    rows = LANGUAGE.rows("train", 4000)
    states = np.array([numbers(row) for row in rows])
    dialects = np.array(["AB".index(row["dialect"]) for row in rows])
    words = np.array([[LANGUAGE.words.index(word) for word in row["words"]] for row in rows[:1000]])
    assert dialects.mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(np.bincount(states[:, 0], minlength=STATES) / 4000, 1 / STATES, atol=0.02)
    for state in range(STATES):
        emitted = np.bincount(words[states[:1000] == state], minlength=WORDS)
        np.testing.assert_allclose(emitted / emitted.sum(), LANGUAGE.emissions[state], atol=0.03)
        for dialect in range(2):
            of = (states[:, :-1] == state) & (dialects == dialect)[:, None]
            followed = np.bincount(states[:, 1:][of], minlength=STATES) / of.sum()
            np.testing.assert_allclose(followed, LANGUAGE.transitions[dialect, state], atol=0.04)


@given(st.lists(st.lists(st.integers(0, STATES - 1), min_size=5, max_size=5), min_size=1, max_size=4))
def test_the_dominant_group_is_the_most_frequent_one_and_of_several_the_first(states):
    groups, counts = dominant(np.array(states))
    for path, group, count in zip(states, groups, counts, strict=True):
        found = Counter(state // 3 for state in path)  # ordered by first occurrence, and most_common is stable
        assert (group, count) == found.most_common(1)[0]


def test_labels_are_functions_of_the_states():
    for row in LANGUAGE.rows("validation", 300):
        (group, count), *_ = Counter(state // 3 for state in numbers(row)).most_common(1)
        assert row["group"] == f"g{group}" and row["half"] == f"h{group // 2}"
        assert row["eighth"] == row["group"] + ("+" if count >= WIDE else "-")


def test_classes_are_equally_frequent():
    rows = load("synthetic/state_groups", "embedded", "train")
    for name, classes in (("group", 4), ("half", 2), ("eighth", 8)):
        shares = np.array(list(Counter(row[name] for row in rows).values())) / len(rows)
        assert len(shares) == classes
        np.testing.assert_allclose(shares, 1 / classes, atol=0.012)


@given(st.integers(0, 5), st.booleans(), st.sampled_from(["train", "validation", "test"]), st.integers(1, 12))
def test_a_row_depends_on_seed_domain_split_and_number_alone(seed, shifted, split, count):
    language = StateGroups(seed, shifted=shifted)
    rows, pairs = language.rows(split, 12), language.pairs(split, 12)
    again = StateGroups(seed, shifted=shifted)
    assert again.rows(split, count) == rows[:count]
    assert again.pairs(split, count) == pairs[:count]
    for row in rows:
        assert len(row["words"]) == len(row["states"]) == LENGTH and row["text"] == " ".join(row["words"])


def test_splits_pairs_and_languages_differ():
    texts = [{row["text"] for row in LANGUAGE.rows(split, 200)} for split in ("train", "validation", "test")]
    texts += [
        {row[side] for row in LANGUAGE.pairs(split, 100) for side in ("first", "second")} for split in ("train", "test")
    ]
    assert len(set.union(*texts)) == sum(map(len, texts)) == 1000
    assert StateGroups(1).words != LANGUAGE.words


def test_pairs_are_true_and_balanced_and_their_second_sentences_are_ordinary_ones():
    language = StateGroups(overlap=0.0)  # words show their states
    pairs = language.pairs("train", 3000)
    states = {
        side: np.array([[language.words.index(word) // 20 for word in row[side].split()] for row in pairs])
        for side in ("first", "second")
    }
    first, second = (dominant(each)[0] for each in states.values())
    assert [row["same"] for row in pairs] == ["yes" if same else "no" for same in first == second]
    assert (first == second).mean() == pytest.approx(0.5, abs=0.03)
    table = np.zeros((GROUPS, GROUPS))
    np.add.at(table, (first, second), 1 / len(pairs))
    np.testing.assert_allclose(table, np.where(np.eye(GROUPS), 1 / 8, 1 / 24), atol=0.015)
    followed = np.zeros((STATES, STATES))
    np.add.at(followed, (states["second"][:, :-1], states["second"][:, 1:]), 1)
    expected, here = np.zeros((STATES, STATES)), np.full((2, STATES), 1 / (2 * STATES))
    for _ in range(LENGTH - 1):
        expected += (here[:, :, None] * language.transitions).sum(0)
        here = np.einsum("ds,dsr->dr", here, language.transitions)
    np.testing.assert_allclose(followed / len(pairs), expected, atol=0.06)


def test_without_overlap_nothing_is_left_to_guess():
    language = StateGroups(overlap=0.0)
    with np.errstate(divide="raise"):
        scores = language.best_scores(language.rows("test", 200), draws=5)
    assert [scores[name] for name in ("states", "group", "half", "eighth")] == [1.0] * 4
    assert language.best_pair_accuracy(language.pairs("test", 100), draws=5) == 1.0


@pytest.mark.parametrize("overlap", [-0.1, 0.5])
def test_an_overlap_that_is_none(overlap):
    with pytest.raises(ValueError, match=r"overlap is a probability below 0\.5"):
        StateGroups(overlap=overlap)


@pytest.mark.parametrize("name", ["synthetic/state_groups", "synthetic/state_groups_shifted"])
def test_best_scores(name):
    language = StateGroups(shifted=name.endswith("shifted"))
    rows = load(name, "embedded", "test")
    scores = language.best_scores(rows)
    told = f"find {100 * scores['states']:.1f}% of the test states and {100 * scores['group']:.1f}% of the groups"
    assert told in CARDS[name].embedded
    # what is expected of Bayes' rule is what is measured
    expected = language.posterior_states([row["words"] for row in rows]).max(-1).mean()
    assert scores["states"] == pytest.approx(expected, abs=0.005)
    # the more classes, the harder; seeing both sides helps to find a word
    assert 1 > scores["half"] > scores["group"] > scores["eighth"] > 0.85
    assert scores["masked_cross_entropy"] < 3.9 < np.log(WORDS)


def test_knowing_another_domain_is_not_enough():
    rows = StateGroups(shifted=True).rows("test", 400)
    at_home, away = StateGroups(shifted=True).best_scores(rows, draws=50), LANGUAGE.best_scores(rows, draws=50)
    assert away["states"] < at_home["states"] - 0.1 and away["group"] < at_home["group"] - 0.1


def test_best_pair_accuracy():
    pairs = load("synthetic/state_pairs", "embedded", "test")
    best = LANGUAGE.best_pair_accuracy(pairs)
    assert f"tells {100 * best:.1f}% of the test pairs" in CARDS["synthetic/state_pairs"].embedded


def test_a_bag_of_words_learns_the_classes_from_many_labels_and_never_all_of_them():
    rows = {split: load("synthetic/state_groups", "embedded", split) for split in ("train", "test")}
    number = {word: place for place, word in enumerate(LANGUAGE.words)}
    bags = {split: np.zeros((len(found), WORDS)) for split, found in rows.items()}
    for split, found in rows.items():
        for place, row in enumerate(found):
            np.add.at(bags[split][place], [number[word] for word in row["words"]], 1)
    labels = {split: [row["group"] for row in found] for split, found in rows.items()}
    scores = [
        MultinomialNB().fit(bags["train"][:count], labels["train"][:count]).score(bags["test"], labels["test"])
        for count in (100, 4000)
    ]
    assert 0.5 < scores[0] < scores[1] - 0.04
    assert scores[1] < 0.95  # 98.7% for who knows which words follow which
