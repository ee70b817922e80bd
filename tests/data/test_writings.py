"""Shakespeare and GSM8K as published: rows, splits, and what is said of damaged files."""

import json
import os

import pytest

from kdbench.data.cards import CARDS
from kdbench.data.readers.writings_hub import instruction
from kdbench.data.registry import FOLDER, SPLITS, load
from kdbench.errors import UserError

there = pytest.mark.skipif(FOLDER not in os.environ, reason=f"{FOLDER} names no folder of real data")
PROBLEM = {"question": "How many?", "answer": "1 + 1 = 2\n#### 2"}


@there
@pytest.mark.parametrize("name", ["en/tinyshakespeare", "en/gsm8k"])
def test_splits_are_as_large_as_their_card_says(name):
    assert tuple(len(load(name, "local", split)) for split in SPLITS) == CARDS[name].splits["local"]


@there
def test_windows_of_shakespeare_follow_one_another():
    rows = load("en/tinyshakespeare", "local", "train")
    assert rows[0]["text"].startswith("First Citizen:\nBefore we proceed any further, hear me speak.")
    assert {len(row["text"]) for row in rows} == {128}
    assert "\n\nAll:\n" in rows[0]["text"] + rows[1]["text"]


@there
def test_problems_end_with_their_number():
    rows = load("en/gsm8k", "local", "test")
    assert rows[0]["question"].startswith("Janet")
    assert all(row["answer"].rpartition("#### ")[2] for row in rows)
    texts = {split: {row["question"] for row in load("en/gsm8k", "local", split)} for split in SPLITS}
    assert not texts["train"] & texts["validation"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    file = tmp_path / "en" / "gsm8k" / "train.jsonl"
    file.parent.mkdir(parents=True)
    return file


def test_a_tenth_of_the_training_rows_is_for_validation(folder):
    folder.write_text("".join(json.dumps(PROBLEM | {"question": str(each)}) + "\n" for each in range(25)))
    assert [row["question"] for row in load("en/gsm8k", "local", "validation")] == ["9", "19"]
    assert len(load("en/gsm8k", "local", "train")) == 23


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "not valid JSON"),
        ("[1]", "no question and answer"),
        (json.dumps({"question": "How many?"}), "question and answer are no texts"),
        (json.dumps(PROBLEM | {"answer": "2"}), "no '####' before the number of the answer"),
    ],
)
def test_a_damaged_line_is_named(line, sentence, folder):
    folder.write_text(json.dumps(PROBLEM) + "\n" + line + "\n")
    with pytest.raises(UserError) as raised:
        load("en/gsm8k", "local", "train")
    assert str(raised.value).startswith(f"{folder}, line 2: {sentence}")


def test_the_words_around_an_instruction():
    assert instruction("Sing.").endswith("### Instruction:\nSing.\n\n### Response:\n")
    assert "further context" in instruction("Sing.", "A song.")
    assert "### Input:\nA song.\n\n" in instruction("Sing.", "A song.")
