"""Hindi pairs and Maltese sentences as published: rows, splits, and what is said of damaged files."""

import os

import pytest

from kdbench.data.cards import CARDS
from kdbench.data.registry import FOLDER, SPLITS, load
from kdbench.errors import UserError

there = pytest.mark.skipif(FOLDER not in os.environ, reason=f"{FOLDER} names no folder of real data")


@there
@pytest.mark.parametrize("name", ["hi/stsb", "mt/text"])
def test_splits_are_as_large_as_their_card_says(name):
    assert tuple(len(load(name, "local", split)) for split in SPLITS) == CARDS[name].splits["local"]


@there
def test_first_rows_are_the_published_ones():
    assert load("hi/stsb", "local", "train")[1] == {
        "first": "एक आदमी एक बड़ी बांसुरी बजा रहा है।",
        "second": "एक आदमी एक बांसुरी बजा रहा है।",
        "score": 3.8,
    }
    assert all("# text" not in row["text"] for row in load("mt/text", "local", "test"))


def folder(tmp_path, monkeypatch, name, line):
    card = CARDS[name]
    place = tmp_path / card.local
    place.mkdir(parents=True)
    for file in card.files:
        (place / file).write_text(line + "\n", encoding="utf-8")
    monkeypatch.setenv(FOLDER, str(tmp_path))


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        (
            "hi/stsb",
            "a\tb\tc\t0\t5\tएक",
            "line 1: 6 columns instead of genre, file, year, number, score, sentence, sentence",
        ),
        ("hi/stsb", "a\tb\tc\t0\t9\tएक\tदो", "line 1: '9' is no score from 0 to 5"),
        ("mt/text", "1\tIl\til\tDEF\t_\t_\t0\troot\t_\t_", "no line gives the text of a sentence"),
    ],
)
def test_damaged_files_are_named(tmp_path, monkeypatch, name, line, said):
    folder(tmp_path, monkeypatch, name, line)
    with pytest.raises(UserError, match=said):
        load(name, "local", "train")
