"""Dealing rows to ranks, and groups of like length. The paper's own numbers are in tests/papers."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.data.balance import LengthGroup, deal, imbalance, imbalance_bound, length_groups, work

ORDERS = ["snake", "dealt", "greedy"]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("dealt", [[0, 3, 6], [1, 4, 7], [2, 5, 8]]),
        ("snake", [[0, 5, 6], [1, 4, 7], [2, 3, 8]]),
        ("greedy", [[0, 5, 8], [1, 4, 7], [2, 3, 6]]),
    ],
)
def test_orders(order, expected):
    assert deal([90, 80, 70, 30, 25, 24, 20, 3, 1], 3, order).tolist() == expected


@pytest.mark.parametrize("order", ORDERS)
def test_one_rank_takes_all_longest_first_and_rows_of_one_length_in_order(order):
    assert deal([3, 9, 3, 7, 9], 1, order).tolist() == [[1, 4, 3, 0, 2]]
    assert deal(np.array([3, 200, 3], dtype=np.uint8), 1, order).tolist() == [[1, 0, 2]]  # no negative bytes
    assert deal([], 3, order).shape == (3, 0)


def test_greedy_goes_by_the_cost():
    lengths = [10, 6, 6, 4, 3, 1]  # after 10 | 6, 6 rank 0 has less to read, but more to compare
    assert deal(lengths, 2, "greedy").tolist() == [[0, 3, 5], [1, 2, 4]]
    assert deal(lengths, 2, "greedy", (0.0, 1.0)).tolist() == [[0, 4, 5], [1, 2, 3]]
    assert work(lengths, (2.0, 0.5)).tolist() == [70, 30, 30, 16, 10.5, 2.5]


def test_imbalance_of_known_totals():
    lengths, dealing = [4, 2, 1, 1], np.array([[0, 1], [2, 3]])
    assert imbalance(lengths, dealing) == 6 / 4
    assert imbalance(lengths, dealing, (0.0, 1.0)) == 20 / 11
    assert imbalance_bound(lengths, 2) == 1 + (4 - 1) / 4
    assert imbalance_bound(lengths, 2, (0.0, 1.0)) == 1 + (16 - 1) / 11
    assert imbalance_bound([5, 5, 5], 3) == imbalance([5, 5, 5], deal([5, 5, 5], 3)) == 1


@given(st.lists(st.integers(1, 512), min_size=1, max_size=30))
def test_groups_are_runs_of_one_rounded_length(lengths):
    groups = length_groups(lengths)
    sequence = token = 0
    for group in groups:
        assert (group.first_sequence, group.first_token) == (sequence, token)
        mine = lengths[sequence : sequence + group.sequences]
        assert sum(mine) == group.tokens
        assert {-(-length // 128) * 128 for length in mine} == {group.padded_length}
        sequence, token = sequence + group.sequences, token + group.tokens
    assert (sequence, token) == (len(lengths), sum(lengths))
    assert all(one.padded_length != other.padded_length for one, other in pairwise(groups))


def test_groups_of_other_sizes():
    assert length_groups([5, 8, 9, 2], sizes=(8, 16)) == [
        LengthGroup(0, 0, 2, 13, 8),
        LengthGroup(2, 13, 1, 9, 16),
        LengthGroup(3, 22, 1, 2, 8),
    ]
    assert length_groups([]) == []


def test_what_cannot_be_dealt_or_grouped_is_refused():
    with pytest.raises(ValueError, match="7 rows cannot be dealt equally to 2 ranks"):
        deal(range(7), 2)
    with pytest.raises(ValueError, match="order is 'snake', 'dealt', 'greedy', got 'zigzag'"):
        deal(range(6), 2, "zigzag")
    with pytest.raises(ValueError, match="neither negative"):
        deal(range(6), 2, "greedy", cost=(1.0, -0.1))
    with pytest.raises(ValueError, match="513 tokens is longer than the largest size, 512"):
        length_groups([12, 513])
