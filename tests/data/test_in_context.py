"""Several functions in one input: what a network sees, what is drawn, what gives nothing away, and mistakes."""

from collections import Counter

import numpy as np
import pytest
import torch
from fit_of_one_step import ready, tokenizer

from kdbench.data import registry
from kdbench.data.corruption import IGNORED
from kdbench.data.in_context import InContextClassification
from kdbench.errors import UserError

DATASET = "code/stdlib_functions"
CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def context():
    return ready(
        InContextClassification(DATASET, max_length=65, batch_size=64, parts=4, tokenizer=tokenizer()), "shared"
    )


def parts(ids):
    """Cut an input at its separators."""
    assert ids[0] == SEP and ids[-1] == CLS
    found, ids = [], ids[1:-1]
    for each in ids:
        if each == SEP or not found:
            found.append([])
        if each != SEP:
            found[-1].append(each)
    return [tuple(each) for each in found]


def origin(data, split):
    """Return the packages of every text of a split, by its pieces."""
    found = {}
    for row in registry.load(DATASET, "embedded", split):
        ids = data.tokenizers["inputs"](row["code"], add_special_tokens=False, truncation=True, max_length=15)
        found.setdefault(tuple(ids["input_ids"]), set()).add(row["package"])
    return found


def inputs(data, split, draw=0):
    batch = data.collate(split, [(item, draw) for item in data.items[split]])
    whole = torch.where(batch["masked_labels"] == IGNORED, batch["inputs"]["input_ids"], batch["masked_labels"])
    mask = batch["inputs"]["attention_mask"].bool()
    return [parts(row[real].tolist()) for row, real in zip(whole, mask, strict=True)], batch


def test_an_input_is_of_one_package_or_its_end_is_of_another(context):
    texts, batch = inputs(context, "test")
    known = origin(context, "test")
    assert context.labels == ["several", "one"]
    for row, one in zip(texts, batch["labels"].tolist(), strict=True):
        assert 2 <= len(row) <= 4 and len(set(row)) == len(row) and all(len(each) <= 15 for each in row)
        shared = set.intersection(*(known[each] for each in row))
        if one:
            assert shared, "all texts have a package in common"
        else:
            begin, end = known[row[0]], known[row[-1]]
            assert len(begin) > 1 or len(end) > 1 or begin != end
    assert 0.4 < batch["labels"].double().mean() < 0.6


def test_neither_number_nor_length_gives_the_answer_away(context):
    numbers, lengths = {0: Counter(), 1: Counter()}, {0: [], 1: []}
    for draw in range(8):
        texts, batch = inputs(context, "test", draw)
        for row, one in zip(texts, batch["labels"].tolist(), strict=True):
            numbers[one][len(row)] += 1
            lengths[one].append(sum(map(len, row)))
    for size in (2, 3, 4):
        shares = [numbers[one][size] / sum(numbers[one].values()) for one in (0, 1)]
        assert shares[0] == pytest.approx(shares[1], abs=0.03)
    assert np.mean(lengths[0]) == pytest.approx(np.mean(lengths[1]), rel=0.02)


def test_tokens_are_hidden_where_the_view_says(context):
    batch = context.collate("train", [(item, 0) for item in context.items["train"][:64]])
    hidden, view = batch["masked_labels"], batch["inputs"]
    assert torch.equal(view["masked"], hidden != IGNORED)
    ids, mask = view["input_ids"], view["attention_mask"].bool()
    assert hidden[view["masked"]].min() > MASK and not view["masked"][~mask].any()
    assert (ids[:, -1] == CLS).all() and mask[:, -1].all()
    shares = view["masked"].sum(1) / mask.sum(1)
    assert shares.mean() == pytest.approx(0.15, abs=0.02)
    assert (ids[view["masked"]] == MASK).double().mean() == pytest.approx(0.8, abs=0.05)


def test_training_draws_anew_and_the_rest_never_changes(context):
    chosen = [(item, draw) for item in context.items["train"][:40] for draw in (0, 1)]
    one, again = (context.collate("train", chosen)["inputs"]["input_ids"] for _ in range(2))
    assert torch.equal(one, again)
    assert sum(not torch.equal(first, second) for first, second in zip(one[::2], one[1::2], strict=True)) > 30
    context.seed, seed = 7, context.seed
    other = context.collate("train", chosen)["inputs"]["input_ids"]
    held_out = inputs(context, "test")[0]
    context.seed = seed
    assert not torch.equal(other, one) and held_out == inputs(context, "test")[0]


def test_nothing_is_hidden_at_a_rate_of_0():
    data = ready(InContextClassification(DATASET, rate=0.0, max_length=65, tokenizer=tokenizer()), "shared")
    batch = data.example()
    assert set(batch["inputs"]) == {"input_ids", "attention_mask"} and "masked_labels" not in batch


def test_mistakes():
    with pytest.raises(ValueError, match="9 pieces cannot hold 5 texts"):
        InContextClassification(DATASET, max_length=9, parts=5)
    with pytest.raises(ValueError, match="cannot hold 1 texts"):
        InContextClassification(DATASET, parts=1)
    with pytest.raises(UserError, match=r"No two groups of .* have 399 texts: lower data.parts"):
        ready(InContextClassification(DATASET, parts=400, max_length=1024, tokenizer=tokenizer()), "shared")
    with pytest.raises(UserError, match="no field 'pakage'"):
        ready(InContextClassification(DATASET, group="pakage", tokenizer=tokenizer()), "shared")
