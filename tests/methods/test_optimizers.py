"""Learning-rate schedules, and steps in one kernel."""

import pytest
import torch

from kdbench.methods.optimizers import StepDecay, fused, parameter_groups


def test_a_step_decay_is_torchs_of_many_steps():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.05)
    expected = torch.optim.lr_scheduler.MultiStepLR(optimizer, [150, 180, 210], 0.1)
    factor = StepDecay([0.625, 0.75, 0.875]).factor(240)
    for step in range(240):
        assert 0.05 * factor(step) == pytest.approx(expected.get_last_lr()[0])
        optimizer.step()
        expected.step()


@pytest.mark.parametrize("settings", [{"at": []}, {"at": [0.0]}, {"at": [0.5, 1.0]}, {"at": [0.7, 0.6]}])
def test_points_outside_the_fit_or_in_another_order(settings):
    with pytest.raises(ValueError, match="rising shares"):
        StepDecay(**settings)
    with pytest.raises(ValueError, match="factor must be above 0"):
        StepDecay([0.5], factor=0.0)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_one_kernel_takes_the_same_steps(kind):
    ends = []
    for way in (lambda optimizer: optimizer, fused):
        module = network()
        optimizer = way(kind(parameter_groups(module, 0.01), lr=0.05))
        for step in range(20):
            optimizer.zero_grad()
            module(torch.sin(torch.arange(20.0) + step).view(4, 5)).square().sum().backward()
            optimizer.step()
        ends.append(torch.cat([weight.flatten() for weight in module.parameters()]))
        kernels = [group["fused"] for group in optimizer.param_groups]
    assert kernels == [True, True]
    assert torch.allclose(*ends, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(ends[0], torch.cat([weight.flatten() for weight in network().parameters()]), rtol=0.1)


@pytest.mark.parametrize("asked", [{"foreach": True}, {"foreach": False}, {"fused": False}, {"differentiable": True}])
def test_what_is_asked_for_stays(asked):
    optimizer = fused(torch.optim.AdamW(network().parameters(), **asked))
    assert not optimizer.param_groups[0]["fused"]


def test_an_optimiser_without_such_a_kernel_stays():
    before = torch.optim.RMSprop(network().parameters())
    assert "fused" not in fused(before).param_groups[0]
