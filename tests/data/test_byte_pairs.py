"""Byte-pair tokenizers as merges: what is trained, read back, and cut into words."""

from collections import Counter
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from kdbench.compression.mixture import pair_history
from kdbench.data.byte_pairs import BytePairs, train_byte_pairs
from kdbench.errors import UserError

TEXTS = ["low lower lowest 12 times", "newest widest low low", "it's wide, isn't it?"] * 3


def test_every_merge_was_the_most_frequent_pair():
    trained = train_byte_pairs(TEXTS, 20)
    assert len(trained.merges) == 20
    history = pair_history(trained.words(TEXTS), trained.merges)
    for step, merge in enumerate(trained.merges):
        counts = {}
        for pair, start, count in zip(history.pair, history.step, history.count, strict=True):
            if start <= step:
                counts[history.pairs[pair]] = int(count)
        assert counts[merge] == max(counts.values()), (step, merge)


def test_words_are_those_of_the_tokenizer_and_hold_all_bytes():
    trained = train_byte_pairs(TEXTS, 5)
    words = trained.words(["low 12"])
    assert words == Counter({("l", "o", "w"): 1, ("Ġ",): 1, ("1",): 1, ("2",): 1})
    text = "ăîș, ok"
    assert sum(len(word) * count for word, count in trained.words([text]).items()) == len(text.encode())


def test_a_file_gives_back_the_same(tmp_path):
    trained = train_byte_pairs(TEXTS, 8)
    trained.tokenizer.save(str(tmp_path / "tokenizer.json"))
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        read = BytePairs(place)
        assert read.merges == trained.merges
        assert read.words(TEXTS) == trained.words(TEXTS)


def test_a_tokenizer_without_words_of_its_own_is_cut_at_spaces():
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "▁": 3}, merges=[("a", "b")]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    assert BytePairs(tokenizer).words(["ab  ba"]) == Counter({tuple("▁ab"): 1, tuple("▁▁ba"): 1})


def test_the_end_of_a_word_is_marked_where_the_tokenizer_does():
    vocabulary = {"a": 0, "b</w>": 1, "ab</w>": 2}
    model = models.BPE(vocab=vocabulary, merges=[("a", "b</w>")], end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    found = BytePairs(tokenizer)
    assert found.words(["ab ab"]) == Counter({("a", "b</w>"): 2})
    assert [pair for word in found.words(["ab"]) for pair in pairwise(word)] == found.merges


def test_mistakes_are_told(tmp_path):
    with pytest.raises(UserError, match="There is no tokenizer file"):
        BytePairs(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is no tokenizer that can be read"):
        BytePairs(tmp_path)
    with pytest.raises(UserError, match=r"\(WordPiece\) has none"):
        BytePairs(Tokenizer(models.WordPiece({"a": 0}, unk_token="a")))
    with pytest.raises(UserError, match="has none: name one of the kind BPE"):
        BytePairs(Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(UserError, match=r"give \d+ merges, not 5000"):
        train_byte_pairs(TEXTS, 5000)
