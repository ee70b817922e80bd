import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdbench.data.noise import below, normal, uniform

MASK = 2**64 - 1
integers = st.integers(min_value=-(2**63), max_value=2**63 - 1)


def splitmix64_finaliser(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def plain(seed: int, *counters: int) -> float:
    """The same numbers in Python's own integers."""
    state = splitmix64_finaliser((seed + 0x9E3779B97F4A7C15) & MASK)
    for counter in counters:
        state = splitmix64_finaliser((state + 0x9E3779B97F4A7C15 + counter) & MASK)
    return ((state >> 12) + 0.5) / 2**52


def test_first_number_is_splitmix64s_own():
    # The first output of splitmix64 with seed 0 is 0xE220A8397B1DCDAF in every published implementation.
    assert float(uniform(0)) == ((0xE220A8397B1DCDAF >> 12) + 0.5) / 2**52


@given(integers, st.lists(integers, max_size=4))
def test_equals_python_integers(seed, counters):
    assert float(uniform(seed, *counters)) == plain(seed, *counters)
    arrays = [np.array([counter], dtype=np.int64) for counter in counters]
    assert np.all(uniform(seed, *arrays) == plain(seed, *counters))


@given(integers, integers, integers)
def test_broadcasting_is_elementwise(seed, row, draw):
    rows, draws, positions = np.array([[row], [7]]), np.array([[draw], [0]]), np.arange(5)
    block = uniform(seed, rows, draws, positions)
    assert block.shape == (2, 5) and block.dtype == np.float64
    assert all(block[0, j] == plain(seed, row, draw, j) for j in range(5))


def test_stays_inside_the_open_interval():
    numbers = uniform(3, np.arange(10**6))
    assert numbers.min() > 0 and numbers.max() < 1
    assert (2**52 - 1 + 0.5) / 2**52 < 1  # the largest number that can come out


@pytest.mark.parametrize(
    "numbers",
    [
        uniform(0, np.arange(200_000)),  # consecutive counters
        uniform(0, np.arange(200_000) << 32),  # only upper bits change
        np.array([float(uniform(seed, 5)) for seed in range(20_000)]),  # consecutive seeds
        uniform(11, np.arange(500)[:, None], np.arange(400)).ravel(),
    ],
)
def test_is_uniform_and_uncorrelated(numbers):
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / np.sqrt(len(numbers))
    pairs, _, _ = np.histogram2d(numbers[:-1:2], numbers[1::2], bins=10)
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3


def test_names_of_different_length_and_order_differ():
    names = [(), (0,), (0, 0), (1, 2), (2, 1), (1, 2, 0), (0, 1, 2)]
    assert len({float(uniform(4, *name)) for name in names}) == len(names)


def test_rejects_fractions():
    with pytest.raises(TypeError, match="float64"):
        uniform(0, np.array([0.5]))


def test_normal_numbers_are_normal():
    drawn = normal(3, np.arange(200)[:, None], np.arange(100))
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    np.testing.assert_allclose(stats.norm.cdf(drawn[:3]), uniform(3, np.arange(3)[:, None], np.arange(100)), rtol=1e-12)


@given(st.integers(2, 12), integers)
def test_integers_below_a_limit_are_alike(limit, seed):
    drawn = below(limit, seed, np.arange(600))
    assert drawn.min() >= 0 and drawn.max() < limit
    assert stats.chisquare(np.bincount(drawn, minlength=limit)).pvalue > 1e-8
