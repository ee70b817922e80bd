import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig, BertTokenizer, DistilBertConfig

from kdbench.data.tokenizers import (
    SPECIAL_TOKENS,
    TrainWordLevel,
    TrainWordPiece,
    encode_words,
    split_words,
    train_word_level,
    train_wordpiece,
)
from kdbench.errors import UserError

TEXTS = [
    "Casa mea este lângă o pădure întunecată.",
    "Într-o casă veche locuia un bătrân înțelept și o pisică.",
    "Pisica se juca în pădure, iar bătrânul citea o carte veche.",
    "Cartea era despre București și despre oamenii înțelepți.",
    "Oamenii mergeau în pădure ca să citească; casele lor erau vechi.",
    "Știința și țara: două cărți despre oameni, case și păduri.",
]
CEDILLA = str.maketrans("șțȘȚ", "şţŞŢ")
SMALL = train_wordpiece(TEXTS, 100, lowercase=False)


@pytest.fixture(scope="module", params=["cased", "uncased", "without accents", "words"])
def tokenizer(request):
    return {
        "cased": TrainWordPiece(vocab_size=200, lowercase=False),
        "uncased": TrainWordPiece(vocab_size=200, lowercase=True),
        "without accents": TrainWordPiece(vocab_size=200, lowercase=True, strip_accents=True),
        "words": TrainWordLevel(lowercase=True),
    }[request.param].train(TEXTS)


@pytest.fixture(scope="module")
def cased():
    return train_wordpiece(TEXTS, 200, lowercase=False)


def test_special_tokens_come_first(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    roles = (tokenizer.pad_token, tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token)
    assert roles == SPECIAL_TOKENS
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_texts_are_encoded_without_unknown_pieces(tokenizer):
    for text in TEXTS:
        pieces = tokenizer(text)["input_ids"]
        assert pieces[0] == 2 and pieces[-1] == 3 and 1 not in pieces


def test_a_pair_has_two_segments(tokenizer):
    one, other = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS[:2])
    pair = tokenizer(*TEXTS[:2], return_token_type_ids=True)
    assert pair["input_ids"] == [2, *one, 3, *other, 3]
    assert pair["token_type_ids"] == [0] * (len(one) + 2) + [1] * (len(other) + 1)


@pytest.mark.parametrize("config", [None, BertConfig(), DistilBertConfig()])
def test_plain_transformers_loads_it(tokenizer, config, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    if config is not None:
        config.save_pretrained(tmp_path)  # as in a student's folder
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for text in [*TEXTS, TEXTS[5].translate(CEDILLA), "MĂR necunoscut 日本 e\u0301 \u00ad?!"]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert dict(loaded(*TEXTS[:2])) == dict(tokenizer(*TEXTS[:2]))
    assert (loaded.pad_token_id, loaded.mask_token_id) == (0, 4)
    assert loaded(["casa", TEXTS[1]], padding=True)["input_ids"][0][-1] == 0


def test_cedilla_is_read_as_comma_below(tokenizer):
    for text in TEXTS:
        assert tokenizer(text.translate(CEDILLA))["input_ids"] == tokenizer(text)["input_ids"]
    assert not set("".join(tokenizer.get_vocab())) & set("şţŞŢ")


def test_training_on_cedillas_gives_the_same_vocabulary(cased):
    assert train_wordpiece([text.translate(CEDILLA) for text in TEXTS], 200, False).get_vocab() == cased.get_vocab()


def test_case_and_accents():
    def pieces(**options: bool) -> list[str]:
        tokenizer = train_wordpiece(TEXTS, 150, **options)
        return tokenizer.convert_ids_to_tokens(tokenizer("Știință", add_special_tokens=False)["input_ids"])

    def spelt(pieces: list[str]) -> str:
        return "".join(piece.removeprefix("##") for piece in pieces)

    assert spelt(pieces(lowercase=False)) == "Știință"
    assert spelt(pieces(lowercase=True)) == "știință"
    assert spelt(pieces(lowercase=True, strip_accents=True)) == "stiinta"


def test_pieces_are_those_of_berts_own_tokenizer(cased):
    """The same vocabulary in transformers' BertTokenizer cuts Romanian text (comma below) alike."""
    bert = BertTokenizer(vocab=cased.get_vocab(), do_lower_case=False, strip_accents=False)
    for text in TEXTS:
        assert bert(text)["input_ids"] == cased(text)["input_ids"]


def test_frequent_words_become_pieces(cased):
    vocabulary = cased.get_vocab()
    assert {"despre", "pădure", "și"} <= set(vocabulary)
    assert len(cased) <= 200
    assert any(piece.startswith("##") and len(piece) > 3 for piece in vocabulary)


def test_every_process_trains_the_same_vocabulary(cased):
    script = (
        "import sys, json; from kdbench.data.tokenizers import train_wordpiece;"
        "print(json.dumps(train_wordpiece(json.load(sys.stdin), 200, False).get_vocab()))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(TEXTS), capture_output=True, text=True, check=True
    )
    assert json.loads(printed.stdout) == cased.get_vocab()
    assert all(train_wordpiece(iter(TEXTS), 200, False).get_vocab() == cased.get_vocab() for _ in range(5))


def test_cls_at_the_end_and_padding_on_the_left(tmp_path):
    train_wordpiece(TEXTS, 200, lowercase=False, cls_last=True).save_pretrained(tmp_path)
    found = AutoTokenizer.from_pretrained(tmp_path)
    coded = found([TEXTS[0], "casa"], padding=True)
    cls, sep = found.cls_token_id, found.sep_token_id
    for ids, mask in zip(coded["input_ids"], coded["attention_mask"], strict=True):
        assert ids[-1] == cls and ids[mask.index(1)] == sep and sum(mask) == len([each for each in ids if each])
    assert coded["attention_mask"][1][0] == 0
    first, second = (found(text, add_special_tokens=False)["input_ids"] for text in ("casa", "mea"))
    assert found("casa", "mea")["input_ids"] == [sep, *first, sep, *second, cls]
    assert found("casa " * 50, truncation=True, max_length=9)["input_ids"][-1] == cls, "a cut text ends with it too"


def test_too_small_a_vocabulary_is_told():
    with pytest.raises(UserError, match="vocab_size is 20: the characters of the texts alone need"):
        train_wordpiece(TEXTS, 20, lowercase=True)


def test_word_level_orders_words_by_frequency():
    tokenizer = train_word_level(["b a b C", "c b a"], lowercase=True)
    assert tokenizer.convert_ids_to_tokens([5, 6, 7]) == ["b", "a", "c"] and len(tokenizer) == 8
    assert tokenizer("C B z")["input_ids"] == [2, 7, 5, 1, 3]
    cased = train_word_level(["b a b C", "c b a"], lowercase=False)
    assert cased.convert_ids_to_tokens(list(range(5, 9))) == ["b", "a", "C", "c"]


def test_split_words():
    assert split_words("Într-o casă, 12.5% (vechi)…") == [
        *["Într", "-", "o", "casă", ",", "12", ".", "5", "%", "(", "vechi", ")", "…"]
    ]
    assert split_words("  ") == []


def test_encode_words_agrees_with_the_tokenizer(tokenizer):
    rows = [split_words(text) for text in TEXTS]
    for text, words, (ids, index) in zip(TEXTS, rows, encode_words(tokenizer, rows, 512), strict=True):
        assert ids.tolist() == tokenizer(text)["input_ids"]
        assert ids.dtype == index.dtype == np.int64 and index[0] == index[-1] == -1
        assert index[1:-1].tolist() == sorted(index[1:-1]) and set(index[1:-1]) == set(range(len(words)))
        for number, word in enumerate(words):
            assert ids[index == number].tolist() == tokenizer(word, add_special_tokens=False)["input_ids"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(sorted({word for text in TEXTS for word in split_words(text)}))), st.integers(2, 20))
def test_encode_words_cuts_between_words(words, max_length):
    (whole_ids, whole_index), (ids, index) = (
        encode_words(SMALL, [words], length)[0] for length in (10_000, max_length)
    )
    assert len(ids) <= max_length and ids[0] == 2 and ids[-1] == 3
    kept = len(ids) - 2
    assert np.array_equal(ids[1:-1], whole_ids[1 : kept + 1])
    assert np.array_equal(index[1:-1], whole_index[1 : kept + 1])
    following = whole_index[kept + 1]
    assert following == -1 or following != index[-2]  # no word is cut in two
    if following != -1:  # and the next word had no room
        assert kept + (whole_index == following).sum() > max_length - 2


def test_words_keep_their_number_in_every_tokenizer(cased):
    uncased = train_wordpiece(TEXTS, 90, lowercase=True)
    words = ["Casa", "\u200b", "dintr-o", "carte"]  # a word that vanishes, and one that is cut further
    (ids, index), (_, other) = (encode_words(each, [words], 64)[0] for each in (cased, uncased))
    assert set(index.tolist()) == set(other.tolist()) == {-1, 0, 2, 3}
    assert len(ids) == len(index)


def test_no_rows():
    assert encode_words(train_word_level(TEXTS, True), [], 8) == []
    ((ids, index),) = encode_words(train_word_level(TEXTS, True), [[]], 8)
    assert ids.tolist() == [2, 3] and index.tolist() == [-1, -1]
