from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from transformers import BertConfig, BertForMaskedLM, BertForTokenClassification, PreTrainedTokenizerFast

from kdbench.data.augmentation import (
    MaskedLanguageReplacement,
    RandomEdits,
    replace_by_model,
)
from kdbench.data.tokenizers import train_word_level, train_wordpiece
from kdbench.errors import UserError
from kdbench.models.origins import FromConfig, FromFolder, quiet

LETTERS = "abcdefgh"
NEW = [f"new{letter}" for letter in "abcdefghijklmno"]  # 15 words that no text holds, but for the one that teaches them
texts_of_words = st.lists(st.lists(st.sampled_from(LETTERS), max_size=8), min_size=1, max_size=6)


# ---- random edits ----


def edits(texts, **shares):
    made = RandomEdits(**{"replace": 0.0, "insert": 0.0, "swap": 0.0, "delete": 0.0, "copies": 3, **shares})
    made.prepare(texts)
    return made


@given(texts_of_words, st.integers(1, 3), st.integers(0, 5))
def test_a_copy_depends_on_seed_number_and_draw_alone(texts, draw, seed):
    texts = [*texts, ["a", "b"]]
    shares = {"replace": 0.2, "insert": 0.2, "swap": 0.2, "delete": 0.2, "seed": seed}
    forward, backward = edits(texts, **shares), edits(texts[::-1], **shares)  # the same counts, whatever the order
    first = [forward(words, row, draw) for row, words in enumerate(texts)]
    again = {row: backward(texts[row], row, draw) for row in reversed(range(len(texts)))}
    assert first == [again[row] for row in range(len(texts))]
    for words, copy in zip(texts, first, strict=True):
        assert bool(words) == bool(copy), "an empty text stays empty, and no other becomes empty"
        assert set(copy) <= {word for each in texts for word in each}


def test_numbers_draws_and_seeds_give_other_copies():
    words = list("abcdefgh" * 5)
    made = edits([words], replace=0.3, copies=2)
    others = [made(words, 0, 1), made(words, 0, 2), made(words, 1, 1), edits([words], replace=0.3, seed=1)(words, 0, 1)]
    assert len({tuple(each) for each in others}) == 4


@given(texts_of_words)
def test_draw_0_and_shares_of_0_leave_a_text_as_it_is(texts):
    texts = [*texts, ["a"]]
    every, none = edits(texts, replace=0.5, delete=0.5), edits(texts)
    for row, words in enumerate(texts):
        assert every(words, row, 0) == none(words, row, 1) == words


@given(st.lists(st.sampled_from(LETTERS), min_size=1, max_size=9), st.integers(0, 99))
def test_what_each_edit_does_when_it_meets_every_word(words, row):
    texts = [words, ["z"]]
    assert len(edits(texts, replace=1.0)(words, row, 1)) == len(words)
    assert edits(texts, insert=1.0)(words, row, 1)[::2] == words
    assert sorted(edits(texts, swap=1.0)(words, row, 1)) == sorted(words)
    (left,) = edits(texts, delete=1.0)(words, row, 1)
    assert left in words


@pytest.mark.parametrize("kind", ["replace", "insert", "swap", "delete"])
def test_a_text_of_one_word(kind):
    copies = {tuple(edits([["a"], ["b"]], **{kind: 1.0})(["a"], 0, draw)) for draw in (1, 2, 3)}
    assert copies <= {"insert": {("a", "a"), ("a", "b")}, "replace": {("a",), ("b",)}}.get(kind, {("a",)})


def test_the_shares_of_edits():
    rows, length = 400, 50
    words = [f"w{place}" for place in range(length)]
    texts = [words] * rows + [["x"] * rows * length]  # half of all new words are x
    total = rows * length

    def copied(**shares):
        made = edits(texts, **shares)
        return Counter(word for row in range(rows) for word in made(words, row, 1))

    def likely(count, share):
        return stats.binomtest(count, total, share).pvalue > 1e-3

    replaced, inserted = copied(replace=0.2), copied(insert=0.1)
    assert replaced.total() == total
    assert likely(replaced["x"], 0.2 / 2)
    assert likely(inserted.total() - total, 0.1)
    assert likely(inserted["x"], 0.1 / 2)
    together = copied(replace=0.2, insert=0.1, swap=0.1, delete=0.3)
    assert likely(together["x"], (0.2 + 0.1) / 2)
    longer = (together.total() / total - (1 + 0.1 - 0.3)) / ((0.1 + 0.3 - 0.2**2) / total) ** 0.5
    assert abs(longer) < 3.3, "no word has two fates"


def test_deletions_and_swaps_are_counted_one_by_one():
    rows, length = 500, 40
    words = [f"w{place}" for place in range(length)]
    texts = [words] * rows
    deleted = sum(length - len(edits(texts, delete=0.15)(words, row, 1)) for row in range(rows))
    assert stats.binomtest(deleted, rows * length, 0.15).pvalue > 1e-3
    swap = edits(texts, swap=1 / length)  # mostly one swap a text: two words of it move
    moved = [sum(new != old for new, old in zip(swap(words, row, 1), words, strict=True)) for row in range(rows)]
    fates = stats.binom(length, 1 / length)
    counts = Counter(moved)
    assert counts[1] == 0
    assert stats.binomtest(counts[0], rows, fates.pmf(0), alternative="less").pvalue > 1e-3
    assert stats.binomtest(counts[2], rows, fates.pmf(1), alternative="less").pvalue > 1e-3


def test_a_partner_is_any_other_place_evenly():
    words = list("abcd")
    swap = edits([words], swap=0.05)
    found = Counter()
    for row in range(8000):
        copy = swap(words, row, 1)
        moved = tuple(place for place in range(4) if copy[place] != words[place])
        found[moved] += len(moved) == 2
    pairs = [count for moved, count in found.items() if len(moved) == 2]
    assert len(pairs) == 6
    assert stats.chisquare(pairs).pvalue > 1e-3


@pytest.mark.parametrize(
    "wrong", [{"copies": 0}, {"delete": -0.1}, {"replace": 0.6, "insert": 0.6}], ids=["copies", "negative", "sum"]
)
def test_arguments_of_edits_are_checked(wrong):
    with pytest.raises(ValueError, match="got"):
        RandomEdits(**wrong)
    with pytest.raises(ValueError, match="draws 0 to 1, not 2"):
        RandomEdits()(["a"], 0, 2)


# ---- replacement by a masked language model ----

WORDS = [f"{a}{b}" for a in "bdfg" for b in "aeiou"]
TEXTS = [" ".join(np.random.default_rng([7, row]).choice(WORDS, 3 + row % 9).tolist()) for row in range(60)]
IDS = np.arange(len(TEXTS))


def bert(tokenizer, kind=BertForMaskedLM, **changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, initializer_range=0.5, **sizes)
    config.update(changes)
    return kind(config)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_word_level([*TEXTS, " ".join(NEW), "12 , ."], lowercase=False)


@pytest.fixture(scope="module")
def network(tokenizer):
    return bert(tokenizer)


@pytest.fixture
def sure(tokenizer):
    """A network that expects the 15 new words everywhere."""
    made = bert(tokenizer)
    with torch.no_grad():
        made.cls.predictions.bias[tokenizer.convert_tokens_to_ids(NEW)] = 1e4
    return made


def slow_reference(network, tokenizer, text, chosen, candidates):
    """The pools of the chosen places, one forward a place, straight from the algorithm."""
    words, pools = text.split(), {}
    network.eval()
    for place in chosen:
        shown = [tokenizer.cls_token, *words[:place], tokenizer.mask_token, *words[place + 1 :], tokenizer.sep_token]
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(shown)])
        with torch.no_grad():
            logits = network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, place + 1]
        ranked = [tokenizer.convert_ids_to_tokens(each) for each in logits.argsort(descending=True).tolist()]
        pools[place] = [piece for piece in ranked if piece.isalpha()][:candidates]
    return pools


def test_new_words_come_from_the_most_probable_ones_of_each_place(network, tokenizer):
    changed = replace_by_model(network, tokenizer, TEXTS, IDS, seed=3, candidates=4, batch_size=7)
    every = replace_by_model(network, tokenizer, TEXTS, IDS, seed=3, candidates=4, probability=1.0)
    seen = 0
    for text, copy, whole in zip(TEXTS, changed, every, strict=True):
        pools = slow_reference(network, tokenizer, text, range(len(text.split())), 4)
        assert all(new in pools[place] for place, new in enumerate(whole.split()))
        for place, (old, new) in enumerate(zip(text.split(), copy.split(), strict=True)):
            assert new in {old, whole.split()[place]}, "the choice of a word does not depend on the probability"
            seen += new != old
    assert seen > 50


def test_words_are_chosen_with_the_probability_and_new_ones_evenly(sure, tokenizer):
    changed = replace_by_model(
        sure, tokenizer, TEXTS * 5, np.tile(IDS, 5), seed=0, draws=np.repeat(np.arange(1, 6), len(TEXTS))
    )
    words = [word for copy in changed for word in copy.split()]
    counts = Counter(word for word in words if word in NEW)
    assert stats.binomtest(counts.total(), len(words), 0.4).pvalue > 1e-3
    assert len(counts) == 15
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    assert len(set(changed)) > 4 * len(TEXTS), "copies differ"


def test_a_copy_does_not_depend_on_the_other_texts(network, tokenizer):
    options = {"seed": 5, "candidates": 3, "batch_size": 8}
    together = replace_by_model(network, tokenizer, TEXTS, IDS, **options)
    assert together == replace_by_model(network, tokenizer, TEXTS, IDS, **options)
    backward = replace_by_model(network, tokenizer, TEXTS[::-1], IDS[::-1], **options)
    assert backward[::-1] == together
    alone = [replace_by_model(network, tokenizer, [TEXTS[row]], [row], **options)[0] for row in (0, 5, 40)]
    assert alone == [together[row] for row in (0, 5, 40)]
    assert replace_by_model(network, tokenizer, TEXTS, IDS, **options | {"seed": 6}) != together
    assert replace_by_model(network, tokenizer, TEXTS, IDS, draws=[2] * len(TEXTS), **options) != together


def test_the_network_is_left_as_it_was(network, tokenizer):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for training in (True, False):
        network.train(training)
        replace_by_model(network, tokenizer, TEXTS[:3], IDS[:3], seed=0)
        assert network.training is training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_empty_texts_numbers_and_punctuation_stay(sure, tokenizer):
    texts = ["", "12 , .", "ba", "", "ba, 12 da."]
    changed = replace_by_model(sure, tokenizer, texts, range(5), seed=0, probability=1.0)
    assert changed[:2] == ["", "12 , ."]
    assert changed[2] in NEW
    first, *middle, last = changed[4].split()
    assert first in NEW
    assert (middle[:2], last) == ([",", "12"], ".")
    assert middle[2] in NEW
    assert replace_by_model(sure, tokenizer, texts, range(5), seed=0, probability=0.0)[4] == "ba , 12 da ."
    assert replace_by_model(sure, tokenizer, [], [], seed=0) == []


def test_a_word_of_several_pieces_is_hidden_as_one_and_words_beyond_the_longest_stay():
    tokenizer = train_wordpiece([*TEXTS, " ".join(NEW)], 60, lowercase=False)
    network = bert(tokenizer)
    long = "newa newb newc badabada newd"
    assert len(tokenizer.tokenize("badabada")) > 1
    changed = replace_by_model(network, tokenizer, [long], [0], seed=0, probability=1.0).pop().split()
    assert len(changed) == 5
    known = {piece for piece in tokenizer.get_vocab() if piece.isalpha()}
    assert set(changed) <= known, "no continuation of a word, and no special piece, stands for a word"
    pieces = len(tokenizer.tokenize("newa newb newc"))
    cut = replace_by_model(network, tokenizer, [long], [0], seed=0, probability=1.0, max_length=pieces + 2)[0].split()
    assert cut[3:] == ["badabada", "newd"]
    assert set(cut[:3]) <= known


def test_what_cannot_replace_words_is_named(network, tokenizer):
    with pytest.raises(ValueError, match="at least 1 candidate"):
        replace_by_model(network, tokenizer, TEXTS, IDS, seed=0, candidates=0)
    with pytest.raises(ValueError, match="probability"):
        MaskedLanguageReplacement(FromFolder("nowhere"), probability=1.5)
    tagger = bert(tokenizer, BertForTokenClassification, num_labels=3)
    with pytest.raises(UserError, match="3 classes and its vocabulary"):
        replace_by_model(tagger, tokenizer, TEXTS, IDS, seed=0)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="that has a mask token"):
        replace_by_model(network, bare, TEXTS, IDS, seed=0)


def test_the_copies_of_a_run_are_those_of_the_function(network, tokenizer, tmp_path):
    with quiet():
        network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = [text.split() for text in TEXTS]
    made = MaskedLanguageReplacement(FromFolder(str(tmp_path)), copies=2, seed=4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    made.prepare(rows)
    assert torch.equal(torch.get_rng_state(), before), "the student's random numbers are left alone"
    for draw in (1, 2):
        expected = replace_by_model(network, tokenizer, TEXTS, IDS, seed=4, draws=[draw] * len(TEXTS))
        assert [" ".join(made(words, row, draw)) for row, words in enumerate(rows)] == expected
    assert [made(words, row, 0) for row, words in enumerate(rows)] == rows


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(UserError, match="brings no tokenizer"):
        MaskedLanguageReplacement(FromConfig("BertForMaskedLM", {})).prepare([["a"]])
