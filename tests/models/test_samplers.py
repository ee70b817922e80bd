"""Samplers against diffusers' schedulers, closed forms of Gaussian data, and one another."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdbench.models.denoiser import DenoiserOutput, Guided
from kdbench.models.exact_denoiser import ExactDenoiser, ExactDenoiserConfig
from kdbench.models.samplers import (
    SAMPLERS,
    Segment,
    ancestral,
    consistency,
    ddim,
    dpm_solver_2m,
    euler,
    euler_step,
    heun,
    heun_step,
    replayed,
    sample,
    seeded,
)
from kdbench.models.schedules import (
    SCHEDULES,
    alpha_of,
    geometric_grid,
    karras_grid,
    sigma_of,
    timestep_grid,
    timesteps,
    to_vp,
)

MEAN, DEVIATION = 0.3, 0.8
seeds = st.integers(0, 10_000)


def gaussian(mean=MEAN, deviation=DEVIATION):
    return ExactDenoiser(ExactDenoiserConfig([mean], deviation))


def mixture():
    return ExactDenoiser(ExactDenoiserConfig([-1.0, 0.5, 1.5], 0.2, [0.5, 0.3, 0.2]))


def classes():
    return ExactDenoiser(ExactDenoiserConfig([[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.5], classes=2))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def carried(x, sigma, after, mean=MEAN, deviation=DEVIATION):
    """Where the exact flow of Gaussian data takes x."""
    return mean + (x - mean) * math.sqrt((deviation**2 + after**2) / (deviation**2 + sigma**2))


# ---- closed forms ----


def error(sampler, steps, last=0.05):
    """Of a sampler on Gaussian data, whose flow is known, from the level 8 to 0.05."""
    grid, x = geometric_grid(steps + 1, last, 8.0)[:-1], 8 * normal(50)
    return float((sampler(Guided(gaussian()), x, grid) - carried(x, 8.0, last)).abs().mean())


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (ddim, 1), (heun, 2), (dpm_solver_2m, 2)])
def test_the_error_falls_with_the_order(sampler, order):
    errors = [error(sampler, steps) for steps in (64, 128, 256)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.15)
    assert errors[-1] < (0.02 if order == 1 else 5e-4)


@given(st.integers(1, 12), st.floats(0.0, 1.0), st.floats(-2.0, 2.0), st.floats(0.2, 2.0))
def test_what_noise_does_to_gaussian_data(steps, eta, mean, deviation):
    """Every step is linear in x and in the noise, so mean and variance of the samples follow in closed form."""
    grid = karras_grid(steps, 0.05, 8.0)
    x, noises = 8 * normal(2000), [normal(2000, seed=1 + step) for step in range(steps)]
    for name in ("ddim", "consistency"):
        sampler = partial(ddim, eta=eta) if name == "ddim" else consistency
        found = sampler(Guided(gaussian(mean, deviation)), x, grid, noise=replayed(noises))
        expected, left = x, iter(noises)
        for sigma, after in pairwise(grid.tolist()):
            kept = deviation**2 / (deviation**2 + sigma**2)
            denoised = kept * expected + (1 - kept) * mean
            fresh = after if name == "consistency" else eta * after * math.sqrt(1 - after**2 / sigma**2)
            slope = math.sqrt(max(after**2 - fresh**2, 0)) / sigma
            expected = denoised + slope * (expected - denoised)
            if fresh:
                expected = expected + fresh * next(left)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_many_steps_give_the_distribution_of_the_data(eta):
    found = ddim(Guided(gaussian()), 80 * normal(20_000), geometric_grid(600, 0.01, 80.0), seeded(1), eta=eta)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.025)
    assert float(found.std()) == pytest.approx(DEVIATION, rel=0.015)


def test_multistep_consistency_sampling_keeps_a_true_flow():
    """With the exact flow to the smallest level, every step has samples of the data's own law, as sampling them once has."""
    smallest = 0.1

    def flow(x, sigma):
        return carried(x, sigma, smallest)

    found = consistency(flow, 20 * normal(20_000), [20.0, 3.0, 1.0, smallest], seeded(1), smallest=smallest)
    spread = math.sqrt(DEVIATION**2 + smallest**2)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.02) and float(found.std()) == pytest.approx(
        spread, rel=0.02
    )


@given(seeds, st.floats(0.5, 9.0), st.floats(0.05, 0.95))
def test_single_steps_take_levels_of_their_own(seed, sigma, share):
    x, denoise = normal(3, 4, seed=seed), Guided(mixture())
    levels = torch.tensor([sigma, 2 * sigma, 3 * sigma], dtype=torch.float64)
    together = heun_step(denoise, x, levels, share * levels)
    straight = euler_step(x, denoise(x, levels), levels, share * levels)
    for row, level in enumerate(levels.tolist()):
        one = x[row : row + 1]
        torch.testing.assert_close(together[row : row + 1], heun(denoise, one, [level, share * level]))
        torch.testing.assert_close(straight[row : row + 1], euler(denoise, one, [level, share * level]))


# ---- diffusers ----


def epsilon_of(denoiser, x_vp, abar):
    """The noise that an exact denoiser predicts in a VP latent."""
    alpha, sigma = math.sqrt(abar), math.sqrt(1 / abar - 1)
    return (x_vp - alpha * denoiser(x_vp / alpha, sigma).denoised) / math.sqrt(1 - abar)


def by_scheduler(scheduler, count, x, **options):
    """Run a scheduler of diffusers on the mixture's exact noise."""
    scheduler.set_timesteps(count)
    x = x * scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(5)
    for step in scheduler.timesteps:
        abar = float(scheduler.alphas_cumprod[int(step)])
        predicted = epsilon_of(mixture(), scheduler.scale_model_input(x, step), abar)
        x = scheduler.step(predicted, step, x, generator=generator, **options).prev_sample
    return x


LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


def references():
    diffusers = pytest.importorskip("diffusers")
    plain = LINEAR | {"clip_sample": False}
    late = plain | {"steps_offset": 1, "set_alpha_to_one": False}
    trailing = LINEAR | {"timestep_spacing": "trailing"}
    last = float(sigma_of(SCHEDULES["linear"]()[0]))
    return {
        "ddim": (diffusers.DDIMScheduler(**plain), {}, "leading", euler, 0.0),
        "ddim, first abar last": (diffusers.DDIMScheduler(**late), {}, "leading", euler, last),
        "ddim, eta": (diffusers.DDIMScheduler(**plain), {"eta": 0.7}, "leading", partial(ddim, eta=0.7), 0.0),
        "ddpm": (diffusers.DDPMScheduler(**plain), {}, "leading", ancestral, 0.0),
        "euler": (diffusers.EulerDiscreteScheduler(**trailing), {}, "trailing", euler, 0.0),
        "euler ancestral": (diffusers.EulerAncestralDiscreteScheduler(**trailing), {}, "trailing", ancestral, 0.0),
        "lcm": (diffusers.LCMScheduler(**plain), {}, "lcm", SAMPLERS["lcm"], 0.0),
    }


@pytest.mark.parametrize(
    "name", ["ddim", "ddim, first abar last", "ddim, eta", "ddpm", "euler", "euler ancestral", "lcm"]
)
@pytest.mark.parametrize("count", [1, 4, 10])
def test_samplers_are_those_of_diffusers(name, count):
    scheduler, options, spacing, sampler, last = references()[name]
    form = "ve" if name.startswith("euler") else "vp"
    start = normal(3, 2, seed=3)
    theirs = by_scheduler(scheduler, count, start, **options)
    grid = timestep_grid(SCHEDULES["linear"](), timesteps(count, spacing, offset=int(last > 0)), last)
    generator = torch.Generator().manual_seed(5)
    ours = sample([Segment(mixture(), grid, 1.0, sampler)], start, noise=seeded(generator), form=form)
    torch.testing.assert_close(ours.samples, theirs.double(), rtol=1e-4, atol=2e-4)
    assert ours.evaluations == [count]


def test_dpm_solver_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **LINEAR, timestep_spacing="trailing", final_sigmas_type="zero", lower_order_final=False, solver_type="midpoint"
    )
    start = normal(6, seed=3)
    theirs = by_scheduler(scheduler, 10, start)
    grid = timestep_grid(SCHEDULES["linear"](), [int(step) for step in scheduler.timesteps])
    ours = sample([Segment(mixture(), grid, sampler=dpm_solver_2m)], start, form="vp")
    torch.testing.assert_close(ours.samples, theirs.double(), rtol=1e-4, atol=2e-4)


# ---- forms and parameterisations ----


@given(seeds, st.integers(1, 12), st.sampled_from(list(SCHEDULES)))
def test_ddim_in_the_vp_form_is_eulers_method_in_the_ve_form(seed, count, schedule):
    abar, times = SCHEDULES[schedule](), timesteps(count, "leading", offset=1)
    x = start = normal(5, seed=seed)
    for step, after in zip(times, [*times[1:], None], strict=True):
        alpha, sigma = abar[step].sqrt(), sigma_of(abar[step])
        denoised = mixture()(x / alpha, sigma).denoised
        noise = (x - alpha * denoised) / (1 - abar[step]).sqrt()
        signal = abar[after] if after is not None else torch.ones(())
        x = signal.sqrt() * denoised + (1 - signal).sqrt() * noise
    found = sample([Segment(mixture(), timestep_grid(abar, times))], start, form="vp")
    torch.testing.assert_close(found.samples, x)


@given(seeds, st.floats(0.01, 50.0))
def test_what_gaussian_data_are_denoised_to(seed, sigma):
    """In the VP form ``m + a d^2 / (a^2 d^2 + s^2) (x - a m)``."""
    x, alpha = normal(5, seed=seed), float(alpha_of(torch.tensor(sigma, dtype=torch.float64)))
    gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + (alpha * sigma) ** 2)
    found = gaussian()(x / alpha, sigma).denoised
    torch.testing.assert_close(found, MEAN + gain * (x - alpha * MEAN), rtol=1e-7, atol=1e-9)


# ---- segments ----

KEEPING = [name for name in SAMPLERS if name != "dpm_solver_2m"]  # which remembers its last step


@pytest.mark.parametrize("form", ["ve", "vp"])
@given(name=st.sampled_from(KEEPING), at=st.integers(0, 6), seed=seeds)
def test_a_way_cut_in_two_is_the_same_way(form, name, at, seed):
    grid, start, denoiser = karras_grid(6, 0.05, 8.0), normal(4, seed=seed), mixture()

    def run(*grids):
        parts = [Segment(denoiser, each, sampler=SAMPLERS[name]) for each in grids]
        return sample(parts, start, noise=seeded(seed), form=form)

    whole, cut = run(grid), run(grid[: at + 1], grid[at:])
    assert torch.equal(whole.samples, cut.samples)
    assert sum(cut.evaluations) == whole.evaluations[0]
    assert cut.evaluations[0] == (0 if at == 0 else 2 * at if name == "heun" and at < 6 else at + 5 * (name == "heun"))


@given(seeds, st.sampled_from(list(SAMPLERS)))
def test_without_steps_of_the_first_model_the_second_runs_alone(seed, name):
    base = Segment(gaussian(), karras_grid(6)[:1], 1.0, SAMPLERS[name])
    student = Segment(mixture(), karras_grid(4, 0.1, 5.0), 1.0, SAMPLERS[name])
    start = normal(3, 2, seed=seed)
    hybrid = sample([base, student], start, noise=seeded(seed))
    alone = sample([student], start, noise=seeded(seed))
    assert torch.equal(hybrid.samples, alone.samples) and hybrid.evaluations == [0, *alone.evaluations]
    assert torch.equal(sample([student, base], start, noise=seeded(seed)).samples, alone.samples)


def test_in_the_vp_form_the_latent_stays_where_levels_differ():
    start, between = normal(5), {}
    first = Segment(gaussian(), [9.0, 2.0])
    second = Segment(mixture(), [2.5, 0.0])
    for form in ("ve", "vp"):
        left = sample([first], start, form=form).samples
        seen = []
        sample([first, second], start, watch=seen.append, form=form)
        between[form] = seen[1].x if form == "ve" else to_vp(seen[1].x, 2.5)
        torch.testing.assert_close(between[form], left)
    assert not torch.allclose(*between.values())


def test_every_step_is_shown_with_what_the_model_thinks():
    trace = []
    parts = [Segment(gaussian(), [8.0, 3.0, 1.0], sampler=heun), Segment(mixture(), [1.0, 0.3, 0.0])]
    found = sample(parts, normal(4), watch=trace.append)
    assert [(step.number, step.sigma, step.after) for step in trace] == [
        (0, 8.0, 3.0),
        (1, 3.0, 1.0),
        (2, 1.0, 0.3),
        (3, 0.3, 0.0),
    ]
    for step in trace:
        network = parts[0 if step.number < 2 else 1].denoiser
        torch.testing.assert_close(step.denoised, network(step.x, step.sigma).denoised)
    assert torch.equal(trace[-1].denoised, found.samples), "the last x0 is the sample"


@pytest.mark.parametrize(
    ("name", "expected"), [("euler", 5), ("ddim", 5), ("ancestral", 5), ("heun", 9), ("dpm_solver_2m", 5), ("lcm", 5)]
)
@pytest.mark.parametrize(("guidance", "factor"), [(1.0, 1), (0.0, 1), (3.0, 2)])
def test_evaluations_are_counted(name, expected, guidance, factor):
    denoiser = classes()
    calls = []
    denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    part = Segment(denoiser, karras_grid(5, 0.1, 8.0), guidance, SAMPLERS[name])
    found = sample([part], normal(4, 2), torch.tensor([0, 1, 1, 0]), seeded(0))
    assert found.evaluations == [expected * factor] and sum(calls) == 4 * expected * factor


@given(st.integers(1, 9), st.sampled_from(list(SAMPLERS)), st.sampled_from([0.0, 1.0, 2.5]))
def test_batches_change_nothing(size, name, guidance):
    part = Segment(classes(), karras_grid(4, 0.1, 8.0), guidance, SAMPLERS[name])
    label = torch.arange(7) % 2
    whole, batched = (sample([part], normal(7, 2), label, seeded(0), batch_size=each) for each in (None, size))
    torch.testing.assert_close(batched.samples, whole.samples, rtol=1e-12, atol=1e-12)
    assert batched.evaluations == whole.evaluations


def test_the_same_seed_repeats_and_another_does_not():
    def run(seed):
        return sample([Segment(mixture(), karras_grid(5), sampler=ancestral)], normal(50), noise=seeded(seed)).samples

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(run(generator), run(1)) and not torch.equal(run(generator), run(1)), "it has moved on"


def test_no_graph_is_kept():
    class Learnt(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x, sigma, label):
            return DenoiserOutput(denoised=self.scale * x)

    found = sample([Segment(Learnt(), [3.0, 1.0, 0.0])], normal(2, 2))
    assert not found.samples.requires_grad and not found.samples.is_inference(), "it may be learnt from"


@settings(max_examples=20)
@given(st.lists(st.floats(0.0, 9.0), min_size=2, max_size=5))
def test_grids_descend(levels):
    fine = all(after < before for before, after in pairwise(levels))
    if fine:
        euler(Guided(gaussian()), normal(2), levels)
    else:
        with pytest.raises(ValueError, match="the levels of a grid descend"):
            euler(Guided(gaussian()), normal(2), levels)


def test_noise_that_is_missing():
    with pytest.raises(ValueError, match="this sampler adds noise"):
        ancestral(Guided(gaussian()), normal(2), [2.0, 1.0])
