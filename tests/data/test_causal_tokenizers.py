"""Tokenizers for networks that write: nothing around a text, one token for its end, and the text back from its tokens."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kdbench.data.causal_tokenizers import TrainBytePairs, TrainCharacters, TrainWords
from kdbench.errors import UserError

TEXTS = ["b a b c", "To be,\nor not  to be: that!", "a\tb"]
KINDS = {"words": TrainWords(), "characters": TrainCharacters(), "byte pairs": TrainBytePairs(270)}


@pytest.mark.parametrize("name", KINDS)
def test_texts_have_no_frame_and_the_end_is_one_token(name):
    tokenizer = KINDS[name].train(TEXTS)
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<unk>", "<end>"]) == [0, 1, 2]
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 2
    ids = tokenizer(TEXTS[0])["input_ids"]
    assert not {0, 1, 2} & set(ids)
    assert tokenizer.decode(ids) == TEXTS[0]


def test_words_come_by_their_frequency():
    tokenizer = TrainWords().train(["b a b c", "c b a"])
    assert tokenizer.convert_ids_to_tokens([3, 4, 5]) == ["b", "a", "c"]
    assert tokenizer("b d")["input_ids"] == [3, 1]


@given(st.text(alphabet="ab \n\t,é", min_size=1, max_size=20))
def test_characters_and_bytes_give_every_text_back(text):
    for tokenizer in (TrainCharacters().train(["ab \n\t,é"]), KINDS["byte pairs"].train(TEXTS)):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_byte_pairs_know_everything_and_need_room_for_the_bytes():
    tokenizer = KINDS["byte pairs"].train(TEXTS)
    assert 1 not in tokenizer("日本語 😀")["input_ids"]
    assert len(tokenizer) <= 270
    with pytest.raises(UserError, match="vocab_size is 100: the bytes alone need 259"):
        TrainBytePairs(100).train(TEXTS)


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_tokenizer_is_the_same(name, tmp_path):
    tokenizer = KINDS[name].train(TEXTS)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    for text in TEXTS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.eos_token_id == 2


def test_the_same_texts_give_the_same_vocabulary_in_another_process():
    code = (
        "from kdbench.data.causal_tokenizers import TrainBytePairs\n"
        f"print(TrainBytePairs(270).train({TEXTS!r})('To be or not')['input_ids'])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(KINDS["byte pairs"].train(TEXTS)("To be or not")["input_ids"])
