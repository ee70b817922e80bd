"""The error of layers: relative to each layer's own size, over all batches together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.metrics.layer_error import LayerError


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_it_is_the_mean_over_layers_of_noise_over_signal_whatever_the_batches(seed, batches):
    generator = torch.Generator().manual_seed(seed)
    original = [10.0**place * torch.randn(8, 3, generator=generator, dtype=torch.float64) for place in range(2)]
    changed = [values + torch.randn(8, 3, generator=generator, dtype=torch.float64) for values in original]
    metric = LayerError(2)
    for rows in torch.arange(8).chunk(batches):
        metric.update([values[rows] for values in changed], [values[rows] for values in original])
    expected = sum(float((a - b).square().sum() / b.square().sum()) for a, b in zip(changed, original, strict=True)) / 2
    assert float(metric.compute()) == pytest.approx(expected)


def test_nothing_changed_and_nothing_left():
    values = [torch.randn(4, 2), torch.randn(4, 5)]
    same, gone = LayerError(2), LayerError(2)
    same.update(values, values)
    gone.update([torch.zeros_like(each) for each in values], values)
    assert (float(same.compute()), float(gone.compute())) == (0.0, 1.0)
