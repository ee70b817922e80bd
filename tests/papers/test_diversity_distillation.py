"""Diversity distillation (Gandikota and Bau 2025, arXiv 2503.10637): its numbers and what it promises."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.methods.routes import OwnTimestep
from kdbench.metrics.densities import mean_pairwise_distance, vendi_score
from kdbench.models.exact_denoiser import ExactDenoiser, ExactDenoiserConfig
from kdbench.models.samplers import Segment, consistency, euler, sample, seeded
from kdbench.models.schedules import (
    geometric_grid,
    hand_over_step,
    scaled_linear_schedule,
    timesteps,
    to_vp,
)


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


def gaussian(mean, std):
    """The exact denoiser of elements ``N(mean, std^2)``."""
    return ExactDenoiser(ExactDenoiserConfig([mean], std))


ABAR = scaled_linear_schedule()
LCM_4 = timesteps(4, "lcm")
BASE, STUDENT = gaussian(0.3, 0.8), gaussian(0.1, 0.2)
START = g((1, 6), 1.1, 0.4)


# ---- where the base hands over ----


def test_oracle_timesteps():
    assert LCM_4 == [999, 759, 499, 259]
    assert timesteps(20, "leading", offset=1)[:5] == [951, 901, 851, 801, 751]
    assert timesteps(50, "leading", offset=1)[:2] == [981, 961]
    assert timesteps(20, "trailing")[:2] == [999, 949]
    assert timesteps(4, "trailing") == [999, 749, 499, 249]


@pytest.mark.parametrize(
    ("base", "student", "steps"),
    [
        (timesteps(20, "leading", offset=1), LCM_4, 4),
        (timesteps(50, "leading", offset=1), LCM_4, 11),
        (LCM_4, LCM_4, 1),
        (timesteps(20, "trailing"), timesteps(4, "trailing"), 5),
    ],
)
def test_oracle_steps_of_the_base(base, student, steps):
    assert hand_over_step(base, student) == steps


@given(st.integers(2, 50))
def test_with_the_same_timesteps_the_base_takes_as_many_as_it_replaces(count):
    times = timesteps(count, "trailing")
    assert [hand_over_step(times, times, own) for own in range(count)] == list(range(count))


# ---- the hybrid ----


def test_oracle_of_the_hybrid():
    route = OwnTimestep(20, 4, own=1, spacing="leading", guidance=1.0, sampler="euler", last="first")
    assert (route.student, route.steps) == ([751, 501, 251, 1], 9)
    denoisers = {"base": BASE, "student": STUDENT}
    segments = [Segment(denoisers[leg.network], leg.grid, leg.guidance) for leg in route.legs()]
    trace = []
    found = sample(segments, START, watch=trace.append, form=route.form)
    handed_over = to_vp(trace[9].x, trace[9].sigma)
    close(handed_over[0], [0.49864622, 1.0714768, 0.61742108, -0.36732536, -0.80662396, -0.22040579])
    close(found.samples[0], [0.14804527, 0.20977945, 0.16084568, 0.05471918, 0.0073758, 0.07055276])
    close(trace[0].denoised[0, :2], [0.32100239, 0.35624974])
    assert found.evaluations == [9, 3]


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)


GRID = [10.0, 1.2, 0.5, 0.2, 0.0]


def hybrid(own, sampler, base=BASE, student=STUDENT, seed=0, **settings):
    segments = [Segment(base, GRID[: own + 1], sampler=sampler), Segment(student, GRID[own:], sampler=sampler)]
    return sample(segments, START, noise=seeded(seed), **settings)


@pytest.mark.parametrize("form", ["ve", "vp"])
@pytest.mark.parametrize("sampler", [euler, consistency])
def test_without_a_step_of_the_base_it_is_the_student_alone(sampler, form):
    alone = sample([Segment(STUDENT, GRID, sampler=sampler)], START, noise=seeded(0), form=form)
    found = hybrid(0, sampler, form=form)
    assert torch.equal(found.samples, alone.samples)
    assert found.evaluations == [0, 4]


@pytest.mark.parametrize("sampler", [euler, consistency])
def test_without_a_step_of_the_student_it_is_the_base_alone(sampler):
    alone = sample([Segment(BASE, GRID, sampler=sampler)], START, noise=seeded(0))
    found = hybrid(4, sampler)
    assert torch.equal(found.samples, alone.samples)
    assert found.evaluations == [4, 0]


@given(st.integers(0, 4), st.integers(0, 100))
def test_a_student_that_is_the_base_changes_nothing_wherever_it_takes_over(own, seed):
    for sampler in (euler, consistency):
        alone = sample([Segment(BASE, GRID, sampler=sampler)], START, noise=seeded(seed))
        assert torch.equal(hybrid(own, sampler, student=BASE, seed=seed).samples, alone.samples)


def test_what_is_handed_over_is_the_noisy_latent_and_not_the_denoised_sample():
    trace = []
    hybrid(1, euler, watch=trace.append)
    assert trace[1].sigma == 1.2
    first = trace[0]
    torch.testing.assert_close(trace[1].x, first.denoised + 1.2 / 10 * (first.x - first.denoised))
    assert not torch.allclose(trace[1].x, trace[0].denoised)


@pytest.mark.parametrize("own", [1, 2, 3])
def test_what_the_base_hands_over_has_the_law_of_its_own_data_at_that_level(own):
    mean, std = 0.3, 0.8
    start = torch.randn(1, 4000, generator=torch.Generator().manual_seed(own), dtype=torch.float64)
    dense = geometric_grid(100, GRID[own], 200.0)[:-1]
    handed_over = sample([Segment(gaussian(mean, std), dense)], start).samples
    assert float(handed_over.std()) == pytest.approx(math.hypot(std, GRID[own]), rel=0.05)
    assert float(handed_over.mean()) == pytest.approx(mean, abs=0.05 * math.hypot(std, GRID[own]))


# ---- what the model thinks at each step ----


@given(st.floats(0.05, 20), st.floats(-1, 1), st.floats(0.1, 2))
def test_the_thought_of_gaussian_data(sigma, mean, std):
    """``x0_hat = m + a d^2 / (a^2 d^2 + s^2) (x_t - a m)`` in the VP form."""
    a = 1 / math.hypot(1, sigma)
    s = sigma * a
    expected = mean + a * std**2 / (a**2 * std**2 + s**2) * (a * START - a * mean)
    torch.testing.assert_close(gaussian(mean, std)(START, sigma).denoised, expected)


@pytest.mark.parametrize("sampler", [euler, consistency])
def test_the_last_thought_is_the_sample(sampler):
    trace = []
    found = hybrid(1, sampler, watch=trace.append)
    torch.testing.assert_close(trace[-1].denoised, found.samples)


# ---- diversity ----

FEATURES = g((5, 4), 0.37, 0.2) + 0.5


def test_oracle_of_diversity():
    assert float(mean_pairwise_distance(FEATURES)) == pytest.approx(1.0437005, abs=1e-7)
    assert float(vendi_score(FEATURES)) == pytest.approx(1.8930135, abs=1e-7)


@given(st.integers(2, 9))
def test_diversity_of_copies_and_of_orthogonal_features(count):
    copies, different = FEATURES[:1].repeat(count, 1), torch.eye(count, 9)
    assert float(mean_pairwise_distance(copies)) == pytest.approx(0, abs=1e-12)
    assert float(vendi_score(copies)) == pytest.approx(1, abs=1e-9)
    assert float(mean_pairwise_distance(different)) == pytest.approx(1)
    assert float(vendi_score(different)) == pytest.approx(count)
