"""Feature maps: oracles, loops, the networks that losses bring along, and what is not seen."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from kdbench.losses.feature_maps import (
    AttentionTransfer,
    MapHint,
    ReviewedLevels,
    attention_transfer,
    averaged,
    hierarchical_context,
    regressor,
)
from kdbench.losses.hints import mean_squared_error


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SMALL, LARGE = g((4, 3, 4, 4), 0.31, 0.2), g((4, 3, 8, 8), 0.31, 0.2)
TEACHER = g((4, 5, 4, 4), 0.23, 0.5)
seeds = st.integers(0, 10_000)


def test_oracles():
    assert float(attention_transfer(SMALL, TEACHER)) == pytest.approx(0.00346524877, abs=5e-12)
    assert float(attention_transfer(LARGE, TEACHER)) == pytest.approx(0.00105571491, abs=5e-12)
    wide = g((2, 3, 8, 8), 0.31, 0.2), g((2, 3, 8, 8), 0.23, 0.5)
    point = g((4, 6, 1, 1), 0.31, 0.2), g((4, 6, 1, 1), 0.23, 0.5)
    assert float(hierarchical_context(*wide)) == pytest.approx(0.612055150, abs=5e-10)
    assert float(hierarchical_context(*point)) == pytest.approx(0.373313096, abs=5e-10)
    assert float(mean_squared_error(*wide)) == pytest.approx(1.01774521, abs=5e-9)


# -- attention


@given(seeds, st.sampled_from([1, 2, 4]))
def test_attention_by_loops(seed, power):
    student, teacher = draw(seed, 2, 3, 2, 3).abs(), draw(seed + 1, 2, 4, 2, 3).abs()
    expected = 0.0
    for ours, theirs in zip(student.numpy(), teacher.numpy(), strict=True):
        maps = [np.mean(each**power, 0).ravel() for each in (ours, theirs)]
        ours, theirs = (each / np.linalg.norm(each) for each in maps)
        expected += np.mean((ours - theirs) ** 2) / 2
    assert float(attention_transfer(student, teacher, power)) == pytest.approx(expected)


@given(seeds, st.floats(0.1, 10.0))
def test_attention_does_not_see_scale_sign_or_order_of_channels(seed, scale):
    student, teacher = draw(seed, 3, 4, 4, 4), draw(seed + 1, 3, 6, 4, 4)
    value = attention_transfer(student, teacher)
    assert float(attention_transfer(teacher, teacher)) == 0
    assert float(value) > 1e-6
    for same in (scale * student, -student, student.flip(1)):
        torch.testing.assert_close(attention_transfer(same, teacher), value)


@given(seeds)
def test_the_larger_map_is_averaged_first_whichever_it_is(seed):
    small, large = draw(seed, 2, 3, 4, 4), draw(seed + 1, 2, 5, 8, 8)
    pooled = large.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    expected = attention_transfer(small, pooled)
    torch.testing.assert_close(attention_transfer(small, large), expected)
    torch.testing.assert_close(attention_transfer(large, small), expected)


def test_attention_is_summed_over_levels_and_one_map_is_a_level():
    loss = AttentionTransfer()
    both = loss([SMALL, LARGE], [TEACHER, TEACHER])
    torch.testing.assert_close(both, loss(SMALL, TEACHER) + loss(LARGE, TEACHER))
    with pytest.raises(ValueError, match="power is at least 1"):
        AttentionTransfer(0)


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.data())
def test_averages_are_those_of_adaptive_pooling(seed, height, width, data):
    size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    maps = draw(seed, 2, 3, height, width)
    torch.testing.assert_close(averaged(maps, size), adaptive_avg_pool2d(maps, size))


# -- levels


def test_the_weights_of_the_pools_halve_and_those_that_are_as_large_as_the_map_do_not_count():
    for size, pools in ((8, (4, 2, 1)), (4, (2, 1)), (2, (1,)), (1, ())):
        student, teacher = draw(size, 2, 3, size, size), draw(size + 1, 2, 3, size, size)
        expected, weights = (student - teacher).square().mean(), [1.0]
        for k, pool in enumerate(pools, 1):
            side = size // pool
            difference = (student - teacher).unflatten(2, (pool, side)).unflatten(4, (pool, side)).mean((3, 5))
            expected = expected + 2.0**-k * difference.square().mean()
            weights.append(2.0**-k)
        torch.testing.assert_close(hierarchical_context(student, teacher), expected / sum(weights))


LEVELS = [g((2, 4, 8, 8), 0.31, 0.2), g((2, 6, 4, 4), 0.29, 0.1), g((2, 10), 0.37, 0.3)]
THEIRS = [g((2, 5, 16, 16), 0.23, 0.5), g((2, 7, 4, 4), 0.21, 0.4), g((2, 9), 0.19, 0.6)]


def reviewed(width=512):
    torch.manual_seed(0)
    loss = ReviewedLevels(width)
    return loss, loss(LEVELS, THEIRS)


def test_a_review_goes_from_the_last_level_to_the_first():
    loss, value = reviewed()
    first, second, third = loss.fusions
    assert [each.attention is None for each in loss.fusions] == [False, False, True]
    x = third.inward(LEVELS[2][..., None, None])
    expected = hierarchical_context(third.outward(x), THEIRS[2])
    for fusion, ours, theirs in ((second, LEVELS[1], THEIRS[1]), (first, LEVELS[0], THEIRS[0])):
        y, x = interpolate(x, ours.shape[2:], mode="nearest"), fusion.inward(ours)
        z = torch.sigmoid(fusion.attention[0](torch.cat([x, y], 1)))
        x = interpolate(x * z[:, [0]] + y * z[:, [1]], theirs.shape[2:], mode="nearest")
        expected = expected + hierarchical_context(fusion.outward(x), theirs)
    torch.testing.assert_close(value, expected)


def test_the_width_between_levels_is_that_of_the_last_one_at_most_512():
    for width, expected in ((512, 10), (3, 3)):
        loss, _ = reviewed(width)
        assert {each.inward[0].out_channels for each in loss.fusions} == {expected}
        assert [each.inward[0].in_channels for each in loss.fusions] == [4, 6, 10]
        assert [each.outward[0].out_channels for each in loss.fusions] == [5, 7, 9]


def test_a_fusion_may_keep_the_level_as_it_is_or_take_the_deeper_one():
    loss, _ = reviewed()
    fusion, level, deeper = loss.fusions[1], LEVELS[1], draw(1, 2, 10, 2, 2)
    for kept in (True, False):
        with torch.no_grad():
            fusion.attention[0].weight.zero_()
            fusion.attention[0].bias.copy_(torch.tensor([1e4, -1e4] if kept else [-1e4, 1e4]))
        _, passed = fusion(level, deeper, (4, 4))
        torch.testing.assert_close(passed, fusion.inward(level) if kept else interpolate(deeper, (4, 4)))


# -- hints


@pytest.mark.parametrize(
    ("ours", "theirs", "kind", "kernel"),
    [
        ((4, 4), (4, 4), nn.Conv2d, (1, 1)),
        ((8, 8), (4, 4), nn.Conv2d, (3, 3)),
        ((4, 4), (8, 8), nn.ConvTranspose2d, (4, 4)),
        ((5, 7), (4, 4), nn.Conv2d, (2, 4)),
        ((1, 1), (1, 1), nn.Conv2d, (1, 1)),
    ],
)
def test_a_regressor_brings_each_size_to_the_teachers(ours, theirs, kind, kernel):
    student, teacher = torch.zeros(2, 3, *ours), torch.zeros(2, 5, *theirs)
    network = regressor(student, teacher)
    assert isinstance(network[0], kind)
    assert network[0].kernel_size == kernel
    assert [type(each) for each in network[1:]] == [nn.BatchNorm2d, nn.ReLU]
    assert network(student).shape == teacher.shape


def test_a_map_that_is_smaller_and_not_half_as_large_has_no_regressor():
    with pytest.raises(ValueError, match=r"no regressor brings a map of \(3, 3\) to one of \(4, 4\)"):
        MapHint()(SMALL[..., :3, :3], TEACHER)


def test_a_hint_is_the_squared_error_of_what_its_regressor_makes():
    loss = MapHint()
    value = loss(LARGE, TEACHER)
    torch.testing.assert_close(value, (loss.regressors[0](LARGE) - TEACHER).square().mean())
    several = MapHint()
    total = several([SMALL, LARGE], [TEACHER, TEACHER])
    parts = [
        (each(ours) - TEACHER).square().mean() for each, ours in zip(several.regressors, (SMALL, LARGE), strict=True)
    ]
    torch.testing.assert_close(total, sum(parts))


# -- what the losses with networks have in common


MAKERS = [
    (MapHint, lambda: ([SMALL], [TEACHER])),
    (ReviewedLevels, lambda: (LEVELS, THEIRS)),
]


@pytest.mark.parametrize(("make", "values"), MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_networks_are_made_at_the_first_call_and_learn(make, values, dtype):
    loss = make()
    assert list(loss.parameters()) == []
    ours, theirs = ([each.to(dtype) for each in side] for side in values())
    first = loss(ours, theirs)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert first.dtype == wide
    assert {each.dtype for each in loss.parameters()} == {wide}
    names = list(dict(loss.named_parameters()))
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.05)
    for _ in range(20):
        value = loss(ours, theirs)
        optimizer.zero_grad()
        value.backward()
        assert all(each.grad is not None for each in loss.parameters())
        optimizer.step()
    assert list(dict(loss.named_parameters())) == names
    assert float(value.detach()) < float(first.detach())


@pytest.mark.parametrize(("make", "values"), MAKERS)
def test_copies_and_states_keep_the_networks(make, values):
    loss = make()
    expected = loss(*values())
    torch.testing.assert_close(copy.deepcopy(loss)(*values()), expected)
    other = make()
    other(*values())
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(*values()), expected)


@pytest.mark.parametrize(
    "loss", [AttentionTransfer(), MapHint(), ReviewedLevels()], ids=lambda each: type(each).__name__
)
def test_the_teacher_gets_no_gradient_and_levels_are_matched_one_by_one(loss):
    ours, theirs = ([each.clone().requires_grad_() for each in side] for side in (LEVELS[1:2], THEIRS[1:2]))
    loss(ours, theirs).backward()
    assert theirs[0].grad is None
    assert ours[0].grad.abs().sum() > 0
    for student, teacher in ((ours, []), ([], []), (ours, theirs * 2)):
        with pytest.raises(ValueError, match="levels are matched one by one"):
            loss(student, teacher)
    with pytest.raises(ValueError, match="of the same images"):
        loss(ours, [theirs[0][:1]])
