"""Quantisers, shifts and scales: to the digit, and what they obey."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.compression.migration import channel_scale, channel_shift, search_threshold, smoothing_scale
from kdbench.compression.quantisers import Grid, Quantiser
from kdbench.errors import UserError


def wave(shape, w, p, amplitude=1.0, offset=0.0):
    count = torch.arange(math.prod(shape), dtype=torch.float64)
    return (amplitude * torch.sin(w * count + p) + offset).reshape(shape).float()


def activations(hot):
    x = wave((2, 6, 8), 0.37, 0.2)
    for channel, (gain, offset) in hot.items():
        x[..., channel] = x[..., channel] * gain + offset
    return x.flatten(0, 1)


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=0, atol=1e-6)


X, W = activations({2: (10, 30), 5: (4, -12)}), wave((12, 8), 0.53, 0.4, 0.5)
SIX, SIX_CHANNELS = Quantiser(6, symmetric=False), Quantiser(6, symmetric=False, part="channel")


def test_the_search_of_a_threshold():
    z = channel_shift(X)
    close(z[[2, 5]], [30.515015, -12.009147])
    found = search_threshold(X - z, W, SIX, SIX_CHANNELS)
    assert found.value == pytest.approx(3.086951, abs=1e-6)
    close(found.scale, [1, 1, 2.655171, 1, 1, 1.290029, 1, 1])
    assert found.loss == pytest.approx(0.0158053, abs=1e-7)
    plain = SIX(X - z) @ SIX_CHANNELS(W).T - (X - z) @ W.T
    assert float(plain.square().sum(-1).mean()) == pytest.approx(0.0715094, abs=1e-7)


def test_the_quantisers():
    v = wave((9,), 0.8, 0.3, 2, 0.5)
    step, zero = Grid(8, symmetric=True).steps(v.min(), v.max())
    assert (float(step), float(zero)) == (pytest.approx(0.01883937, abs=1e-8), 0)
    close(Quantiser(8)(v)[[0, 3]], [1.0926834, 1.3564347])
    step, zero = Grid(6, symmetric=False).steps(v.min(), v.max())
    assert (float(step), float(zero)) == (pytest.approx(0.05943221, abs=1e-8), 23)
    expected = [1.0697799, 2.2584240, 2.3772886, 1.3669409, -0.1782966, -1.3075087, -1.3669409, -0.2377289, 1.3075087]
    close(SIX(v), expected)


seeds = st.integers(0, 10_000)
quantisers = st.builds(
    Quantiser, st.integers(3, 8), st.booleans(), st.sampled_from(["tensor", "channel", "token"])
) | st.builds(Quantiser, st.integers(3, 8), st.booleans(), st.just("group"), st.just(4))


def drawn(seed, rows=6, columns=8):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, columns, generator=generator, dtype=torch.float64) + 1


@given(seeds, quantisers)
def test_a_quantiser_changes_nothing_twice_and_keeps_zero(seed, quantiser):
    values = drawn(seed)
    values[0, 0] = 0
    once = quantiser(values)
    assert once[0, 0] == 0
    step, _ = quantiser.grid.steps(values.min(), values.max())
    assert ((once - values).abs() <= step + 1e-12).all()
    lowest, highest = values.min(), values.max()
    whole = quantiser.grid.rounded(values, lowest, highest)
    torch.testing.assert_close(quantiser.grid.rounded(whole, lowest, highest), whole)


@given(seeds)
def test_a_row_is_a_group_of_its_whole_length(seed):
    values = drawn(seed)
    torch.testing.assert_close(Quantiser(5, False, "group", 8)(values), Quantiser(5, False, "channel")(values))


@given(seeds, seeds)
def test_a_shift_makes_channels_symmetric_and_follows_a_shift(seed, other):
    values, moved = drawn(seed), drawn(other)[0]
    z = channel_shift(values)
    shifted = values - z
    torch.testing.assert_close(shifted.amax(0), -shifted.amin(0))
    torch.testing.assert_close(channel_shift(values + moved), z + moved)


@given(seeds, st.floats(0.2, 5.0))
def test_a_scale_bounds_every_channel_and_only_those_above(seed, threshold):
    values = drawn(seed)
    scale = channel_scale(values, threshold)
    assert (scale >= 1).all()
    assert ((values / scale).abs() <= threshold * (1 + 1e-12)).all()
    assert (scale[values.abs().amax(0) <= threshold] == 1).all()
    assert (channel_scale(values, float(values.abs().max())) == 1).all()


@given(seeds)
def test_the_chosen_threshold_loses_least_of_the_grid(seed):
    values, weight = drawn(seed), drawn(seed + 1, 5)
    found = search_threshold(values, weight, SIX, SIX_CHANNELS)
    highest = float(values.abs().max())
    for share in (0.0, 0.31, 0.5, 1.0):
        place = highest + round(share * 100) * (1.0 - highest) / 100
        end = values.new_tensor(place)
        scale = channel_scale(values, place)
        lost = SIX.grid.rounded(values / scale, -end, end) @ SIX_CHANNELS(weight * scale).T - values @ weight.T
        assert found.loss <= float(lost.square().sum(-1).mean()) * (1 + 1e-9)


@given(seeds)
def test_shift_and_scale_are_undone_by_the_weights(seed):
    values, weight, bias = drawn(seed), drawn(seed + 1, 5), drawn(seed + 2)[0, :5]
    z, s = channel_shift(values), smoothing_scale(values, weight)
    moved = ((values - z) / s) @ (weight * s).T + bias + weight @ z
    torch.testing.assert_close(moved, values @ weight.T + bias)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="2 to 16 bits, not 1"):
        Quantiser(1)
    with pytest.raises(UserError, match=r"no part 'chanel'.* Did you mean 'channel'"):
        Quantiser(part="chanel")
    with pytest.raises(UserError, match="of groups has a size"):
        Quantiser(part="group")
    with pytest.raises(ValueError, match="groups of 5"):
        Quantiser(part="group", size=5)(torch.zeros(2, 8))
