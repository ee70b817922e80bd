"""Noise levels against diffusers' schedulers and their own definitions."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.models.schedules import (
    SCHEDULES,
    alpha_of,
    cosine_schedule,
    geometric_grid,
    hand_over_step,
    karras_grid,
    sigma_of,
    timestep_grid,
    timesteps,
    to_ve,
    to_vp,
)

DIFFUSERS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
STABLE_DIFFUSION = DIFFUSERS["scaled_linear"] | {"steps_offset": 1}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_diffusers(name):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(**DIFFUSERS[name]).alphas_cumprod
    torch.testing.assert_close(SCHEDULES[name]().float(), theirs, rtol=1e-4, atol=1e-6)


def test_the_cosine_schedule_follows_its_curve_until_its_betas_are_cut():
    abar = cosine_schedule()
    signal = [math.cos((step / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(1001)]
    assert abar[:999].tolist() == pytest.approx([value / signal[0] for value in signal[1:1000]], rel=1e-9)
    assert abar[999] / abar[998] == pytest.approx(0.001)


@given(st.floats(1e-3, 1e3))
def test_the_two_forms_are_one_process(sigma):
    level = torch.tensor(sigma, dtype=torch.float64)
    alpha = alpha_of(level)
    assert sigma_of(alpha.square()) == pytest.approx(sigma, rel=1e-6)
    assert alpha.square() + (alpha * level).square() == pytest.approx(1.0)
    x = torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(to_vp(x, sigma), alpha * x)
    torch.testing.assert_close(to_ve(to_vp(x, sigma), sigma), x)


@given(st.integers(2, 40), st.floats(1e-3, 0.5), st.floats(1.0, 100.0), st.floats(1.0, 9.0))
def test_grids_descend_between_their_ends_in_even_steps(levels, smallest, largest, rho):
    grids = {
        "karras": karras_grid(levels, smallest, largest, rho),
        "geometric": geometric_grid(levels, smallest, largest),
    }
    for grid in grids.values():
        assert len(grid) == levels + 1 and grid[-1] == 0
        assert grid[0] == pytest.approx(largest) and grid[-2] == pytest.approx(smallest)
        assert all(after < before for before, after in pairwise(grid.tolist()))
    roots, logs = grids["karras"][:-1] ** (1 / rho), grids["geometric"][:-1].log()
    for even in (roots, logs):
        np.testing.assert_allclose(even.diff(), (even[-1] - even[0]) / (levels - 1), rtol=1e-6)


def test_a_grid_of_one_level_has_the_largest():
    assert karras_grid(1, 0.1, 5.0).tolist() == pytest.approx([5.0, 0.0])
    for wrong in ((0, 0.1, 1.0), (4, 0.0, 1.0), (4, 2.0, 1.0)):
        for grid in (karras_grid, geometric_grid):
            with pytest.raises(ValueError, match="a grid has 1 level or more"):
                grid(*wrong)


@pytest.mark.parametrize("count", [1, 2, 4, 7, 20, 50])
def test_timesteps_are_those_of_diffusers(count):
    diffusers = pytest.importorskip("diffusers")
    schedulers = {
        ("leading", 1): diffusers.DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing="leading"),
        ("leading", 0): diffusers.DDIMScheduler(**DIFFUSERS["linear"], timestep_spacing="leading"),
        ("trailing", 0): diffusers.EulerDiscreteScheduler(**DIFFUSERS["scaled_linear"], timestep_spacing="trailing"),
        ("lcm", 0): diffusers.LCMScheduler(**STABLE_DIFFUSION),
    }
    for (spacing, offset), scheduler in schedulers.items():
        scheduler.set_timesteps(count)
        assert timesteps(count, spacing, offset=offset) == [int(step) for step in scheduler.timesteps]


@given(st.integers(1, 1000), st.sampled_from(["leading", "trailing", "lcm"]))
def test_timesteps_descend_in_the_schedule(count, spacing):
    count = min(count, 50) if spacing == "lcm" else count
    steps = timesteps(count, spacing)
    assert len(steps) == count and steps[-1] >= 0 and steps[0] <= 999
    assert all(after < before for before, after in pairwise(steps))
    assert spacing == "leading" or steps[0] == 999


def test_the_grid_of_timesteps_ends_where_it_is_told():
    abar, times = SCHEDULES["linear"](), timesteps(5, "leading")
    grid = timestep_grid(abar, times)
    assert grid.tolist() == [*sigma_of(abar[times]).tolist(), 0.0]
    last = float(sigma_of(abar[0]))
    assert timestep_grid(abar, times, last)[-1] == last


@given(st.integers(1, 60), st.integers(2, 8), st.data())
def test_the_hand_over_is_at_the_nearest_timestep(first, second, data):
    base, student = timesteps(first, "leading", offset=1), timesteps(second, "trailing")
    own = data.draw(st.integers(1, second - 1))
    step = hand_over_step(base, student, own)
    distances = [abs(each - student[own]) for each in base]
    assert distances[step] == min(distances) and min(distances) not in distances[:step]
    assert hand_over_step(base, student, 0) == 0


def test_no_such_timesteps():
    with pytest.raises(ValueError, match="has 1 to 50 of them, not 51"):
        timesteps(51, "lcm")
    with pytest.raises(ValueError, match="has 1 to 1000 of them, not 0"):
        timesteps(0, "trailing")
    with pytest.raises(ValueError, match="leading or trailing or lcm, not 'linspace'"):
        timesteps(5, "linspace")
