"""Denoisers: their parameterisations, guidance, networks, and that they are saved and loaded like any other model."""

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel

from kdbench.errors import UserError
from kdbench.metrics.speed import parameters
from kdbench.models.denoiser import (
    AsConsistencyModel,
    Denoiser,
    DenoiserConfig,
    Guided,
    beside,
    drop_labels,
    scalings,
)
from kdbench.models.exact_denoiser import ExactDenoiser, ExactDenoiserConfig
from kdbench.models.origins import Facts, FromConfig, FromFolder, quiet
from kdbench.models.taps import Taps, check_view

U_NET = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
KINDS = [
    {"shape": [2]},
    {"shape": [3], "sizes": {"width": 16, "depth": 1, "frequencies": 4}, "classes": 2, "parameterisation": "v"},
    {"shape": [1, 4, 4], "network": "residual_mlp", "sizes": {"width": 16, "blocks": 2}, "classes": 3},
    {"shape": [1, 8, 8], "network": "unet", "sizes": U_NET, "classes": 2, "boundary": 0.002},
]
seeds = st.integers(0, 10_000)


def network(seed=0, **config):
    if config.get("network") == "unet":
        pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    return Denoiser(DenoiserConfig(**config)).eval()


def inputs(denoiser, rows=4, seed=0):
    torch.manual_seed(seed)
    label = torch.arange(rows) % denoiser.config.classes if denoiser.config.classes else None
    return torch.randn(rows, *denoiser.config.shape), torch.rand(rows) + 0.1, label


# ---- parameterisations ----


@given(seeds, st.sampled_from(["edm", "epsilon", "v", "x0"]), st.floats(0.05, 20.0), st.floats(0.2, 2.0))
def test_a_perfect_network_of_every_kind_denoises_perfectly(seed, kind, sigma, deviation):
    """What F has to be follows from the VP form; D gives back x0 from it."""
    generator = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    level = torch.tensor(sigma, dtype=torch.float64)
    x, alpha = clean + sigma * noise, 1 / math.sqrt(1 + sigma**2)
    c = scalings(level, kind, deviation)
    right = {
        "epsilon": noise,
        "v": alpha * noise - alpha * sigma * clean,
        "x0": clean,
        "edm": (clean - c.skip * x) / c.out,
    }[kind]
    torch.testing.assert_close(c.skip * x + c.out * right, clean, rtol=1e-7, atol=1e-9)
    if kind != "edm":
        assert c.into == pytest.approx(alpha)


@given(st.floats(0.01, 80.0), st.floats(0.1, 2.0))
def test_edm_scales_inputs_and_targets_to_unit_variance(sigma, deviation):
    """For data of variance d^2: ``var(into x) = 1`` and ``var((x0 - skip x) / out) = 1``, with the least out there is."""
    level = torch.tensor(sigma, dtype=torch.float64)
    c = scalings(level, "edm", deviation)
    assert c.into**2 * (deviation**2 + sigma**2) == pytest.approx(1.0)
    for skip in (c.skip, c.skip + 0.01, c.skip - 0.01):
        left = (1 - skip) ** 2 * deviation**2 + skip**2 * sigma**2
        assert left >= c.out**2 * (1 - 1e-12)
    assert (1 - c.skip) ** 2 * deviation**2 + c.skip**2 * sigma**2 == pytest.approx(float(c.out**2))


def test_v_prediction_is_edm_for_data_of_unit_variance_with_the_sign_turned():
    levels = torch.logspace(-2, 2, 9, dtype=torch.float64)
    ours, edm = scalings(levels, "v"), scalings(levels, "edm", sigma_data=1.0)
    torch.testing.assert_close(ours.skip, edm.skip)
    torch.testing.assert_close(ours.out, -edm.out)
    torch.testing.assert_close(ours.into, edm.into)


@given(seeds, st.floats(0.001, 0.5))
def test_a_consistency_model_is_the_identity_at_its_boundary(seed, smallest):
    denoiser = network(seed, shape=[2], boundary=smallest)
    x, *_ = inputs(denoiser, seed=seed)
    torch.testing.assert_close(denoiser(x, smallest).denoised, x, rtol=0, atol=1e-7)
    assert (denoiser(x, smallest + 1).denoised - x).abs().max() > 1e-3


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.get("network", "fourier_mlp"))
def test_the_output_is_what_the_network_gives_scaled(config):
    denoiser = network(**config)
    x, sigma, label = inputs(denoiser)
    c = scalings(sigma, denoiser.config.parameterisation, denoiser.config.sigma_data, denoiser.config.boundary)
    inner = denoiser.network(beside(c.into, x) * x, sigma.log() / 4, label)
    found = denoiser(sample=x, sigma=sigma, label=label).denoised
    assert found.shape == x.shape
    torch.testing.assert_close(found, beside(c.skip, x) * x + beside(c.out, x) * inner)
    torch.testing.assert_close(denoiser(x, 0.7, label).denoised, denoiser(x, torch.full((4,), 0.7), label).denoised)


# ---- networks ----


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.get("network", "fourier_mlp"))
def test_noise_and_class_count_and_rows_do_not_meet(config):
    denoiser = network(**config)
    x, sigma, label = inputs(denoiser)
    found = denoiser(x, sigma, label).denoised
    torch.testing.assert_close(denoiser(x[1:2], sigma[1:2], None if label is None else label[1:2]).denoised, found[1:2])
    skipped = scalings(sigma, denoiser.config.parameterisation, denoiser.config.sigma_data, denoiser.config.boundary)
    inner = denoiser.network(beside(skipped.into, x) * x, sigma.log() / 4, label)
    other = denoiser.network(beside(skipped.into, x) * x, sigma.log() / 4 + 0.2, label)
    assert not torch.allclose(inner, other)
    if label is not None:
        assert not torch.allclose(denoiser(x, sigma, (label + 1) % denoiser.config.classes).denoised, found)
        null = torch.full_like(label, denoiser.config.classes)
        assert torch.equal(denoiser(x, sigma).denoised, denoiser(x, sigma, null).denoised)
    denoiser.train()
    denoiser(x, sigma, label).denoised.square().sum().backward()
    assert all(parameter.grad is not None for parameter in denoiser.parameters())


def test_sizes():
    assert parameters(network(shape=[2]))["parameters"] == 18 * 128 + 2 * 128 * 128 + 3 * 128 + 128 * 2 + 2
    digits = network(shape=[1, 8, 8], network="residual_mlp", classes=10)
    assert parameters(digits)["parameters"] == pytest.approx(500_000, rel=0.02)
    assert parameters(network(shape=[1, 8, 8], network="unet", sizes=U_NET))["parameters"] == 701_345


def test_a_network_that_needs_diffusers_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install kdbench\[diffusion\]"):
        Denoiser(DenoiserConfig(shape=[1, 8, 8], network="unet", sizes=U_NET))


# ---- guidance ----


@given(seeds, st.floats(-2.0, 8.0))
def test_guidance_goes_along_a_line(seed, weight):
    denoiser = network(seed, shape=[2], classes=3)
    x, sigma, label = inputs(denoiser, seed=seed)
    unconditional, conditional = denoiser(x, sigma).denoised, denoiser(x, sigma, label).denoised
    found = Guided(denoiser, label, weight)(x, sigma)
    torch.testing.assert_close(found, unconditional + weight * (conditional - unconditional), rtol=1e-4, atol=1e-5)


def test_without_guidance_it_is_the_conditional_model_to_the_bit():
    denoiser = network(shape=[2], classes=3)
    x, sigma, label = inputs(denoiser)
    guided = Guided(denoiser, label)
    assert torch.equal(guided(x, sigma), denoiser(x, sigma, label).denoised) and guided.evaluations == 1
    assert torch.equal(Guided(denoiser, label, 0.0)(x, sigma), denoiser(x, sigma).denoised)
    assert torch.equal(Guided(denoiser)(x, sigma), denoiser(x, sigma).denoised)
    with pytest.raises(ValueError, match="needs a class to guide to"):
        Guided(denoiser, None, 2.0)


def test_guidance_has_a_gradient():
    denoiser = network(shape=[2], classes=3)
    x, sigma, label = inputs(denoiser)
    Guided(denoiser, label, 2.0)(x.requires_grad_(), sigma).sum().backward()
    assert x.grad.abs().sum() > 0 and denoiser.network.out.weight.grad is not None


@given(st.floats(0.0, 1.0), seeds)
def test_labels_are_dropped_with_their_probability(probability, seed):
    label = torch.arange(5000) % 4
    dropped = drop_labels(label, 4, probability, torch.Generator().manual_seed(seed))
    assert set(dropped[dropped != label].tolist()) <= {4}
    assert float((dropped == 4).float().mean()) == pytest.approx(probability, abs=0.035)
    assert torch.equal(dropped, drop_labels(label, 4, probability, torch.Generator().manual_seed(seed)))


# ---- files, origins, taps ----


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.get("network", "fourier_mlp"))
def test_saved_and_loaded_it_gives_equal_outputs(config, tmp_path):
    denoiser = network(**config)
    view = dict(zip(("sample", "sigma", "label"), inputs(denoiser), strict=True))
    with quiet():
        denoiser.save_pretrained(tmp_path)
        loaded = [AutoModel.from_pretrained(tmp_path), FromFolder(str(tmp_path)).build().eval()]
    for other in loaded:
        assert isinstance(other, Denoiser) and other.config.shape == denoiser.config.shape
        assert torch.equal(other(**view).denoised, denoiser(**view).denoised)


def test_an_origin_builds_it():
    torch.manual_seed(0)
    origin = FromConfig("Denoiser", {"shape": [2]}, then=[AsConsistencyModel(0.01)])
    built = origin.build(Facts())
    assert built.training and built.config.boundary == 0.01
    torch.manual_seed(0)
    plain = FromConfig("Denoiser", {"shape": [2]}).build()
    assert all(torch.equal(*pair) for pair in zip(plain.parameters(), built.parameters(), strict=True))
    with pytest.raises(UserError, match=r"DenoiserConfig has no 'sigma'\. Did you mean 'sigma_data'"):
        FromConfig("Denoiser", {"sigma": 0.5}).build()


def test_a_tap_reads_what_is_denoised():
    denoiser = network(shape=[2])
    x, sigma, _ = inputs(denoiser)
    found = Taps(denoiser, ["denoised", "network.hidden.1"])({"sample": x, "sigma": sigma})
    assert torch.equal(found["denoised"], denoiser(x, sigma).denoised)
    assert found["network.hidden.1"].shape == (4, 128)
    check_view(denoiser, ["sample", "sigma", "label"])
    with pytest.raises(UserError, match="no input 'noise'"):
        check_view(denoiser, ["sample", "noise"])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"network": "unett"}, "There is no denoising network 'unett'. Did you mean 'unet'"),
        ({"parameterisation": "eps"}, "parameterised as edm, epsilon, v, x0: not eps"),
        ({"sigma_data": 0.0}, "sigma_data > 0"),
        ({"shape": []}, "needs a shape"),
        ({"shape": [0]}, "needs a shape"),
        ({"classes": -1}, "classes >= 0"),
        ({"parameterisation": "v", "boundary": 0.1}, "for the parameterisation 'edm' alone"),
        ({"boundary": -0.1}, "A boundary, 0 or above"),
    ],
)
def test_configs_that_make_no_denoiser(config, told):
    with pytest.raises(UserError, match=told):
        DenoiserConfig(**config)


def test_labels_of_a_denoiser_without_classes():
    denoiser = network(shape=[2])
    with pytest.raises(ValueError, match="has no classes"):
        denoiser(torch.randn(3, 2), 1.0, torch.zeros(3, dtype=torch.int64))


def test_only_a_denoiser_becomes_a_consistency_model():
    with pytest.raises(UserError, match="needs a Denoiser, and Linear is none"):
        AsConsistencyModel()(nn.Linear(2, 2), Facts())
    with pytest.raises(UserError, match="'edm' alone"):
        AsConsistencyModel()(network(shape=[2], parameterisation="v"), Facts())
    exact = ExactDenoiser(ExactDenoiserConfig())
    with pytest.raises(UserError, match="ExactDenoiser is none"):
        AsConsistencyModel()(exact, Facts())
