"""Data mixture inference (arXiv 2407.16607): the study where the truth is known, and what it refuses."""

import numpy as np
import pytest

from kdbench.compression.mixture import byte_shares
from kdbench.data.byte_pairs import train_byte_pairs
from kdbench.data.generators.letter_languages import LetterLanguage
from kdbench.errors import UserError
from kdbench.studies.mixture_inference import (
    MixtureInference,
    TokenizerMixture,
    attack,
    classification,
    efficiency,
    log_error,
    simplex,
)

TEXTS = [[row["text"] for row in LetterLanguage(number).rows("train", 400)] for number in (0, 3)]


def mixed(share):
    return [*TEXTS[0][: round(400 * share)], *TEXTS[1][: round(400 * (1 - share))]]


def true_share(share):
    sizes = [sum(len(text.encode()) for text in part) for part in (mixed(share)[: round(400 * share)], mixed(share))]
    return sizes[0] / sizes[1]


@pytest.mark.parametrize("share", [0.25, 0.6])
def test_the_tokenizers_own_text_explains_all_merges(share):
    trained = train_byte_pairs(mixed(share), 150)
    parts = [mixed(share)[: round(400 * share)], mixed(share)[round(400 * share) :]]
    found, solved = attack(trained, parts, trained.merges)
    assert solved.slack == pytest.approx(0, abs=1e-5)
    assert found[0] == pytest.approx(true_share(share), abs=0.03)


def test_other_text_of_the_same_languages_finds_the_mixture_too():
    trained = train_byte_pairs(mixed(0.7), 150)
    others = [[row["text"] for row in LetterLanguage(number).rows("test", 400)] for number in (0, 3)]
    found, _ = attack(trained, others, trained.merges)
    true = np.array([true_share(0.7), 1 - true_share(0.7)])
    assert log_error(found, true) < log_error(np.array([0.5, 0.5]), true) - 1
    for guess in (efficiency(trained, others), classification(trained, others)):
        assert guess.sum() == pytest.approx(1)
        assert guess[0] > 0.5


def test_categories_may_come_in_any_order():
    trained = train_byte_pairs(mixed(0.3), 80)
    one, _ = attack(trained, TEXTS, trained.merges)
    other, _ = attack(trained, TEXTS[::-1], trained.merges)
    np.testing.assert_allclose(one, other[::-1], atol=1e-6)


def test_shares_that_stand_still_are_the_shares():
    trained = train_byte_pairs(mixed(0.7), 300)
    others = [[row["text"] for row in LetterLanguage(number).rows("test", 400)] for number in (0, 3)]
    (whole, exact), (found, early) = (attack(trained, others, trained.merges, settled) for settled in (None, 1e-3))
    np.testing.assert_allclose(found, whole, atol=3e-3)
    assert early.rows < exact.rows
    assert early.slack <= exact.slack


def test_mixtures_are_uniform_on_the_simplex():
    generator = np.random.default_rng(0)
    drawn = np.array([simplex(4, generator) for _ in range(4000)])
    assert (drawn > 0).all()
    np.testing.assert_allclose(drawn.sum(1), 1)
    np.testing.assert_allclose(drawn.mean(0), 0.25, atol=0.01)
    np.testing.assert_allclose(drawn.var(0), 3 / 80, rtol=0.1)  # of Dirichlet(1, 1, 1, 1)


def test_shares_of_pairs_become_shares_of_bytes():
    np.testing.assert_allclose(byte_shares(np.array([0.5, 0.5]), [2, 6]), [0.25, 0.75])
    assert log_error(np.array([0.5, 0.5]), np.array([0.4, 0.6])) == pytest.approx(-2)


def test_the_study_repeats_and_tells_all(tmp_path):
    categories = {"first": "synthetic/letters", "second": "synthetic/letters_cyrillic"}
    study = MixtureInference(categories, merges=60, kilobytes=20, attacker_kilobytes=20, first=[20], percents=[50])
    found = study(0)
    assert found == study(0)
    assert found.numbers["true_first"] != study(1).numbers["true_first"]
    assert {"attack", "uniform", "random", "efficiency", "classification", "attack_20", "attack_50_percent"} < set(
        found.numbers
    )
    assert found.numbers["true_first"] + found.numbers["true_second"] == pytest.approx(1)
    assert found.pictures["merges"].x == [20, 60]
    train_byte_pairs(mixed(0.5), 40).tokenizer.save(str(tmp_path / "tokenizer.json"))
    other = TokenizerMixture(str(tmp_path), {"first": "synthetic/letters", "second": "synthetic/letters_2"}, 30, 20)(0)
    assert other.numbers["merges"] == 30
    assert other.numbers["found_first"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": {"one": "synthetic/letters"}}, "two categories or more"),
        ({"source": "local"}, "'synthetic/letters' has no source 'local'"),
        ({"merges": 0}, "at least 1"),
        ({"first": [90]}, "There are 60 merges"),
        ({"kilobytes": 10**6}, r"has \d+ kB of text"),
        (
            {"categories": {"a": "synthetic/letters:txt", "b": "synthetic/letters"}},
            r"no field 'txt'.* Did you mean 'text'",
        ),
    ],
)
def test_mistakes_are_told(changes, message):
    told = {"categories": {"a": "synthetic/letters", "b": "synthetic/letters_2"}, "merges": 60, "kilobytes": 20}
    with pytest.raises(UserError, match=message):
        MixtureInference(**told | {"attacker_kilobytes": 20} | changes)(0)
