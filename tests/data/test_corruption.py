import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kdbench.data.corruption import WordView, mask_tokens, mask_words, token_weights

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = [PAD, UNK, CLS, SEP, MASK]
VOCABULARY = 40
RANDOM = np.arange(5, VOCABULARY)


def batch(lengths: list[int], width: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows ``[CLS] ... [SEP] [PAD] ...`` of the given lengths, special tokens included; row i does not depend on j."""
    width = width or max(lengths)
    ids = np.full((len(lengths), width), PAD)
    for row, length in enumerate(lengths):
        ids[row, :length] = np.random.default_rng([seed, row]).integers(5, VOCABULARY, length)
        ids[row, 0], ids[row, length - 1] = CLS, SEP
    return ids, (np.arange(width) < np.array(lengths)[:, None]).astype(int)


def mask(ids, attention, weights=None, rows=None, draw=0, **options):
    table = token_weights(np.arange(VOCABULARY), SPECIAL)
    return mask_tokens(
        ids,
        table[ids] if weights is None else weights,
        attention,
        **{"seed": 1, "mask_id": MASK, "random_ids": RANDOM, **options},
        rows=np.arange(len(ids)) if rows is None else rows,
        draws=np.full(len(ids), draw),
    )


def test_token_weights():
    weights = token_weights(np.array([9, 0, 1, 100, 32]), special_ids=[0])
    assert weights == pytest.approx([0, 1, 1, 100**-0.7, 32**-0.7])
    assert token_weights(np.array([9, 0, 4]), [0], power=0.0) == pytest.approx([0, 1, 1])


@settings(deadline=None)
@given(st.lists(st.integers(2, 30), min_size=1, max_size=6), st.sampled_from(["batch", "row"]), st.integers(0, 99))
def test_counts_labels_and_places(lengths, per, draw):
    ids, attention = batch(lengths)
    corrupted, labels = mask(ids, attention, per=per, draw=draw)
    chosen = labels != -100
    assert corrupted.shape == labels.shape == ids.shape and corrupted.dtype == ids.dtype
    assert np.array_equal(corrupted[~chosen], ids[~chosen])
    assert np.array_equal(labels[chosen], ids[chosen])
    assert not np.isin(ids[chosen], SPECIAL).any()
    assert np.isin(corrupted[chosen], [MASK, *RANDOM]).all()
    # all tokens but padding count, special ones too; no more can be drawn than have a weight
    if per == "batch":
        assert chosen.sum() == min(math.ceil(0.15 * sum(lengths)), sum(length - 2 for length in lengths))
    else:
        assert chosen.sum(1).tolist() == [min(math.ceil(0.15 * length), length - 2) for length in lengths]


def test_a_row_does_not_depend_on_its_batch():
    ids, attention = batch([30, 12, 20])
    together = mask(ids, attention, per="row", rows=np.array([8, 3, 5]), draw=2)
    for row, number, length in [(0, 8, 30), (1, 3, 12), (2, 5, 20)]:
        alone = mask(ids[[row], :length], attention[[row], :length], per="row", rows=np.array([number]), draw=2)
        for part, whole in zip(alone, together, strict=True):
            assert np.array_equal(part[0], whole[row, :length])


def test_draws_rows_and_seeds_give_other_masks():
    ids, attention = batch([40])
    labels = [
        mask(ids, attention, draw=0)[1],
        mask(ids, attention, draw=1)[1],
        mask(ids, attention, rows=np.array([9]))[1],
        mask(ids, attention, seed=2)[1],
    ]
    assert all(not np.array_equal(first, second) for first, second in itertools.combinations(labels, 2))
    assert np.array_equal(labels[0], mask(ids, attention)[1])


def test_places_are_drawn_one_by_one_in_proportion_to_their_weight():
    """Two of four places without replacement: the law of each pair from its two orders."""
    weight = np.array([1.0, 2.0, 3.0, 4.0])
    tries = 20_000
    ids = np.tile(np.array([5, 6, 7, 8]), (tries, 1))
    _, labels = mask(ids, np.ones_like(ids), weights=np.tile(weight, (tries, 1)), rate=0.5, per="row")
    p = weight / weight.sum()
    pairs = list(itertools.combinations(range(4), 2))
    law = [p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in pairs]
    assert sum(law) == pytest.approx(1)
    chosen = labels != -100
    seen = [(chosen[:, i] & chosen[:, j]).sum() for i, j in pairs]
    assert stats.chisquare(seen, np.array(law) * tries).pvalue > 1e-3


def test_shares_are_mask_keep_random_in_this_order():
    ids = np.full((200, 100), 5)
    corrupted, labels = mask(
        ids, np.ones_like(ids), weights=np.ones(ids.shape), random_ids=np.arange(10, 14), shares=(0.7, 0.2, 0.1)
    )
    became = corrupted[labels != -100]
    assert len(became) == 3000
    seen = [(became == MASK).sum(), (became == 5).sum(), *[(became == other).sum() for other in range(10, 14)]]
    assert sum(seen) == 3000
    assert stats.chisquare(seen, [2100, 600, 75, 75, 75, 75]).pvalue > 1e-3


def test_shares_of_one():
    ids, attention = batch([20, 20])
    all_masked, labels = mask(ids, attention, shares=(1.0, 0.0, 0.0))
    assert (all_masked[labels != -100] == MASK).all()
    assert np.array_equal(mask(ids, attention, shares=(0.0, 1.0, 0.0))[0], ids)
    everywhere = mask(ids, attention, rate=1.0)[1]
    assert np.array_equal(everywhere != -100, ~np.isin(ids, SPECIAL))


# Three rows of words in two tokenizers: word w has pieces 10w, 10w+1, ... in the first and 1000 + the same in the
# second, with its own number of pieces in each.
PIECES = {0: (1, 2), 1: (3, 1), 2: (1, 1), 3: (2, 2), 4: (1, 4)}


def views_of(rows: list[list[int]]) -> list[WordView]:
    views = []
    for side, base in ((0, 100), (1, 1000)):
        ids = np.zeros((len(rows), 24), dtype=np.int64)
        index = np.full(ids.shape, -1)
        for number, words in enumerate(rows):
            at = 1
            for position, word in enumerate(words):
                for piece in range(PIECES[word][side]):
                    ids[number, at], index[number, at] = base + 10 * word + piece, position
                    at += 1
        views.append(WordView(ids, index, mask_id=base - 1, random_ids=base + 900 + np.arange(30)))
    return views


def hide(views, draws=None, weights=None, **options):
    count = len(views[0].ids)
    return mask_words(
        views,
        (views[0].word_index >= 0).astype(float) if weights is None else weights,
        seed=3,
        rows=np.arange(count),
        draws=np.zeros(count, dtype=int) if draws is None else draws,
        **options,
    )


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(sorted(PIECES)), max_size=5), min_size=1, max_size=5),
    st.sampled_from(["batch", "row"]),
    st.floats(0.1, 1.0),
)
def test_every_view_meets_the_same_fate(rows, per, rate):
    views = views_of(rows)
    hidden = hide(views, rate=rate, per=per, shares=(0.4, 0.3, 0.3))
    chosen_words = []
    for number, words in enumerate(rows):
        chosen = 0
        for position in range(len(words)):
            fates = set()
            for view, (corrupted, labels) in zip(views, hidden, strict=True):
                here = view.word_index[number] == position
                old, new, label = view.ids[number, here], corrupted[number, here], labels[number, here]
                if (label == -100).all():
                    assert np.array_equal(old, new)
                    fates.add("untouched")
                    continue
                assert np.array_equal(label, old)
                if (new == view.mask_id).all():
                    fates.add("mask")
                elif np.array_equal(new, old):
                    fates.add("keep")
                else:
                    assert len(set(new.tolist())) == 1
                    fates.add(("random", int(np.flatnonzero(view.random_ids == new[0])[0])))
            assert len(fates) == 1
            chosen += fates != {"untouched"}
        chosen_words.append(chosen)
    if per == "row":
        assert chosen_words == [math.ceil(rate * len(words)) for words in rows]
    else:
        assert sum(chosen_words) == math.ceil(rate * sum(map(len, rows)))
    for view, (corrupted, labels) in zip(views, hidden, strict=True):
        outside = view.word_index < 0
        assert (labels[outside] == -100).all() and np.array_equal(corrupted[outside], view.ids[outside])


def test_words_that_a_view_has_cut_off_are_not_drawn():
    first, second = views_of([[0, 1, 2, 3]])
    cut = np.where(second.word_index >= 2, -1, second.word_index)
    hidden = hide([first, WordView(second.ids, cut, second.mask_id, second.random_ids)], rate=1.0)
    assert set(first.word_index[hidden[0][1] != -100]) == {0, 1}


def test_weight_of_a_word_is_the_mean_of_its_pieces():
    """Words of one and of three pieces, mean weights 1 and 3: the second is drawn three times as often."""
    tries = 4000
    views = views_of([[0, 1]] * tries)
    weights = np.zeros(views[0].ids.shape)
    weights[:, 1], weights[:, 2:5] = 1.0, [1.0, 3.0, 5.0]
    (_, labels), _ = hide(views, weights=weights, rate=0.5, per="row")
    drawn = [(labels[:, 1] != -100).sum(), (labels[:, 2] != -100).sum()]
    assert sum(drawn) == tries
    assert stats.chisquare(drawn, [tries / 4, 3 * tries / 4]).pvalue > 1e-3


def test_one_view_may_be_masked_alone_with_the_same_result():
    views = views_of([[0, 1, 2], [3, 4, 1]])
    both, alone = hide(views), hide(views[:1])
    assert np.array_equal(both[0][0], alone[0][0]) and np.array_equal(both[0][1], alone[0][1])


def test_surface_forms_must_be_listed_in_every_view():
    first, second = views_of([[0]])
    with pytest.raises(ValueError, match="lengths differ"):
        hide([first, WordView(second.ids, second.word_index, second.mask_id, second.random_ids[:-1])])
