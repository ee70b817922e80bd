"""The exact denoiser against quadrature, scipy's densities and Bayes' rule by sampling."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm
from transformers import AutoModel

from kdbench.errors import UserError
from kdbench.models.denoiser import Guided
from kdbench.models.exact_denoiser import ExactDenoiser, ExactDenoiserConfig
from kdbench.models.origins import FromConfig, FromFolder, quiet

MEANS, STDS, WEIGHTS = [-1.0, 0.5, 1.5], [0.2, 0.3, 0.1], [0.5, 0.3, 0.2]
POINTS, SPREADS = [[0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]], [0.2, 0.4, 0.3]
levels = st.floats(0.05, 10.0)


def line():
    return ExactDenoiser(ExactDenoiserConfig(MEANS, STDS, WEIGHTS))


def plane(classes=0):
    return ExactDenoiser(ExactDenoiserConfig(POINTS, SPREADS, WEIGHTS, classes=classes))


@given(levels, st.floats(-4.0, 4.0))
def test_it_is_the_posterior_mean(sigma, x):
    clean, width = np.linspace(-6, 6, 60_001, retstep=True)
    prior = sum(w * norm.pdf(clean, m, s) for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True))
    joint = prior * norm.pdf(x, clean, sigma)
    assume(joint.sum() * width > 1e-30)
    sample = torch.tensor([[x]], dtype=torch.float64)
    assert float(line()(sample, sigma).denoised) == pytest.approx((joint * clean).sum() / joint.sum(), abs=1e-8)
    assert float(line().log_density(sample, sigma)) == pytest.approx(np.log(joint.sum() * width), abs=1e-8)


@given(levels, st.integers(0, 1000))
def test_its_score_is_the_gradient_of_its_density(sigma, seed):
    """Tweedie: ``D = x + sigma^2 grad log p``."""
    for denoiser, shape in ((line(), (3, 2, 4)), (plane(), (5, 2)), (plane(), (2, 3, 2))):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
        (score,) = torch.autograd.grad(denoiser.log_density(x, sigma).sum(), x)
        torch.testing.assert_close(denoiser(x, sigma).denoised, x + sigma**2 * score, rtol=1e-6, atol=1e-8)


def test_the_density_is_that_of_scipy():
    x = np.random.default_rng(0).normal(size=(20, 2))
    for sigma in (0.0, 0.7):
        parts = [
            w * multivariate_normal(m, (s**2 + sigma**2) * np.eye(2)).pdf(x)
            for w, m, s in zip(WEIGHTS, POINTS, SPREADS, strict=True)
        ]
        found = plane().log_density(torch.tensor(x), sigma)
        np.testing.assert_allclose(found.exp(), sum(parts), rtol=1e-9)


def test_levels_of_their_own():
    x, sigma = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0.1, 0.5, 2.0, 9.0], dtype=torch.float64)
    found = plane()(x, sigma).denoised
    for row in range(4):
        torch.testing.assert_close(found[row : row + 1], plane()(x[row : row + 1], float(sigma[row])).denoised)


def test_a_class_is_its_component():
    denoiser, x = plane(classes=3), torch.randn(6, 2, dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    found = denoiser(x, 0.8, label).denoised
    for row, number in enumerate(label.tolist()):
        alone = ExactDenoiser(ExactDenoiserConfig([POINTS[number]], SPREADS[number]))
        torch.testing.assert_close(found[row : row + 1], alone(x[row : row + 1], 0.8).denoised)
    whole = plane()(x, 0.8).denoised
    torch.testing.assert_close(denoiser(x, 0.8).denoised, whole)
    torch.testing.assert_close(denoiser(x, 0.8, torch.full_like(label, 3)).denoised, whole)
    torch.testing.assert_close(Guided(denoiser, label, 2.0)(x, 0.8), 2 * found - whole)
    with pytest.raises(ValueError, match="has no classes"):
        plane()(x, 0.8, label)


def test_far_points_do_not_underflow():
    far = torch.full((1, 2), 1e4)
    assert plane()(far, 0.1).denoised.isfinite().all() and plane()(far, 0.1).denoised.dtype == torch.float32


def test_it_is_saved_and_loaded(tmp_path):
    denoiser, x = FromConfig("ExactDenoiser", {"means": POINTS, "stds": SPREADS}).build(), torch.randn(5, 2)
    with quiet():
        denoiser.save_pretrained(tmp_path)
        loaded = [AutoModel.from_pretrained(tmp_path), FromFolder(str(tmp_path)).build()]
    for other in loaded:
        assert not list(other.parameters())
        torch.testing.assert_close(other(x, 0.5).denoised, denoiser(x, 0.5).denoised)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"means": []}, "A mixture of 0 means"),
        ({"means": [0.0, 1.0], "stds": [1.0]}, "A mixture of 2 means has as many stds"),
        ({"means": [0.0, 1.0], "weights": [1.0]}, "as many stds and weights"),
        ({"means": [0.0, 1.0], "classes": 3}, "0 or 2 classes"),
        ({"means": [0.0], "stds": 0.0}, "are above 0"),
        ({"means": [0.0, 1.0], "weights": [1.0, 0.0]}, "are above 0"),
    ],
)
def test_numbers_that_make_no_mixture(config, told):
    with pytest.raises(UserError, match=told):
        ExactDenoiserConfig(**config)
