import subprocess
import sys

import pytest

from kdbench.data.generators import romanian
from kdbench.data.generators.hidden_markov_text import HiddenMarkovText

KINDS = {
    "sentences": ("text",),
    "tagged": ("words", "upos", "xpos"),
    "entities": ("words", "ner"),
    "reviews": ("title", "content", "stars"),
    "pairs": ("first", "second", "score"),
    "dialects": ("text", "dialect"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_their_fields_and_no_text_is_in_two_splits(kind):
    make = getattr(romanian, kind)
    splits = {split: make(split, 300) for split in ("train", "validation", "test")}
    texts = {split: {romanian._text_of(row) for row in rows} for split, rows in splits.items()}
    assert all(tuple(row) == KINDS[kind] for rows in splits.values() for row in rows)
    assert all(len(found) == 300 for found in texts.values())
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert make("train", 50) == splits["train"][:50], "a row depends on its number, not on how many are asked for"


def test_letters_are_comma_below():
    text = " ".join(row["text"] for row in romanian.sentences("train", 1000))
    assert not set("şţŞŢ") & set(text)
    assert {"ș", "ț", "ă", "â", "î"} <= set(text.lower())


def test_tags_fit_words_and_entities_are_well_formed():
    for row in romanian.tagged("test", 200):
        assert len(row["words"]) == len(row["upos"]) == len(row["xpos"])
        assert row["words"][0][0].isupper()
    for row in romanian.entities("test", 200):
        before = "O"
        for tag in row["ner"]:
            assert not tag.startswith("I-") or before[2:] == tag[2:]
            before = tag


def test_equal_pairs_score_five_and_scores_spread():
    rows = romanian.pairs("train", 500)
    assert all(row["score"] == 5 for row in rows if row["first"] == row["second"])
    assert {row["score"] for row in rows} >= {0.0, 5.0}


def test_another_process_makes_the_same_rows():
    code = "from kdbench.data.generators import romanian; print(romanian.reviews('test', 3))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(romanian.reviews("test", 3))


def test_the_hidden_markov_posterior_is_the_sum_over_all_paths():
    language = HiddenMarkovText()
    words = language.rows("train", 1)[0]["words"][:3]
    number = {word: place for place, word in enumerate(language.words)}
    expected = [[0.0] * 10 for _ in words]
    for transition in language.transitions:
        for a in range(10):
            for b in range(10):
                for c in range(10):
                    path, probability = (a, b, c), transition[a, b] * transition[b, c]
                    for state, word in zip(path, words, strict=True):
                        capital = language.capital[state]
                        probability *= language.emissions[state, number[word.lower()]]
                        probability *= capital if word[0].isupper() else 1 - capital
                    for place, state in enumerate(path):
                        expected[place][state] += probability
    found = language.posterior_states(words)
    for place in range(3):
        assert found[place] == pytest.approx([each / sum(expected[place]) for each in expected[place]])


def test_the_hidden_markov_vocabulary_folds():
    language = HiddenMarkovText()
    assert len(set(language.words)) == 30
    rows = language.rows("test", 20)
    assert rows == HiddenMarkovText().rows("test", 20)
    assert all(len(row["words"]) == len(row["states"]) == 16 for row in rows)
    assert {word.lower() for row in rows for word in row["words"]} <= set(language.words)
