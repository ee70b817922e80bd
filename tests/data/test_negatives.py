import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdbench.data.negatives import Negatives
from kdbench.errors import UserError

labelled = st.lists(st.integers(0, 3) | st.just(-100), min_size=8, max_size=30).filter(
    lambda labels: max(labels.count(each) for each in range(4)) <= len(labels) - 3
)


@given(labelled, st.integers(0, 5), st.integers(0, 3))
def test_negatives_are_different_rows_of_other_classes(labels, seed, draw):
    rows = list(range(len(labels)))
    found = Negatives(labels, 3)(seed, rows, [draw] * len(rows))
    for row, negatives in zip(rows, found.tolist(), strict=True):
        assert len(set(negatives)) == 3 and row not in negatives
        assert labels[row] == -100 or all(labels[each] != labels[row] for each in negatives)
    again = Negatives(labels, 3)(seed, rows[2:5], [draw] * 3)
    assert again.tolist() == found[2:5].tolist(), "whatever the batch"


def test_every_row_of_another_class_is_alike():
    labels, times = [0, 0, 0, 1, 1, 2, -100], 3000
    draw = Negatives(labels, 2)
    for row, others in ((1, [3, 4, 5, 6]), (4, [0, 1, 2, 5, 6]), (6, [0, 1, 2, 3, 4, 5])):
        found = draw(0, [row] * times, np.arange(times)).numpy()
        counts = np.bincount(found.ravel(), minlength=7)
        assert set(np.flatnonzero(counts)) == set(others)
        assert stats.chisquare(counts[others]).pvalue > 1e-3


def test_too_many_are_refused():
    Negatives([0, 0, 0, 1, 1], 2)
    with pytest.raises(UserError, match=r"asks for 3 rows of other classes, and one class has 2 of them"):
        Negatives([0, 0, 0, 1, 1], 3)
