"""Concept sliders: the direction, the loss, and a fit that leaves a LoRA for other networks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdbench.data.registry import load
from kdbench.errors import UserError
from kdbench.losses.denoising import denoising_loss
from kdbench.methods.sliders import BetweenClasses, MeanHalves
from kdbench.models.deltas import loras, scaled
from kdbench.models.denoiser import Denoiser, DenoiserConfig
from kdbench.models.origins import FromFolder
from kdbench.suite import chain, experiment, fit

LABELS = [str(digit) for digit in range(10)]
SMALL = {"width": 16, "blocks": 1}


def denoiser(seed=0, **sizes):
    torch.manual_seed(seed)
    return Denoiser(DenoiserConfig([1, 8, 8], "residual_mlp", SMALL | sizes, sigma_data=0.75, classes=10))


def digits():
    rows = load("vision/digits", "embedded", "train")
    samples = torch.stack([torch.from_numpy(row["image"]) for row in rows]) / 127.5 - 1
    return samples, torch.tensor([int(row["label"]) for row in rows])


# ---- directions ----


def test_the_halves_of_each_class_differ_by_the_direction():
    samples, label = digits()
    direction = MeanHalves()
    direction.learn(SimpleNamespace(table=lambda split: {"sample": samples, "label": label}))
    found = direction(None, samples[:50], None, label[:50])
    for digit in range(10):
        group = samples[label == digit].numpy()
        order = group.mean((1, 2, 3)).argsort()
        half = len(group) // 2
        thin, thick = group[order[: len(group) - half]], group[order[len(group) - half :]]
        expected = torch.from_numpy(thick.mean(0) - thin.mean(0))
        for row in found[label[:50] == digit]:
            torch.testing.assert_close(row, expected)
    assert (direction.attribute(found) > 0.05).all()


def test_halves_without_classes():
    samples, _ = digits()
    direction = MeanHalves()
    direction.learn(SimpleNamespace(table=lambda split: {"sample": samples}))
    found = direction(None, samples[:3], None, None)
    assert torch.equal(found[0], found[2])
    assert found[0].mean() > 0


def test_between_classes_is_the_difference_of_what_the_base_thinks():
    direction, base = BetweenClasses("8", "3"), denoiser()
    direction.learn(SimpleNamespace(labels=LABELS))
    x, sigma = torch.randn(4, 1, 8, 8), torch.full((4,), 1.5)
    more, less = (base(x, sigma, torch.full((4,), digit)).denoised for digit in (8, 3))
    torch.testing.assert_close(direction(base, x, sigma, torch.arange(4)), more - less)
    logits = torch.randn(4, 10)
    expected = logits.log_softmax(-1)[:, 8] - logits.log_softmax(-1)[:, 3]
    torch.testing.assert_close(direction.attribute(x, logits), expected)
    with pytest.raises(UserError, match="give 'judge'"):
        direction.attribute(x, None)
    with pytest.raises(UserError, match="no class 'eight'"):
        BetweenClasses("eight", "3").learn(SimpleNamespace(labels=LABELS))


def test_the_target_of_denoised_samples_is_that_of_noise_predictions():
    """``eps_target = eps + eta (eps+ - eps-)`` and the mean squared error of eps, in the weighting ``epsilon``."""
    generator = torch.Generator().manual_seed(0)
    x, own, base, more, less = torch.randn(5, 6, 1, 8, 8, generator=generator, dtype=torch.float64)
    sigma, eta = torch.rand(6, generator=generator, dtype=torch.float64) + 0.1, 0.7
    ours, neutral, positive, negative = ((x - each) / sigma[:, None, None, None] for each in (own, base, more, less))
    expected = (ours - (neutral + eta * (positive - negative))).square().mean()
    found = denoising_loss(own, base + eta * (more - less), sigma, "epsilon")
    torch.testing.assert_close(found, expected)


# ---- the fit ----


@pytest.fixture
def slider(monkeypatch, tmp_path):
    """Return the planned experiment of a slider of a small denoiser, with changes."""
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "runs"))
    denoiser().save_pretrained(tmp_path / "base")
    origin = {"class_path": "FromFolder", "init_args": {"folder": str(tmp_path / "base")}}

    def plan(changes=()):
        with_lora = {"class_path": "FromFolder", "init_args": {**origin["init_args"], "then": ["AddLoRA"]}}
        settings = {
            "model.student": with_lora,
            "model.base": origin,
            "model.judge": None,
            "model.sampling": {"student": {"sampler": "euler", "levels": [10.0, 1.0, 0.3]}},
            "trainer.max_steps": 4,
            "trainer.check_val_every_n_epoch": 1,
            **dict(changes),
        }
        asked = experiment.read("experiments/diversity_distillation/slider.yaml", overrides=list(settings.items()))
        return chain.plan(asked)

    return plan


def built(stage):
    with fit.friendly(stage):
        cli = fit.build(stage, [], False)
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    return cli


def test_the_loss_of_a_fresh_slider_is_the_length_of_the_way(slider):
    """A fresh LoRA changes nothing, so that what is missing is ``c eta d`` at every level and on both sides."""
    cli = built(slider({"model.eta": 0.7}.items()))
    module, sides = cli.model, set()
    for rows in range(8):
        batch = cli.datamodule.collate("train", (np.arange(2 + rows), rows))
        batch = module.prepare(batch)
        teacher = module.teach(batch)
        (value,) = module.objective(module.learn(batch, teacher), teacher, batch).values()
        expected = (0.7 * module.direction.directions[batch["inputs"]["label"]]).square().mean()
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-7)
        assert batch["sigma"][0] in torch.tensor([10.0, 1.0, 0.3])
        sides.add(batch["scale"])
    assert sides == {1.0, -1.0}


def test_samples_are_half_made_by_the_network_with_its_lora_on_the_side_of_the_batch(slider):
    module = (cli := built(slider())).model
    for lora in loras(module.student).values():
        torch.nn.init.normal_(lora.up.weight)
    for draw in range(20):
        batch = module.prepare(cli.datamodule.collate("train", (np.arange(3), draw)))
        if batch["sigma"][0] == 1.0:
            break
    noise = torch.randn(3, 1, 8, 8, generator=replayed(module, batch))
    with scaled(module.student, batch["scale"]), torch.no_grad():
        denoised = module.student(10 * noise, 10.0, batch["inputs"]["label"]).denoised
    torch.testing.assert_close(
        batch["inputs"]["sample"], denoised + 0.1 * (10 * noise - denoised), rtol=1e-4, atol=1e-4
    )


def replayed(module, batch):
    """The generator of a batch after what is drawn before its noise: the level and the side."""
    generator = module.noise_of(batch)
    for end in (3, 2):
        torch.randint(end, (), generator=generator)
    return generator


def test_a_fit_leaves_a_lora_and_the_base_as_it_was(slider, tmp_path):
    stage = slider()
    record = fit.fit(stage, quiet=True)
    lora = {"class_path": "FromFolder", "init_args": {"folder": str(stage.folder / "lora")}}
    then = [{"class_path": "ApplyLoRA", "init_args": {"lora": lora, "scale": None}}]
    student = FromFolder(str(stage.folder / "student")).build()
    base = denoiser()
    assert student.state_dict().keys() == base.state_dict().keys()
    x, label = torch.randn(4, 1, 8, 8), torch.arange(4)
    assert not torch.allclose(student(x, 1.0, label).denoised, base(x, 1.0, label).denoised)
    kept = FromFolder(str(tmp_path / "base")).build()
    assert all(torch.equal(value, kept.state_dict()[name]) for name, value in base.state_dict().items())
    names = ["at_minus_2", "at_minus_1", "at_1", "at_2"]
    for name in names:
        assert record["metrics"][f"test/moved@{name}"] > 0
    assert record["metrics"]["test/attribute@student"] == record["metrics"]["test/attribute@at_1"]
    # The LoRA on another network of the same names, tested and not fitted.
    other = tmp_path / "other"
    denoiser(1).save_pretrained(other)
    folder = {"folder": str(other)}
    transfer = slider(
        {
            "model.student": {"class_path": "FromFolder", "init_args": {**folder, "then": then}},
            "model.base": {"class_path": "FromFolder", "init_args": folder},
            "model.scales": [-1.0, 0.0, 0.5],
            "fit": False,
        }.items()
    )
    metrics = fit.fit(transfer, quiet=True)["metrics"]
    assert metrics["test/moved@at_0"] == metrics["test/effect@at_0"] == 0
    assert metrics["test/attribute@at_minus_1"] - metrics["test/attribute@base"] == pytest.approx(
        metrics["test/effect@at_minus_1"], abs=1e-6
    )
    assert metrics["test/moved@at_0_5"] > 0


@pytest.mark.slow
def test_the_attribute_rises_with_the_scale(slider, tmp_path):
    """With a base that knows nothing but the mean, the slider moves it up and down."""
    changes = {"trainer.max_steps": 400, "trainer.check_val_every_n_epoch": 50, "model.optimizer.lr": 5.0e-3}
    metrics = fit.fit(slider(changes.items()), quiet=True)["metrics"]
    effects = [metrics[f"test/effect@{name}"] for name in ("at_minus_2", "at_minus_1", "at_1", "at_2")]
    assert effects == sorted(effects)
    assert effects[1] < 0 < effects[2]


def test_a_slider_without_a_lora_is_told(slider, tmp_path):
    plain = {"class_path": "FromFolder", "init_args": {"folder": str(tmp_path / "base")}}
    with pytest.raises(UserError, match="A slider is a LoRA"):
        built(slider({"model.student": plain}.items()))


def test_a_lora_of_another_architecture_is_one_sentence(slider, tmp_path):
    stage = slider()
    fit.fit(stage, quiet=True)
    denoiser(blocks=2, width=8).save_pretrained(tmp_path / "other")
    lora = {"class_path": "FromFolder", "init_args": {"folder": str(stage.folder / "lora")}}
    then = [{"class_path": "ApplyLoRA", "init_args": {"lora": lora}}]
    other = {"class_path": "FromFolder", "init_args": {"folder": str(tmp_path / "other"), "then": then}}
    with pytest.raises(UserError, match="learnt on another architecture: Denoiser has no layer"):
        built(slider({"model.student": other}.items()))
