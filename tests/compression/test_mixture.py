"""The linear program of a tokenizer's merges: against a recount, against all rows at once, against what is known."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.compression.mixture import byte_shares, mixture_shares, pair_history

words = st.dictionaries(
    st.text("abc", min_size=1, max_size=7).map(tuple), st.integers(1, 9), min_size=1, max_size=8
).filter(lambda found: any(len(word) > 1 for word in found))


def merged(word, merge):
    found = []
    for symbol in word:
        found.append(symbol)
        if len(found) > 1 and (found[-2], found[-1]) == merge:
            found[-2:] = [found[-2] + found[-1] + "|"]  # so that it meets no further merge of this step
    return [symbol.removesuffix("|") for symbol in found]


def recount(text, merges):
    """Count all pairs anew after some merges."""
    counts = Counter()
    for word, times in text.items():
        state = list(word)
        for merge in merges:
            state = merged(state, merge)
        for pair in pairwise(state):
            counts[pair] += times
    return counts


def trained(texts, shares, merges):
    """Return the merges of a trainer on a mixture: the most frequent pair, of equals the smallest."""
    found = []
    for _ in range(merges):
        mixed = Counter()
        for text, share in zip(texts, shares, strict=True):
            total = recount(text, []).total()
            for pair, count in recount(text, found).items():
                mixed[pair] += share * count / total
        if not mixed:
            break
        highest = max(mixed.values())
        found.append(min(pair for pair, value in mixed.items() if value > highest - 1e-12))
    return found


def at(history, step):
    """Return the counts that hold at a step."""
    counts = {}
    for pair, start, count in zip(history.pair, history.step, history.count, strict=True):
        if start <= step:
            counts[history.pairs[pair]] = int(count)
    return {pair: count for pair, count in counts.items() if count}


@given(words, st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), max_size=3, unique=True))
def test_counts_are_those_of_a_recount_at_every_step(text, merges):
    merges = [*merges, *[("ab", "c")] * (("a", "b") in merges)]
    history = pair_history(text, merges)
    assert history.total == recount(text, []).total()
    for step in range(len(merges) + 1):
        assert at(history, step) == dict(recount(text, merges[:step])), step


@settings(deadline=None, max_examples=40)
@given(words, words, st.floats(0.05, 0.95))
def test_the_true_shares_explain_every_merge(first, second, share):
    merges = trained([first, second], [share, 1 - share], 5)
    histories = [pair_history(text, merges) for text in (first, second)]
    lazy, whole = mixture_shares(histories, merges, 3, 1e-9), mixture_shares(histories, merges, None)
    assert lazy.slack == pytest.approx(0, abs=1e-8)
    assert whole.slack == pytest.approx(0, abs=1e-8)
    assert lazy.rows <= whole.rows
    assert lazy.missing == whole.missing == []
    assert lazy.pairs.sum() == pytest.approx(1)
    assert (lazy.pairs > -1e-12).all()


@settings(deadline=None, max_examples=40)
@given(words, words, st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=4))
def test_rows_as_needed_and_all_rows_cost_the_same(first, second, merges):
    histories = [pair_history(text, merges) for text in (first, second)]
    if not any(merge in history.pairs for merge in merges for history in histories):
        with pytest.raises(ValueError, match="none of the merges occurs"):
            mixture_shares(histories, merges)
        return
    whole = mixture_shares(histories, merges, None)
    assert mixture_shares(histories, merges, 2, 1e-9).slack == pytest.approx(whole.slack, abs=1e-7)


@settings(deadline=None, max_examples=20)
@given(words, words, st.integers(2, 50))
def test_the_size_and_the_order_of_the_categories_do_not_matter(first, second, factor):
    merges = trained([first, second], [0.6, 0.4], 4)
    larger = {word: factor * count for word, count in first.items()}
    slacks = [
        mixture_shares([pair_history(text, merges) for text in texts], merges, None).slack
        for texts in ((first, second), (larger, second), (second, first))
    ]
    assert slacks == pytest.approx([0, 0, 0], abs=1e-8)


A = {"low": 5, "lower": 3, "newest": 2}
B = {"wide": 4, "widest": 6, "slow": 1}
MERGES = [("l", "o"), ("lo", "w"), ("e", "s"), ("es", "t"), ("i", "d"), ("w", "id")]


def histories_of(merges):
    return [pair_history({tuple(word): count for word, count in text.items()}, merges) for text in (A, B)]


@pytest.mark.parametrize("rows", [None, 300, 2])
def test_a_mixture_that_explains_everything(rows):
    texts = [{tuple(word): count for word, count in text.items()} for text in (A, B)]
    assert trained(texts, [0.7, 0.3], 6) == MERGES
    found = mixture_shares(histories_of(MERGES), MERGES, rows)
    assert found.slack == 0
    assert 0.587156 - 1e-6 <= found.pairs[0] <= 0.703297 + 1e-6
    if rows is None:
        assert found.rows == 58


@pytest.mark.parametrize("rows", [None, 300, 2])
def test_a_merge_that_came_too_early_costs_its_slack(rows):
    merges = [MERGES[1], MERGES[0], *MERGES[2:]]
    found = mixture_shares(histories_of(merges), merges, rows)
    np.testing.assert_allclose(found.pairs, [4 / 9, 5 / 9], atol=1e-9)
    assert found.slack == pytest.approx(1 / 6)


def test_a_pair_that_no_category_has_is_told():
    merges = [("l", "o"), ("q", "u"), ("lo", "w")]
    assert mixture_shares(histories_of(merges), merges).missing == [1]


def test_bytes_weigh_the_pairs():
    np.testing.assert_allclose(byte_shares(np.array([0.5, 0.5]), [2, 6]), [0.25, 0.75])


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="no pairs"):
        pair_history({("a",): 3}, [])
    with pytest.raises(ValueError, match="at least one category"):
        mixture_shares([], [("a", "b")])
