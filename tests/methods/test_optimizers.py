"""Learning-rate schedules."""

import pytest
import torch

from kdbench.methods.optimizers import StepDecay


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
