"""DisBack (arXiv 2408.15991) and the score distillation that it builds on: their numbers, through the method."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.methods.noise_levels import KarrasLevels
from kdbench.methods.score_distillation import ScoreDistillation, target_place
from kdbench.models.denoiser import beside
from kdbench.models.exact_denoiser import ExactDenoiser, ExactDenoiserConfig
from kdbench.models.origins import FromConfig

COUNT = 18
"""Elements of the two examples."""


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


X, NOISE = g((2, 1, 3, 3), 0.37, 0, 0.8), g((2, 1, 3, 3), 0.53, 1, 1.2)


def gaussian(mean, std, sigma_data=0.5):
    return ExactDenoiser(ExactDenoiserConfig(means=[mean], stds=std, sigma_data=sigma_data))


def method(scaling, real=(0.2, 0.5), fake=(-0.3, 0.7)):
    """Return score distillation between the exact denoisers of two Gaussians."""
    origin = FromConfig("ExactDenoiser", {})
    found = ScoreDistillation(origin, origin, sigmas=[1.0], scaling=scaling)
    found._frozen["teacher"], found.fake = gaussian(*real), gaussian(*fake)
    return found


def losses(module, sigma, x=X):
    """Return the generator's loss, its gradient on x and the loss of the fake score, for samples x noised to sigma."""
    made = x.clone().requires_grad_()
    noised = (x + beside(sigma, x) * NOISE).requires_grad_()
    loss = module.generator_loss(made, noised, sigma, None)
    loss.backward()
    assert noised.grad is None, "no derivative of a denoiser enters"
    return float(loss.detach()), made.grad, float(module.fake_loss(x, noised.detach(), sigma, None))


def test_the_oracles_of_the_dmd_form():
    sigma = KarrasLevels().table[[300, 700]].double()
    assert sigma.tolist() == pytest.approx([0.31943433, 12.443542], rel=1e-6)
    value, gradient, fake = losses(method("dmd"), sigma)
    assert value == pytest.approx(0.15173392, abs=1e-7)
    assert fake == pytest.approx(0.83462468, abs=1e-6)
    assert float(gradient.norm()) == pytest.approx(0.12984346, abs=1e-7)
    first = gradient.flatten()[:3]
    assert first.tolist() == pytest.approx([-0.017397797, -0.0074368776, -0.0015841716], abs=1e-8)
    assert (first * COUNT).tolist() == pytest.approx([-0.31316035, -0.13386380, -0.028515090], abs=1e-7)


def test_the_oracles_of_the_diff_instruct_form():
    sigma = (-1.2 + 1.2 * g((2,), 1.3, 0)).exp()
    assert sigma.tolist() == pytest.approx([0.30119421, 0.9572122], abs=1e-8)
    value, gradient, fake = losses(method("diff_instruct"), sigma)
    assert value == pytest.approx(0.67102733, abs=1e-7)
    assert gradient.flatten()[:3].tolist() == pytest.approx([-0.033324776, -0.014272221, -0.0028257377], abs=1e-8)
    assert fake == pytest.approx(9.9909382, abs=1e-6)


def test_the_gradient_is_the_difference_of_the_denoised_samples_over_the_batch():
    module, sigma = method("diff_instruct"), torch.tensor([0.4, 2.0]).double()
    noised = X + beside(sigma, X) * NOISE
    expected = (module.fake(noised, sigma).denoised - module.network("teacher")(noised, sigma).denoised) / 2
    torch.testing.assert_close(losses(module, sigma)[1], expected)


@pytest.mark.parametrize("scaling", ["diff_instruct", "dmd"])
@given(st.floats(0.01, 50.0))
def test_a_fake_score_that_is_the_target_leads_nowhere(scaling, level):
    sigma = torch.full((2,), level, dtype=torch.float64)
    assert not losses(method(scaling, fake=(0.2, 0.5)), sigma)[1].any()


@given(st.floats(0.1, 10.0))
def test_the_gradient_of_dmd_has_no_scale(factor):
    """Everything in other units, x, noise and both Gaussians: the same gradient."""
    sigma = torch.tensor([0.4, 2.0]).double()
    one = losses(method("dmd"), sigma)[1]
    scaled = method("dmd", (0.2 * factor, 0.5 * factor), (-0.3 * factor, 0.7 * factor))
    torch.testing.assert_close(losses(scaled, sigma * factor, X * factor)[1], one)


def test_the_oracle_of_the_targets():
    updates = (0, 99, 100, 250, 399, 400, 10**6)
    assert [target_place(update, 5, 100) for update in updates] == [1, 1, 2, 3, 4, 5, 5]
    assert [target_place(update, 0, 100) for update in updates] == [0] * 7, "a path of one place is the teacher itself"


@given(st.integers(1, 20), st.integers(1, 500))
def test_targets_come_one_after_another_and_end_at_the_teacher(last, interval):
    places = [target_place(update, last, interval) for update in range(0, interval * (last + 1), interval)]
    assert places == [*range(1, last + 1), last]
