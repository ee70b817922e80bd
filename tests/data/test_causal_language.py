"""Prompts and responses: which positions predict, what padding holds, where a text ends, and the sentences for mistakes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.data.causal_language import CausalLanguageModeling, continued
from kdbench.data.causal_tokenizers import TrainCharacters, TrainWords
from kdbench.data.corruption import IGNORED
from kdbench.data.text import as_view, pad
from kdbench.errors import UserError

ROWS = [
    {"text": "a b c d e", "question": "what", "answer": "a b"},
    {"text": "b c", "question": "who is", "answer": "c d e a b c d"},
    {"text": "c", "question": "why", "answer": "b"},
]


def data(tokenizer=None, **settings):
    """Return a data module of these rows, with its tokenizer settled."""
    module = CausalLanguageModeling("synthetic/markov_language", **{"prompt_length": 2, "max_length": 6} | settings)
    texts = [text for row in ROWS for text in module.texts(row)]
    module.tokenizers = {"inputs": (tokenizer or TrainWords()).train(texts)}
    return module


def batch(module, rows=ROWS):
    items = [item | {"id": place} for place, item in enumerate(module.encode(rows))]
    return module.collate("train", [(item, 0) for item in items])


def words(module, ids):
    return module.tokenizers["inputs"].convert_ids_to_tokens(ids.tolist())


def test_the_first_tokens_of_a_text_are_its_prompt_and_the_rest_is_predicted():
    module = data(end=False)
    found = batch(module)
    assert found["id"].tolist() == [0], "the others have no response"
    assert words(module, found["inputs"]["input_ids"][0]) == ["a", "b", "c", "d", "e"]
    assert found["predicts"].tolist() == [[False, True, True, True, False]]
    assert words(module, found["labels"][0][found["predicts"][0]]) == ["c", "d", "e"]


def test_labels_stand_where_they_are_predicted_whatever_the_padding():
    module = data(prompt="{question} ?", text="answer", max_length=7, prompt_length=3)
    found = batch(module)
    ids, mask = found["inputs"]["input_ids"], found["inputs"]["attention_mask"].bool()
    for row, response in enumerate((["a", "b", "<end>"], ["c", "d", "e", "a"], ["b", "<end>"])):
        assert words(module, found["labels"][row][found["predicts"][row]]) == response
        places = found["predicts"][row].nonzero().squeeze(-1)
        assert ids[row, places + 1].equal(found["labels"][row, places]), "one step ahead"
        assert mask[row, places].all()
        assert mask[row, places + 1].all()
    assert (found["labels"][~found["predicts"]] == IGNORED).all()
    torch.testing.assert_close(found["per_sequence"].sum(1), torch.ones(3))
    assert found["per_sequence"][0].max() == pytest.approx(1 / 3)


def test_prompts_are_padded_on_the_left_and_positions_count_real_tokens():
    module = data(prompt="{question} ?", text="answer", max_length=7, prompt_length=3)
    found = batch(module)
    assert words(module, found["prompt"]["input_ids"][0]) == ["<pad>", "what", "?"]
    assert words(module, found["prompt"]["input_ids"][1]) == ["who", "is", "?"]
    assert found["inputs"]["position_ids"][0].tolist() == [0, 0, 1, 2, 3, 4, 4]
    assert found["inputs"]["position_ids"][1].tolist() == list(range(7))


def test_of_a_long_prompt_the_end_is_kept_and_of_a_long_response_the_beginning():
    module = data(prompt="{question} ?", text="answer", max_length=5, prompt_length=2)
    found = batch(module)
    assert words(module, found["prompt"]["input_ids"][1]) == ["is", "?"]
    assert words(module, found["response"]["input_ids"][1]) == ["c", "d", "e"], "cut, so without an end"
    assert words(module, found["response"]["input_ids"][2]) == ["b", "<end>", "<pad>"]


def test_only_a_response_that_was_not_cut_has_an_end():
    module = data()
    assert [words(module, item["response"]) for item in module.encode(ROWS)] == [
        ["c", "d", "e", "<end>"],
        ["<end>"],
        ["<end>"],
    ]
    assert module.end_token == 2
    without = data(end=False)
    assert without.end_token is None
    assert module.new_tokens == 4


def test_characters():
    module = data(TrainCharacters(), max_length=20, prompt_length=4)
    found = batch(module)
    tokenizer = module.tokenizers["inputs"]
    assert tokenizer.decode(found["prompt"]["input_ids"][0]) == "a b "
    assert tokenizer.decode(found["labels"][0][found["predicts"][0]][:-1]) == "c d e"


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4), st.integers(50, 60))
def test_what_fills_a_batch_up_changes_no_field_that_counts(lengths, other):
    def fields(padding):
        coded = [np.arange(1, 1 + sum(each)) for each in lengths]
        prompts = [ids[:p] for ids, (p, _) in zip(coded, lengths, strict=True)]
        responses = [ids[p:] for ids, (p, _) in zip(coded, lengths, strict=True)]
        views = [
            as_view(pad(each, padding, left), np.array([len(ids) for ids in each]), left)
            for each, left in ((prompts, True), (responses, False))
        ]
        return continued(*views)

    one, two = fields(0), fields(other)
    for name in ("labels", "predicts", "per_sequence"):
        assert one[name].equal(two[name])
    mask = one["inputs"]["attention_mask"].bool()
    assert one["inputs"]["input_ids"][mask].equal(two["inputs"]["input_ids"][mask])
    for row, (prompt, response) in enumerate(lengths):
        assert one["labels"][row][one["predicts"][row]].tolist() == list(range(1 + prompt, 1 + prompt + response))
        assert mask[row].sum() == prompt + response


def test_mistakes():
    with pytest.raises(ValueError, match="leaves room for a response in max_length 8, got prompt_length 8"):
        CausalLanguageModeling("synthetic/markov_language", prompt_length=8, max_length=8)
    with pytest.raises(UserError, match="The prompt of row 0 of 'synthetic/markov_language' is empty"):
        data(prompt="", text="answer").encode(ROWS)
    with pytest.raises(UserError, match=r"no field 'anser'.*Did you mean 'answer'\?"):
        CausalLanguageModeling("synthetic/markov_language", text="anser", prompt_length=2, max_length=6).texts(ROWS[0])
    with pytest.raises(UserError, match=r"no field 'qestion'.*Did you mean 'question'\?"):
        data(prompt="{qestion}")
