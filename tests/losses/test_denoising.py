"""Losses of diffusion models and their distillation: what each is by definition, and what it obeys."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import mse_loss

from kdbench.losses.denoising import (
    ConsistencyLoss,
    DenoisingLoss,
    consistency_loss,
    consistency_schedule,
    denoising_loss,
    denoising_weight,
    distribution_matching,
    distribution_matching_loss,
    latent_consistency_scalings,
    progressive_target,
)

seeds = st.integers(0, 10_000)
levels = st.floats(0.05, 20.0)


def normal(seed, *shape, count=1):
    drawn = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.unbind() if count > 1 else drawn[0]


# ---- denoising ----


@given(seeds, levels, st.floats(0.2, 2.0))
def test_the_weights_are_the_squared_errors_of_the_parameterisations(seed, sigma, deviation):
    clean, noise, denoised = normal(seed, 3, 2, 4, count=3)
    level = torch.full((3,), sigma, dtype=torch.float64)
    alpha = 1 / math.sqrt(1 + sigma**2)
    x = clean + sigma * noise
    epsilon = (x - denoised) / sigma
    velocity = alpha * epsilon - alpha * sigma * denoised
    skip, out = deviation**2 / (sigma**2 + deviation**2), sigma * deviation / math.sqrt(sigma**2 + deviation**2)
    expected = {
        "x0": mse_loss(denoised, clean),
        "epsilon": mse_loss(epsilon, noise),
        "v": mse_loss(velocity, alpha * noise - alpha * sigma * clean),
        "truncated": max(mse_loss(denoised, clean), mse_loss(epsilon, noise)),
        "edm": mse_loss((denoised - skip * x) / out, (clean - skip * x) / out),
    }
    for weighting, value in expected.items():
        torch.testing.assert_close(
            denoising_loss(denoised, clean, level, weighting, deviation), value, rtol=1e-6, atol=0
        )


@given(seeds, levels)
def test_reductions(seed, sigma):
    denoised, clean = normal(seed, 3, 2, 4, count=2)
    level = sigma * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    rows = denoising_loss(denoised, clean, level, reduction="none")
    alone = [denoising_loss(denoised[i : i + 1], clean[i : i + 1], level[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(rows, torch.stack(alone))
    torch.testing.assert_close(denoising_loss(denoised, clean, level), rows.mean())
    torch.testing.assert_close(denoising_loss(denoised, clean, level, elements="sum"), 8 * rows.mean())
    assert denoising_loss(clean, clean, level) == 0


def test_the_module_is_the_function_and_reads_the_levels_by_name():
    denoised, clean = normal(0, 3, 1, 2, 2, count=2)
    sigma = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    loss = DenoisingLoss("v", elements="sum")
    assert loss.fields == ("sigma",) and not loss.takes_rows
    assert loss(denoised, clean, sigma=sigma) == denoising_loss(denoised, clean, sigma, "v", elements="sum")
    weights = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    assert loss(denoised, clean, weights, sigma=sigma) == loss.per_row(denoised, clean, sigma)[0]


def test_targets_have_no_gradient_and_half_precision_is_widened():
    student, target = (each.half().requires_grad_() for each in normal(0, 3, 4, count=2))
    sigma = torch.ones(3)
    for loss in (denoising_loss(student, target, sigma), consistency_loss(student, target)):
        assert loss.dtype == torch.float32
        loss.backward()
    assert target.grad is None and student.grad is not None


# ---- progressive distillation ----


@given(seeds, st.floats(0.3, 0.99), st.floats(0.1, 0.9), st.floats(0.1, 0.9))
def test_one_step_with_the_target_lands_where_two_of_the_teachers_did(seed, time, middle, last):
    """In the VP form of ``a = cos(pi t / 2)``, whatever the teacher says at the two times."""
    z, first, second = normal(seed, 4, 3, count=3)
    times = [time, time * middle, time * middle * last]
    a, s = ([function(math.pi * each / 2) for each in times] for function in (math.cos, math.sin))

    def ddim(x, denoised, here, there):
        return a[there] * denoised + s[there] * (x - a[here] * denoised) / s[here]

    landed = ddim(ddim(z, first, 0, 1), second, 1, 2)
    vp = [torch.tensor(each, dtype=torch.float64) for each in (s[0], s[2], a[0], a[2])]
    target = progressive_target(z, landed, *vp)
    torch.testing.assert_close(ddim(z, target, 0, 2), landed)
    ve = [torch.tensor(s[each] / a[each], dtype=torch.float64) for each in (0, 2)]
    torch.testing.assert_close(progressive_target(z / a[0], landed / a[2], *ve), target)
    levels = [each.expand(4) for each in vp]
    torch.testing.assert_close(progressive_target(z, landed, *levels), target)
    if first.equal(second):
        torch.testing.assert_close(target, first)


@given(seeds, levels, st.floats(0.05, 0.9))
def test_a_teacher_that_keeps_to_its_x0_is_the_target(seed, sigma, share):
    x, denoised = normal(seed, 4, 3, count=2)
    sigma = torch.tensor(sigma, dtype=torch.float64)
    landed = denoised + share**2 * (x - denoised)  # two steps on one line
    torch.testing.assert_close(progressive_target(x, landed, sigma, share**2 * sigma), denoised)


def test_pure_noise_has_a_target():
    """Where a = 0 an x0 can be asked for; the noise says nothing about it."""
    noise, denoised = normal(0, 4, 3, count=2)
    zero, one, half = (torch.tensor(each, dtype=torch.float64) for each in (0.0, 1.0, 0.5**0.5))
    landed = half * denoised + half * noise
    torch.testing.assert_close(progressive_target(noise, landed, one, half, zero, half), denoised)


# ---- consistency ----


@given(seeds, st.floats(1e-3, 1.0))
def test_distances(seed, scale):
    student, target = normal(seed, 3, 2, 4, count=2)
    apart = (student - target).reshape(3, 8)
    expected = {
        "l1": apart.abs().mean(1),
        "l2": apart.square().mean(1),
        "huber": torch.stack([torch.tensor([math.hypot(u, scale) - scale for u in row]).mean() for row in apart]),
        "pseudo_huber": torch.tensor([math.hypot(*row, scale) - scale for row in apart.tolist()]),
    }
    for distance, rows in expected.items():
        found = consistency_loss(student, target, distance, scale, "none")
        torch.testing.assert_close(found, rows.double(), rtol=1e-6, atol=1e-7)
        loss = ConsistencyLoss(distance, scale)
        torch.testing.assert_close(loss(student, target), found.mean())
        assert not loss.takes_rows and loss(target, target).abs() < 1e-12


@given(st.integers(1, 1000), st.integers(2, 20), st.integers(21, 300), st.floats(0.5, 0.99))
def test_levels_and_decay_grow(steps, fewest, most, start):
    found = [consistency_schedule(step, steps, fewest, most, start) for step in range(steps + 1)]
    decays, counts = zip(*found, strict=True)
    assert list(decays) == sorted(decays) and list(counts) == sorted(counts)
    assert counts[0] == fewest and counts[-1] == most + 1 and 0 < decays[0] < decays[-1] < 1


@given(st.floats(0.0, 999.0))
def test_latent_consistency_models_are_the_identity_at_0(time):
    skip, out = latent_consistency_scalings(torch.tensor(time, dtype=torch.float64))
    assert float(skip + out**2) == pytest.approx(1.0)
    zero, one = (latent_consistency_scalings(torch.tensor(each)) for each in (0.0, 1.0))
    assert [float(each) for each in zero] == [1.0, 0.0]
    assert [float(each) for each in one] == pytest.approx([0.25 / 100.25, 10 / math.sqrt(100.25)])


# ---- score distillation ----


@given(seeds, st.sampled_from(["diff_instruct", "dmd"]))
def test_the_loss_has_the_gradient_and_no_other(seed, scaling):
    made, fake, real = (each.requires_grad_() for each in normal(seed, 3, 2, 4, count=3))
    loss = distribution_matching_loss(made, fake, real, scaling)
    loss.backward()
    gradient = distribution_matching(made, fake, real, scaling)
    assert not gradient.requires_grad and fake.grad is None and real.grad is None, "no derivative of a denoiser"
    torch.testing.assert_close(made.grad, gradient / (3 if scaling == "diff_instruct" else 24))
    rows = distribution_matching_loss(made, fake, real, scaling, reduction="none")
    torch.testing.assert_close(rows.mean(), loss)


@given(seeds, st.floats(-3.0, 3.0).filter(lambda c: abs(c) > 1e-3))
def test_dmd_is_free_of_scale_and_diff_instruct_is_not(seed, factor):
    made, fake, real = normal(seed, 3, 2, 4, count=3)
    scaled = [factor * each for each in (made, fake, real)]
    sign = math.copysign(1.0, factor)
    torch.testing.assert_close(
        distribution_matching(*scaled, "dmd"),
        sign * distribution_matching(made, fake, real, "dmd"),
        rtol=1e-6,
        atol=1e-8,
    )
    torch.testing.assert_close(distribution_matching(*scaled), factor * distribution_matching(made, fake, real))


@given(seeds)
def test_definitions_of_the_two_scalings(seed):
    made, fake, real = normal(seed, 3, 5, count=3)
    weight = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    for row in range(3):
        plain = [weight[row] * (f - r) for f, r in zip(fake[row], real[row], strict=True)]
        mean = sum(abs(x - r) for x, r in zip(made[row], real[row], strict=True)) / 5
        found = distribution_matching(made, fake, real, weight=weight)[row]
        torch.testing.assert_close(found, torch.stack(plain))
        found = distribution_matching(made, fake, real, "dmd", weight)[row]
        torch.testing.assert_close(found, torch.stack([each / mean for each in plain]))


@pytest.mark.parametrize("scaling", ["diff_instruct", "dmd"])
def test_equal_scores_and_an_example_at_its_target_have_no_gradient(scaling):
    made, fake, real = normal(0, 3, 4, count=3)
    assert not distribution_matching(made, real, real, scaling).any()
    real[1] = made[1]
    gradient = distribution_matching(made, fake, real, scaling)
    assert gradient.isfinite().all() and bool(gradient[1].any()) == (scaling == "diff_instruct")
    nothing = torch.zeros(2, 4)
    assert not distribution_matching(nothing, nothing, nothing, scaling).any()


# ---- mistakes ----


def test_shapes_and_names():
    x, sigma = torch.zeros(2, 3), torch.ones(2)
    for call in (
        lambda: denoising_loss(x, x[:1], sigma),
        lambda: consistency_loss(x, x[:, :1]),
        lambda: distribution_matching(x, x[:1], x),
        lambda: distribution_matching(x, x, x[:, :1]),
    ):
        with pytest.raises(ValueError, match="must have the same shape"):
            call()
    for call, name in (
        (lambda: denoising_weight(sigma, "snr"), "weighting"),
        (lambda: DenoisingLoss("snr"), "weighting"),
        (lambda: denoising_loss(x, x, sigma, elements="max"), "elements"),
        (lambda: DenoisingLoss(elements="max"), "elements"),
        (lambda: consistency_loss(x, x, "lpips"), "distance"),
        (lambda: ConsistencyLoss("lpips"), "distance"),
        (lambda: distribution_matching(x, x, x, "sds"), "scaling"),
    ):
        with pytest.raises(ValueError, match=f"{name} is '"):
            call()
