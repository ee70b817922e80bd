"""Pairs for retrieval: what a network sees, what is drawn, and mistakes."""

import re

import pytest
import torch
from fit_of_one_step import ready, tokenizer

from kdbench.data import registry
from kdbench.data.renaming import rename_words
from kdbench.data.retrieval import TextRetrieval
from kdbench.errors import UserError

DATASET = "code/stdlib_functions"
CLS, SEP, PAD = 2, 3, 0


def first_batch(data):
    return next(iter(data.train_dataloader()))


@pytest.fixture(scope="module")
def pairs():
    return ready(TextRetrieval(DATASET, max_length=32, batch_size=16, tokenizer=tokenizer()))


def test_both_sides_end_with_cls_and_are_padded_on_the_left(pairs):
    batch = first_batch(pairs)
    for view in (batch["first"], batch["second"]):
        ids, mask = view["input_ids"], view["attention_mask"]
        assert ids.shape[1] <= 32 and (ids[:, -1] == CLS).all() and mask[:, -1].all()
        begin = mask.argmax(1)
        assert (ids[torch.arange(16), begin] == SEP).all()
        for row, place in enumerate(begin.tolist()):
            assert (ids[row, :place] == PAD).all() and mask[row, place:].all() and (ids[row, place:] != PAD).all()
    assert (batch["first"]["attention_mask"].sum(1) < 32).any(), "queries differ in length"


def test_a_row_holds_the_two_texts_that_belong_together(pairs):
    batch, rows = first_batch(pairs), registry.load(DATASET, "embedded", "train")
    words = pairs.tokenizers["inputs"]
    for place, number in enumerate(batch["id"].tolist()):
        for role, field in (("first", "query"), ("second", "code")):
            ids = batch[role]["input_ids"][place][batch[role]["attention_mask"][place].bool()]
            assert ids.tolist() == words(rows[number][field], truncation=True, max_length=32)["input_ids"]


def test_the_usual_tokenizer_pads_on_the_right():
    batch = first_batch(ready(TextRetrieval(DATASET, max_length=32, batch_size=16, tokenizer=tokenizer(False))))
    assert (batch["first"]["input_ids"][:, 0] == CLS).all() and batch["first"]["attention_mask"][:, 0].all()


def test_instructions_name_fields_of_the_row_and_are_never_cut():
    told = ["Seek this:", "Represent code of {package} for retrieval:"]
    data = ready(TextRetrieval(DATASET, instructions=told, max_length=40, batch_size=8, tokenizer=tokenizer()))
    batch, rows = first_batch(data), registry.load(DATASET, "embedded", "train")
    words = data.tokenizers["inputs"]
    for place, number in enumerate(batch["id"].tolist()):
        ids = batch["second"]["input_ids"][place][batch["second"]["attention_mask"][place].bool()].tolist()
        opening = words(told[1].format(**rows[number]), add_special_tokens=False)["input_ids"]
        assert ids[: len(opening) + 2] == [SEP, *opening, SEP] and ids[-1] == CLS and len(ids) <= 40
    with pytest.raises(UserError, match=r"no field 'pakage'.*'package'"):
        ready(TextRetrieval(DATASET, instructions=["", "of {pakage}"], tokenizer=tokenizer()))
    with pytest.raises(ValueError, match="instructions are two"):
        TextRetrieval(DATASET, instructions=["alone"])


def test_words_that_come_back_get_other_names_everywhere():
    code = "def total(items):\n    total = 0\n    for item in items:\n        total += item\n    return total if items else 0"
    found = rename_words(code, 0, 1, 2)
    assert found == rename_words(code, 0, 1, 2) != rename_words(code, 0, 1, 3)
    before, after = re.findall(r"\w+", code), re.findall(r"\w+", found)
    named = dict(zip(before, after, strict=True))
    assert after == [named[word] for word in before], "a word has one new name"
    assert {word for word in named if named[word] != word} == {"total", "items"}
    assert all(len(word) == len(name) for word, name in named.items())
    assert re.sub(r"\w+", "", code) == re.sub(r"\w+", "", found)


def test_a_share_of_the_training_rows_is_renamed_anew_in_each_epoch(pairs):
    data = ready(TextRetrieval(DATASET, rename=0.3, max_length=32, batch_size=300, tokenizer=tokenizer()))
    plain = data.as_batch("train", [(item, 0) for item in data.items["train"][:300]], ["first", "second"])

    def changed(split, draw):
        items = data.items["train"][:300]
        found = data.collate(split, [(item, draw) for item in items])
        assert torch.equal(found["first"]["input_ids"], plain["first"]["input_ids"])
        rows = zip(found["second"]["input_ids"], plain["second"]["input_ids"], strict=True)
        return {place for place, (one, other) in enumerate(rows) if one[one > 0].tolist() != other[other > 0].tolist()}

    first, second = changed("train", 0), changed("train", 1)
    assert first == changed("train", 0) and first != second
    assert 0.1 < len(first) / 300 < 0.35, "some of the 30% have no word of three places among their first pieces"
    assert not changed("test", 0)
