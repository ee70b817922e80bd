"""Step distillation of diffusion models: the numbers of the methods' official codes and of their references.

DDPM (arXiv 2006.11239), DDIM (2010.02502), EDM (2206.00364), progressive distillation (2202.00512), consistency models
(2303.01469), latent consistency models (2310.04378), Diff-Instruct (2305.18455) and DMD (2311.18828) in the form of DisBack's code
(2408.15991).
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdbench.losses.denoising import (
    consistency_loss,
    consistency_schedule,
    denoising_loss,
    denoising_weight,
    distribution_matching,
    distribution_matching_loss,
    latent_consistency_scalings,
    progressive_target,
)
from kdbench.methods.diffusion import ConsistencyDistillation, ProgressiveDistillation
from kdbench.methods.drawing import Sampling
from kdbench.models.denoiser import DenoiserOutput, Guided, beside, noise_levels, scalings
from kdbench.models.exact_denoiser import ExactDenoiser, ExactDenoiserConfig
from kdbench.models.moving_average import MovingAverage
from kdbench.models.origins import FromConfig
from kdbench.models.samplers import Segment, dpm_solver_2m, euler, heun, heun_step, sample
from kdbench.models.schedules import (
    karras_grid,
    linear_schedule,
    scaled_linear_schedule,
    sigma_of,
    timestep_grid,
    timesteps,
    to_vp,
)


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


def mixture():
    return ExactDenoiser(ExactDenoiserConfig([-1.0, 0.5, 1.5], 0.2, [0.5, 0.3, 0.2]))


def gaussian(mean, deviation):
    return ExactDenoiser(ExactDenoiserConfig([mean], deviation))


class Parameterised(nn.Module):
    """A network that predicts the noise, v or x0 without error, made a denoiser again by the scalings."""

    def __init__(self, exact, kind):
        super().__init__()
        self.exact, self.kind = exact, kind

    def forward(self, x, sigma, label):
        level = beside(noise_levels(sigma, x), x)
        c = scalings(level, self.kind)
        predicted = (self.exact(x, sigma).denoised - c.skip * x) / c.out
        return DenoiserOutput(denoised=c.skip * x + c.out * predicted)


# ---- grids and samplers ----


def test_karras_grid():
    expected = [79.999985, 17.527830, 2.5152194, 0.16975267, 0.0019999996, 0]  # computed in float32
    assert karras_grid(5, 0.002, 80.0, 7.0).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("sampler", "expected", "evaluations"),
    [
        (euler, [0.36633521, 0.75192777, 0.51453019, -0.78451758], 6),
        (heun, [0.56656679, 1.4777197, 0.71278231, -1.0810764], 11),
        (dpm_solver_2m, [0.58558916, 1.391947, 0.72700099, -1.1448067], 6),
    ],
)
def test_samplers_are_those_of_k_diffusion(sampler, expected, evaluations):
    denoise = Guided(mixture())
    found = sampler(denoise, g((4,), 1.1, 0.3, 10), karras_grid(6, 0.01, 10.0))
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert denoise.evaluations == evaluations


@pytest.mark.parametrize("kind", ["exact", "epsilon", "v", "x0"])
def test_ddim_of_every_parameterisation(kind):
    denoiser = mixture() if kind == "exact" else Parameterised(mixture(), kind)
    assert timesteps(5, "leading") == [800, 600, 400, 200, 0]
    grid = timestep_grid(linear_schedule(), timesteps(5, "leading"))
    found = sample([Segment(denoiser, grid)], g((4,), 1.1, 0.3), form="vp")
    assert found.samples.tolist() == pytest.approx([0.20791988, 0.85938165, 0.54080877, -0.65483597], abs=1e-4)


@given(st.integers(0, 1000), st.floats(0.1, 5.0), st.integers(1, 9))
def test_trajectories_of_all_parameterisations_coincide(seed, scale, count):
    x = scale * torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    grid = timestep_grid(scaled_linear_schedule(), timesteps(count, "trailing"))
    expected = sample([Segment(mixture(), grid)], x, form="vp").samples
    for kind in ("epsilon", "v", "x0", "edm"):
        found = sample([Segment(Parameterised(mixture(), kind), grid)], x, form="vp").samples
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


# ---- denoising ----


def test_edm_loss():
    x, noise = g((2, 1, 2, 2), 0.37, 0, 0.8), g((2, 1, 2, 2), 0.53, 1, 1.2)
    sigma = torch.exp(-1.2 + 1.2 * g((2,), 1.3, 0))
    assert sigma.tolist() == pytest.approx([0.30119421, 0.9572122], abs=1e-7)
    denoised = mixture()(x + beside(sigma, x) * noise, sigma).denoised
    assert float(denoising_loss(denoised, x, sigma)) == pytest.approx(2.3119457, abs=1e-6)


@given(st.floats(0.1, 3.0), st.integers(0, 1000))
def test_no_denoiser_has_a_smaller_loss_than_the_posterior_mean(sigma, seed):
    """Its error is orthogonal to every function of x, so that any change of it adds to the loss; by quadrature over x0 and n."""
    clean, noise = (torch.linspace(-3, 3, 301, dtype=torch.float64), torch.linspace(-5, 5, 201, dtype=torch.float64))
    density = mixture().log_density(clean).exp()[:, None] * torch.exp(-(noise**2) / 2)
    weight = (density / density.sum()).flatten()
    x0 = clean[:, None].expand(-1, len(noise)).flatten()
    x = x0 + sigma * noise.repeat(len(clean))
    best = mixture()(x, sigma).denoised
    factors = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    change = factors[0] + factors[1] * torch.tanh(x) + factors[2] * torch.cos(2 * x)
    floor, raised = ((weight * (denoised - x0).square()).sum() for denoised in (best, best + change))
    torch.testing.assert_close(raised - floor, (weight * change.square()).sum(), rtol=1e-3, atol=1e-5)


# ---- progressive distillation ----


def test_progressive_target():
    times = [0.75, 0.625, 0.5]  # i = 3 of N = 4
    a, s = ([each(math.pi * t / 2) for t in times] for each in (math.cos, math.sin))
    z = g((4,), 1.1, 0.3, 1.2)
    landed = a[2] * euler(Guided(mixture()), z / a[0], [s[i] / a[i] for i in range(3)])
    assert landed.tolist() == pytest.approx([0.32713497, 1.1659331, 0.70045211, -0.56622443], abs=1e-7)
    levels = [torch.tensor(each, dtype=torch.float64) for each in (s[0], s[2], a[0], a[2])]
    target = progressive_target(z, landed, *levels)
    assert target.tolist() == pytest.approx([0.13451351, 0.62976316, 0.36404218, -0.38578132], abs=1e-7)
    sigma = levels[0] / levels[2]
    assert float(denoising_weight(sigma, "truncated")) == 1
    assert float(denoising_weight(sigma, "v")) == pytest.approx(1.1715729, abs=1e-7)


# ---- consistency ----


def raw(outer, inner, boundary):
    """The raw networks of the oracle, ``a tanh(into x) + b sin(ln sigma)``, in the scalings of EDM or of their boundary."""

    def denoise(x, sigma):
        c = [beside(each, x) for each in scalings(sigma, boundary=boundary)]
        return c[0] * x + c[1] * (outer * torch.tanh(c[2] * x) + inner * beside(torch.sin(sigma.log()), x))

    return denoise


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        ("l2", [4.5857446e-4, 1.3245391e-4, 1.7740658e-6]),
        ("l1", [0.021283553, 0.0081073466, 0.0012394997]),
    ],
)
def test_consistency_distillation(distance, expected):
    clean, noise = g((3, 1, 2, 2), 0.37, 0, 0.8), g((3, 1, 2, 2), 0.53, 1, 1.2)
    grid, number = karras_grid(18)[:-1], torch.tensor([0, 7, 16])  # of 17 intervals the first, the eighth, the last
    sigma, after = grid[number], grid[number + 1]
    x = clean + beside(sigma, clean) * noise
    nearer = heun_step(raw(0.9, 0.1, None), x, sigma, after)
    student, target = raw(0.7, 0.2, 0.002)(x, sigma), raw(0.65, 0.25, 0.002)(nearer, after)
    found = consistency_loss(student, target, distance, reduction="none")
    assert found.tolist() == pytest.approx(expected, rel=2e-6)


@given(st.floats(0.2, 2.0), st.floats(-1.0, 1.0), st.integers(0, 16))
def test_the_true_flow_has_no_consistency_loss(deviation, mean, number):
    """Of Gaussian data: ``f(x, sigma) = m + (x - m) sqrt((d^2 + smin^2) / (d^2 + sigma^2))``."""
    grid, x = karras_grid(18)[:-1], 5 * g((4, 2), 1.1, 0.3)

    def flow(x, sigma, to=grid[-1]):
        return mean + (x - mean) * ((deviation**2 + to**2) / (deviation**2 + sigma**2)).sqrt()

    sigma, after = grid[number], grid[number + 1]
    torch.testing.assert_close(
        consistency_loss(flow(x, sigma), flow(flow(x, sigma, after), after)) + 1, 1 + 0 * x.sum()
    )


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, (0.81, 2)),
        (1, (0.95873152, 6)),
        (100, (0.99552661, 48)),
        (500, (0.99801404, 107)),
        (1000, (0.99859618, 151)),
    ],
)
def test_consistency_training_schedule(step, expected):
    decay, levels = consistency_schedule(step, 1000, fewest=2, most=150, start=0.9)
    assert decay == pytest.approx(expected[0], abs=5e-9) and levels == expected[1]


def test_latent_consistency():
    skip, out = latent_consistency_scalings(torch.tensor(1.0, dtype=torch.float64))
    assert (float(skip), float(out)) == pytest.approx((0.0024937657, 0.99875236), rel=5e-8)
    abar = scaled_linear_schedule()
    clean, noise = g((3, 3), 0.37, 0.1), g((3, 3), 0.53, 1.1)
    points = timesteps(50, "lcm")[::-1]
    assert points == [(j + 1) * 20 - 1 for j in range(50)]
    before = [float(sigma_of(abar[max(points[j] - 20, 0)])) for j in (0, 10, 49)]
    stepped = [to_vp(clean[row] + sigma * noise[row], sigma) for row, sigma in enumerate(before)]
    assert stepped[0].tolist() == pytest.approx([0.12577425, 0.48179782, 0.76856567], abs=1e-6)
    assert stepped[1].tolist() == pytest.approx([1.0289933, 0.83025646, 0.52453624], abs=1e-6)


# ---- the same numbers through the methods ----


class Raw(nn.Module):
    """A raw network of the oracle as a denoiser."""

    def __init__(self, outer, inner, boundary):
        super().__init__()
        self.denoise = raw(outer, inner, boundary)

    def forward(self, x, sigma, label):
        return DenoiserOutput(denoised=self.denoise(x, sigma))


def method(kind, teacher, **settings):
    """A method without a trainer, with a teacher in its place."""
    origin = FromConfig("Denoiser", {})
    found = kind(origin, origin, **settings)
    found._frozen["teacher"] = teacher
    return found


def test_progressive_distillation_in_the_ve_form():
    """The oracle's z in the VE form: one step of the student to the target lands on ``z'' / a''``."""
    a, s = ([each(math.pi * t / 2) for t in (0.75, 0.625, 0.5)] for each in (math.cos, math.sin))
    levels = [torch.full((4,), s[i] / a[i], dtype=torch.float64) for i in range(3)]
    view = {"sample": (g((4,), 1.1, 0.3, 1.2) / a[0])[:, None]}
    batch = {"inputs": view, "sigma": levels[0], "after": levels[1], "landed": levels[2]}
    sampling = {"student": Sampling("euler", 4, within=8)}
    target = method(ProgressiveDistillation, mixture(), sampling=sampling).teach(batch)["teacher"]["denoised"]
    assert target.flatten().tolist() == pytest.approx([0.13451351, 0.62976316, 0.36404218, -0.38578132], abs=1e-7)


def test_a_step_of_consistency_distillation():
    clean, noise = g((3, 1, 2, 2), 0.37, 0, 0.8), g((3, 1, 2, 2), 0.53, 1, 1.2)
    grid, number = karras_grid(18)[:-1], torch.tensor([0, 7, 16])
    batch = {"sigma": grid[number], "after": grid[number + 1]}
    batch["inputs"] = {"sample": clean + beside(batch["sigma"], clean) * noise, "sigma": batch["sigma"]}
    module = method(ConsistencyDistillation, Raw(0.9, 0.1, None))
    module.student, module.target = Raw(0.7, 0.2, 0.002), MovingAverage(Raw(0.65, 0.25, 0.002))
    student = {"denoised": module.student(*batch["inputs"].values(), None).denoised}
    (value,) = module.objective(student, module.teach(batch), batch).values()
    assert float(value) == pytest.approx(sum([4.5857446e-4, 1.3245391e-4, 1.7740658e-6]) / 3, rel=2e-6)


# ---- Diff-Instruct and DMD ----


def scored(sigma):
    """What a generator made, and what the scores of its law and of the teacher's say of it with noise."""
    made, noise = g((2, 1, 3, 3), 0.37, 0, 0.8).requires_grad_(), g((2, 1, 3, 3), 0.53, 1, 1.2)
    noisy = (made + beside(sigma, made) * noise).detach()
    return made, gaussian(-0.3, 0.7)(noisy, sigma).denoised, gaussian(0.2, 0.5)(noisy, sigma).denoised


def test_dmd():
    sigma = karras_grid(1000)[:-1].flip(0)[[300, 700]]
    assert sigma.tolist() == pytest.approx([0.31943433, 12.443542], rel=1e-6)
    made, fake, real = scored(sigma)
    loss = distribution_matching_loss(made, fake, real, "dmd")
    loss.backward()
    assert loss.item() == pytest.approx(0.15173392, abs=1e-7)
    assert float(made.grad.norm()) == pytest.approx(0.12984346, abs=1e-7)
    assert made.grad.flatten()[:3].tolist() == pytest.approx([-0.017397797, -0.0074368776, -0.0015841716], abs=1e-8)
    gradient = distribution_matching(made, fake, real, "dmd").flatten()[:3]
    assert gradient.tolist() == pytest.approx([-0.31316035, -0.13386380, -0.028515090], abs=1e-7)
    assert denoising_loss(fake, made, sigma).item() == pytest.approx(0.83462468, abs=1e-7)


def test_diff_instruct():
    sigma = torch.exp(-1.2 + 1.2 * g((2,), 1.3, 0))
    made, fake, real = scored(sigma)
    loss = distribution_matching_loss(made, fake, real)
    loss.backward()
    assert loss.item() == pytest.approx(0.67102733, abs=1e-7)
    assert made.grad.flatten()[:3].tolist() == pytest.approx([-0.033324776, -0.014272221, -0.0028257377], abs=1e-8)
    assert denoising_loss(fake, made, sigma, elements="sum").item() == pytest.approx(9.9909382, abs=1e-6)


def expected_gradient(mean, deviation, sigma=0.6):
    """The mean of the gradient, and of the gradient times z, for ``G(z) = mean + deviation z``: on both parameters of G."""
    z, weights = (torch.tensor(each) for each in np.polynomial.hermite_e.hermegauss(40))
    made = mean + deviation * z[:, None]
    noisy = made + sigma * z
    weights = (weights[:, None] * weights / weights.sum() ** 2).flatten()
    fake, real = (law(noisy, sigma).denoised for law in (gaussian(mean, deviation), gaussian(0.2, 0.5)))
    gradient = distribution_matching(made.expand_as(noisy), fake, real)
    return (float((weights * (gradient * of).flatten()).sum()) for of in (torch.ones_like(z)[:, None], z[:, None]))


def test_the_expected_gradient_vanishes_where_the_laws_are_equal_alone():
    assert list(expected_gradient(0.2, 0.5)) == pytest.approx([0, 0], abs=1e-12)
    for mean, deviation in ((0.6, 0.5), (-0.4, 0.5), (0.2, 0.9), (0.2, 0.1), (0.6, 0.9)):
        on_mean, on_deviation = expected_gradient(mean, deviation)
        assert on_mean * (mean - 0.2) >= -1e-12 and on_deviation * (deviation - 0.5) >= -1e-12, (
            "it leads to the teacher"
        )
        assert abs(on_mean) + abs(on_deviation) > 0.01


def test_the_divergence_falls_with_the_noise():
    x, width = np.linspace(-60, 60, 40_001, retstep=True)
    sample, divergences = torch.tensor(x)[:, None], []
    for sigma in (0.1, 0.5, 1.0, 3.0, 8.0):
        made, real = (law.log_density(sample, sigma) for law in (gaussian(-0.3, 0.7), gaussian(0.2, 0.5)))
        divergences.append(float((made.exp() * (made - real)).sum() * width))
        spreads = (0.7**2 + sigma**2, 0.5**2 + sigma**2)
        closed = (math.log(spreads[1] / spreads[0]) + (spreads[0] + 0.5**2) / spreads[1] - 1) / 2
        assert divergences[-1] == pytest.approx(closed, rel=1e-6)
    assert divergences == sorted(divergences, reverse=True)
