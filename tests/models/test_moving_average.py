import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdbench.models.moving_average import MovingAverage


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def moved(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
        network[1].running_mean.add_(1.0)


def weights(module):
    return torch.cat([each.flatten() for each in module.parameters()])


@given(st.floats(0.0, 1.0), st.booleans(), st.integers(1, 6))
def test_it_is_the_sum_of_its_definition(decay, warm_up, updates):
    followed = network()
    average = MovingAverage(followed, decay, warm_up)
    expected = weights(followed).clone()
    for k in range(updates):
        moved(followed)
        average.update(followed)
        kept = min(decay, (1 + k) / (10 + k)) if warm_up else decay
        expected = kept * expected + (1 - kept) * weights(followed)
    torch.testing.assert_close(weights(average.network), expected)
    assert torch.equal(average.network[1].running_mean, followed[1].running_mean), "buffers are copied"
    assert int(average.updates) == updates


def test_a_decay_of_0_copies_and_one_of_its_own_counts():
    followed = network()
    average = MovingAverage(followed, 0.99)
    moved(followed)
    average.update(followed, decay=0.0)
    assert torch.equal(weights(average.network), weights(followed))
    moved(followed)
    before = weights(average.network).clone()
    average.update(followed, decay=0.75)
    torch.testing.assert_close(weights(average.network), 0.75 * before + 0.25 * weights(followed))


def test_it_is_a_frozen_copy_in_eval_mode():
    followed = network().train()
    average = MovingAverage(followed).train()
    assert not any(module.training for module in average.modules())
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert followed.training and all(parameter.requires_grad for parameter in followed.parameters())
    before = weights(average.network).clone()
    moved(followed)
    assert torch.equal(weights(average.network), before)


def test_it_resumes_exactly():
    followed = network()
    unbroken, broken = (MovingAverage(followed, 0.999, warm_up=True) for _ in range(2))
    for step in range(6):
        moved(followed)
        if step == 3:
            state = copy.deepcopy(broken.state_dict())
            broken = MovingAverage(network(1), 0.999, warm_up=True)
            broken.load_state_dict(state)
        for average in (unbroken, broken):
            average.update(followed)
    assert torch.equal(weights(unbroken.network), weights(broken.network))


def test_it_is_the_average_of_diffusers():
    """Which takes k from 1: its first update copies, as one of ours with the decay 0 does."""
    training_utils = pytest.importorskip("diffusers.training_utils")
    followed = network()
    average = MovingAverage(followed, 0.3, warm_up=True)
    theirs = training_utils.EMAModel(followed.parameters(), decay=0.3, use_ema_warmup=False)
    for step in range(5):
        moved(followed)
        average.update(followed, decay=0.0 if step == 0 else None)
        theirs.step(followed.parameters())
    theirs.copy_to(followed.parameters())
    torch.testing.assert_close(weights(average.network), weights(followed))


def test_no_such_decay():
    with pytest.raises(ValueError, match=r"lies in \[0, 1\], got 1.5"):
        MovingAverage(network(), 1.5)
