"""Counter-based random numbers: noise that is a function of its name, not of the order in which it is drawn."""

import numpy as np
from scipy.special import ndtri

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, *counters: int | np.ndarray) -> np.ndarray:
    """Return uniform random numbers in the open interval (0, 1), a pure function of ``seed`` and ``counters``.

    ``state = mix(state + golden + counter)`` for each counter in turn, ``mix`` being the finaliser of splitmix64; the
    upper 52 bits ``k`` of the last state give ``(k + 1/2) / 2^52``. Counters are integers or integer arrays and
    broadcast against each other: the noise of (row, draw, position) is the same in every batch, process and machine.

    Args:
        seed: any integer (its lowest 64 bits count).
        counters: integers or integer arrays, e.g. rows ``[B, 1]``, draws ``[B, 1]``, positions ``[S]``.

    Returns:
        float64 array of the broadcast shape of ``counters``.

    Raises:
        TypeError: a counter is not of an integer type.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (splitmix64).
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        state = _mix(_unsigned(seed) + _GOLDEN)
        for counter in counters:
            state = _mix(state + _GOLDEN + _unsigned(counter))
    return np.asarray(((state >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def normal(seed: int, *counters: int | np.ndarray) -> np.ndarray:
    """Return standard normal random numbers, the quantiles at :func:`uniform` of the same arguments."""
    return ndtri(uniform(seed, *counters))


def below(limit: int | np.ndarray, seed: int, *counters: int | np.ndarray) -> np.ndarray:
    """Return random integers from 0 to ``limit - 1``, any alike: ``floor(limit u)`` with u of :func:`uniform`."""
    return (limit * uniform(seed, *counters)).astype(np.int64)


def _unsigned(integers: int | np.ndarray) -> np.ndarray:
    if isinstance(integers, int):
        return np.asarray(integers & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)
    integers = np.asarray(integers)
    if integers.dtype.kind not in "iu":
        raise TypeError(f"seeds and counters must be integers, not {integers.dtype}")
    return integers.astype(np.uint64)


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
