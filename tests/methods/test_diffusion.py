"""Diffusion methods: what each step promises, what stays as it is, exact resumption, and the sentences for mistakes."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from kdbench.callbacks.resume import ExactResume
from kdbench.data.densities import DensitySamples
from kdbench.errors import UserError
from kdbench.methods.diffusion import (
    ConsistencyDistillation,
    DenoisingTraining,
    PairRegression,
    ProgressiveDistillation,
)
from kdbench.methods.drawing import Sampling, noisy
from kdbench.methods.noise_levels import KarrasLevels, LogNormalLevels, TimestepLevels
from kdbench.methods.score_distillation import PATH, DegradationRecording, ScoreDistillation
from kdbench.models.denoiser import AsConsistencyModel, Denoiser, DenoiserConfig, Guided
from kdbench.models.origins import FromConfig, FromFolder, FromRun
from kdbench.models.samplers import euler_step
from kdbench.models.weight_path import WeightPath

FEW = {"smallest": 0.01, "largest": 10.0, "within": 8}
SMALL = {"shape": [2], "sizes": {"width": 16, "depth": 2}, "sigma_data": 0.71}


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3, betas=(0.0, 0.99))


def data(**changes):
    return DensitySamples(**{"dataset": "synthetic/ring", "batch_size": 64, "train_rows": 640} | changes)


def trainer(steps, folder, **more):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    saved = {"enable_checkpointing": False, "callbacks": [ExactResume()], "default_root_dir": folder}
    return pl.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", **quiet | saved | more)


def fitted(module, steps, folder, checkpoint=None, keep=None, **changes):
    pl.seed_everything(0, verbose=False)
    kept = {"enable_checkpointing": True, "callbacks": [ExactResume(), keep]} if keep else {}
    trainer(steps, folder, **kept).fit(module, datamodule=data(**changes), ckpt_path=checkpoint)


def still(parameters):
    """Return an optimiser that changes nothing."""
    return torch.optim.SGD(parameters, lr=0.0)


def steepest(parameters):
    """Return an optimiser whose step is the gradient."""
    return torch.optim.SGD(parameters, lr=1.0)


def weights(network):
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def same(one, other):
    return all(value.equal(other[name]) for name, value in one.items())


def prepared(module, rows=64, draw=3):
    """Return the batch that a fitted module sees of the first training rows."""
    return module.prepare(module.data.collate("train", (np.arange(rows), draw)))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a small teacher, hardly trained."""
    folder = tmp_path_factory.mktemp("teacher")
    module = DenoisingTraining(FromConfig("Denoiser", SMALL), LogNormalLevels(-0.8), optimizer=adam)
    fitted(module, 30, folder)
    module.network("student").save_pretrained(folder)
    return str(folder)


def origin(folder, *surgeries):
    return FromFolder(folder, then=list(surgeries))


def score(folder, **changes):
    return ScoreDistillation(origin(folder), origin(folder), **{"sigmas": [8.0], "optimizer": adam} | changes)


def recorded(folder, steps, tmp_path, every=4):
    """Return the folder of a path with a place every few steps."""
    module = DegradationRecording(origin(folder), origin(folder), [8.0], every, optimizer=adam)
    fitted(module, steps, tmp_path)
    return FromRun("recording.yaml", PATH, run=str(tmp_path)), module


# ---- the data and what is drawn for them ----


def test_what_is_drawn_for_a_batch_depends_on_its_rows_and_their_draw_alone(teacher, tmp_path):
    module = DenoisingTraining(origin(teacher), optimizer=still)
    fitted(module, 1, tmp_path)
    first, again, later = prepared(module), prepared(module), prepared(module, draw=4)
    assert first["inputs"]["sample"].equal(again["inputs"]["sample"])
    assert first["clean"].equal(later["clean"])
    assert not first["sigma"].equal(later["sigma"])
    noise = (first["inputs"]["sample"] - first["clean"]) / first["sigma"][:, None]
    assert noise.mean().abs() < 0.3
    assert 0.7 < noise.std() < 1.3


def test_levels_are_those_of_their_tables():
    generator = torch.Generator().manual_seed(0)
    drawn = KarrasLevels(first=20, last=980).draw(5000, generator)
    whole = KarrasLevels().table
    assert drawn.min() >= whole[20]
    assert drawn.max() <= whole[980]
    assert len(drawn.unique()) > 900
    assert TimestepLevels("linear").table[0] == pytest.approx(0.0100, abs=1e-4)
    logs = LogNormalLevels(-0.8, 1.2).draw(20000, generator).log()
    assert (float(logs.mean()), float(logs.std())) == pytest.approx((-0.8, 1.2), abs=0.03)
    with pytest.raises(ValueError, match="of 1000 noise levels first <= last are numbers from 0, got 20 and 1000"):
        KarrasLevels(first=20, last=1000)


def test_images_are_brought_to_minus_one_and_one_and_keep_their_classes(tmp_path):
    config = {"shape": [1, 8, 8], "network": "residual_mlp", "sizes": {"width": 16, "blocks": 1}, "classes": 10}
    module = DenoisingTraining(FromConfig("Denoiser", config), label_dropout=0.5, optimizer=still)
    digits = {"dataset": "vision/digits", "samples": "image", "label": "label", "value_range": [0, 255]}
    fitted(module, 1, tmp_path, train_rows=None, **digits)
    batch = prepared(module, rows=500)
    assert (batch["clean"].min(), batch["clean"].max()) == (-1, 1)
    dropped = batch["inputs"]["label"] == 10
    assert 0.4 < dropped.float().mean() < 0.6
    labels = module.data.table("train")["label"][:500]
    assert batch["inputs"]["label"][~dropped].equal(labels[~dropped])


# ---- training and evaluation ----


def test_the_moving_average_is_what_is_scored_and_exported(tmp_path):
    module = DenoisingTraining(FromConfig("Denoiser", SMALL), average_decay=0.9, optimizer=adam)
    fitted(module, 5, tmp_path)
    assert int(module.average.updates) == 5
    assert module.network("student") is module.average.network
    assert not same(weights(module.student), weights(module.network("student")))


def test_the_test_tells_distances_modes_costs_and_the_noise_floor(teacher, tmp_path):
    sampling = {"student": Sampling("heun", 4, **FEW), "few": Sampling("euler", 1, **FEW)}
    module = DenoisingTraining(origin(teacher), sampling=sampling, references={"few": teacher})
    (told,) = trainer(1, tmp_path).test(module, datamodule=data(), verbose=False)
    assert (told["test/nfe@student"], told["test/nfe@few"]) == (7, 1)
    assert told["test/modes@data"] == 8
    assert told["test/within@data"] > 0.99
    assert told["test/sliced_wasserstein@data"] < 0.05 < told["test/sliced_wasserstein@few"]
    assert told["test/mmd@data"] < 0.001 < told["test/mmd@few"]
    assert told["test/seconds_per_sample@student"] > 0


def test_a_judge_compares_classes(tmp_path):
    sizes = {"shape": [1, 8, 8], "network": "residual_mlp", "sizes": {"width": 16, "blocks": 1}, "classes": 10}
    judge = FromConfig("MLPClassifier", {"inputs": 64, "widths": [6], "num_labels": 10})
    module = DenoisingTraining(
        FromConfig("Denoiser", sizes), sampling={"student": Sampling("euler", 2, per_row=2)}, judge=judge
    )
    digits = {"dataset": "vision/digits", "samples": "image", "label": "label", "value_range": [0, 255]}
    (told,) = trainer(1, tmp_path).test(module, datamodule=data(train_rows=None, **digits), verbose=False)
    assert module.task.chosen_by == ("frechet", "lowest")
    assert told["test/frechet@data"] < told["test/frechet@student"]
    for name in ("accuracy", "diversity_pairwise", "pixel_diversity_pairwise", "sliced_wasserstein"):
        assert told[f"test/{name}@student"] >= 0
    assert "judge" not in {name.split(".")[0] for name in module.state_dict()}


# ---- distillation along trajectories ----


def test_one_step_to_the_progressive_target_lands_where_two_of_the_teacher_do(teacher, tmp_path):
    sampling = {"student": Sampling("euler", 4, **FEW)}
    module = ProgressiveDistillation(origin(teacher), origin(teacher), sampling, optimizer=still)
    fitted(module, 1, tmp_path)
    batch = prepared(module)
    assert set(batch["sigma"].tolist()) == set(module.grid[:-1:2].tolist()), "N levels, those that are sampled"
    torch.testing.assert_close(module.grid[::2].double(), module.sampling["student"].grid(), rtol=1e-6, atol=0)
    x, sigma, after, landed = batch["inputs"]["sample"], batch["sigma"], batch["after"], batch["landed"]
    denoise = Guided(module.network("teacher"))
    middle = euler_step(x, denoise(x, sigma), sigma, after)
    expected = euler_step(middle, denoise(middle, after), after, landed)
    target = module.teach(batch)["teacher"]["denoised"]
    torch.testing.assert_close(euler_step(x, target, sigma, landed), expected, rtol=1e-4, atol=1e-5)
    last = landed == 0
    torch.testing.assert_close(target[last], denoise(middle, after)[last], rtol=1e-3, atol=1e-4)


def test_a_consistency_model_follows_a_teacher_that_is_exact(tmp_path):
    """For data N(0, d^2) the flow is ``x sqrt((d^2 + s'^2) / (d^2 + s^2))``; its target is nearly constant along it."""
    flow = {"means": [[0.0, 0.0]], "stds": 0.71}
    student = FromConfig("Denoiser", SMALL, then=[AsConsistencyModel(0.01)])
    module = ConsistencyDistillation(student, FromConfig("ExactDenoiser", flow), largest=10.0, optimizer=still)
    fitted(module, 1, tmp_path)
    batch = prepared(module)
    assert batch["sigma"].max() <= 10
    assert batch["after"].min() >= 0.0099
    assert (batch["after"] < batch["sigma"]).all(), "N points have N - 1 intervals"
    asked = []
    module.target.network.forward = lambda *view: asked.append(view) or module.student(*view)
    module.teach(batch)
    ((ahead, level, _),) = asked
    assert level.equal(batch["after"])
    ratio = ((0.71**2 + batch["after"] ** 2) / (0.71**2 + batch["sigma"] ** 2)).sqrt()
    torch.testing.assert_close(ahead, ratio[:, None] * batch["inputs"]["sample"], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_target_of_a_consistency_model_follows_the_student(decay, teacher, tmp_path):
    student = origin(teacher, AsConsistencyModel(0.01))
    module = ConsistencyDistillation(student, origin(teacher), largest=10.0, target_decay=decay, optimizer=adam)
    fitted(module, 3, tmp_path)
    assert same(weights(module.student), weights(module.target.network)) == (decay == 0)
    assert not same(weights(module.student), weights(module.network("teacher")))


def test_pairs_are_made_once_by_the_sampling_of_the_teacher(teacher, tmp_path):
    sampling = {"student": Sampling("euler", 1, **FEW), "teacher": Sampling("heun", 4, **FEW)}
    module = PairRegression(origin(teacher), origin(teacher), sampling, optimizer=still)
    fitted(module, 1, tmp_path)
    batch = prepared(module)
    assert batch["sigma"].unique().tolist() == [10.0]
    again = module.solved(batch["inputs"]["sample"] / 10, None)
    torch.testing.assert_close(module.teach(batch)["teacher"]["denoised"], again)
    assert len(module.made) == 640


# ---- score distillation ----


def test_the_first_gradient_is_0_when_the_fake_score_is_the_target(teacher, tmp_path):
    frozen = score(teacher, order="generator_first", optimizer=steepest, fake_optimizer=still)
    fitted(frozen, 1, tmp_path)
    assert same(weights(frozen.student), weights(frozen.network("teacher")))
    after_the_fake = score(teacher, optimizer=steepest, fake_optimizer=adam)
    fitted(after_the_fake, 1, tmp_path)
    assert not same(weights(after_the_fake.student), weights(after_the_fake.network("teacher")))


def test_the_first_gradient_of_a_path_is_between_its_last_two_places(teacher, tmp_path):
    path, _ = recorded(teacher, 8, tmp_path)
    module = score(teacher, path=path, order="generator_first", optimizer=steepest, fake_optimizer=still)
    fitted(module, 1, tmp_path)
    assert not same(weights(module.student), weights(module.network("teacher")))
    assert same(weights(module.fake), loaded(path, 2)), "the fake score begins at the end"
    assert same(weights(module.target()), loaded(path, 1))


def loaded(path, place):
    network = Denoiser(DenoiserConfig(**SMALL))
    WeightPath(path.path()).load(place, network)
    return weights(network)


def test_a_recording_changes_the_score_and_leaves_its_way(teacher, tmp_path):
    path, module = recorded(teacher, 8, tmp_path)
    assert len(WeightPath(path.path())) == 3
    assert same(loaded(path, 0), weights(module.network("generator"))), "the first place is the teacher"
    assert same(loaded(path, 2), weights(module.student)), "the last is what the run leaves"
    assert not same(loaded(path, 0), loaded(path, 1))
    batch = prepared(module)
    start = 8 * torch.randn(64, 2, generator=module.noise_of(prepared(module)))
    made = module.network("generator")(start, 8.0).denoised
    torch.testing.assert_close(batch["clean"], made)


def test_a_path_of_one_place_is_diff_instruct(teacher, tmp_path):
    path = FromRun("recording.yaml", PATH, run=str(tmp_path))
    plain, along = score(teacher), score(teacher, path=path)
    WeightPath(tmp_path / PATH).save(0, origin(teacher).build())
    for module in (plain, along):
        fitted(module, 4, tmp_path)
    assert same(weights(plain), weights(along))


@pytest.mark.parametrize("scaling", ["diff_instruct", "dmd"])
def test_teacher_and_path_stay_what_they_are(scaling, teacher, tmp_path):
    path, _ = recorded(teacher, 8, tmp_path)
    before = [file.read_bytes() for file in sorted(path.path().iterdir())]
    module = score(teacher, path=path, interval=1, scaling=scaling)
    fitted(module, 4, tmp_path)
    assert [file.read_bytes() for file in sorted(path.path().iterdir())] == before
    assert same(weights(module.network("teacher")), weights(origin(teacher).build()))
    assert same(weights(module.target()), weights(module.network("teacher"))), "the last target"
    assert not same(weights(module.student), weights(module.network("teacher")))


def test_targets_change_with_the_updates_of_the_generator(teacher, tmp_path):
    class Watched(ScoreDistillation):
        def after_update(self, update):
            super().after_update(update)
            seen.append((update, self._last - self._place if update == "generator" else None))

    path, _ = recorded(teacher, 12, tmp_path)
    seen = []
    module = Watched(origin(teacher), origin(teacher), [8.0], path=path, interval=2, fake_updates=3, optimizer=adam)
    fitted(module, 16, tmp_path)
    assert [place for update, place in seen if update == "generator"] == [1, 1, 2, 2, 3, 3]
    assert sum(update == "fake" for update, _ in seen) == 16


def test_the_moving_average_of_a_generator_counts_its_updates(teacher, tmp_path):
    module = score(teacher, fake_updates=2, average_decay=0.9)
    fitted(module, 5, tmp_path)
    assert int(module.average.updates) == 3
    assert not same(weights(module.network("student")), weights(module.student))
    assert not same(weights(module.network("student")), weights(module.network("teacher")))


def test_of_several_steps_each_sees_what_the_generator_makes_in_the_steps_before(teacher, tmp_path):
    sigmas = [10.0, 1.2, 0.5, 0.2]
    module = score(teacher, sigmas=sigmas, optimizer=still)
    fitted(module, 1, tmp_path)
    asked = []
    forward = module.student.forward
    module.student.forward = lambda x, sigma, label=None: asked.append(sigma) or forward(x, sigma, label)
    lengths = set()
    for draw in range(40):
        asked.clear()
        batch = prepared(module, rows=2, draw=draw)
        with torch.no_grad():
            module.terms("generator", batch)
        levels = [float(torch.as_tensor(each).flatten()[0]) for each in asked]
        assert levels == pytest.approx(sigmas[: len(levels)])
        lengths.add(len(levels))
    assert lengths == {1, 2, 3, 4}
    assert module.sampling["student"].grid().tolist() == [*sigmas, 0.0]


def test_only_the_real_score_is_guided(tmp_path):
    config = {"shape": [1, 8, 8], "network": "residual_mlp", "sizes": {"width": 16, "blocks": 1}, "classes": 10}
    digits = {"dataset": "vision/digits", "samples": "image", "label": "label", "value_range": [0, 255]}
    student = FromConfig("Denoiser", config)
    module = ScoreDistillation(
        student, student, [10.0, 1.0], "dmd", "generator_first", 3, guidance=2.0, optimizer=still
    )
    fitted(module, 1, tmp_path, train_rows=None, **digits)
    module.fake.load_state_dict(module.network("teacher").state_dict())
    made, sigma, label = torch.randn(4, 1, 8, 8), torch.ones(4), torch.arange(4)
    noised = noisy(made, sigma, torch.Generator().manual_seed(0))
    made.requires_grad_()
    module.generator_loss(made, noised, sigma, label).backward()
    conditional, free = (module.fake(noised, sigma, each).denoised for each in (label, torch.full((4,), 10)))
    real = free + 2 * (conditional - free)
    scale = (made - real).abs().flatten(1).mean(1)[:, None, None, None]
    torch.testing.assert_close(made.grad, (conditional - real).div(scale).div(made.numel()).detach())


# ---- exact resumption ----


def families(folder, path):
    few = {"student": Sampling("euler", 4, **FEW)}
    pair = (origin(folder), origin(folder))
    return {
        "teacher": lambda: DenoisingTraining(origin(folder), average_decay=0.9, optimizer=adam),
        "progressive": lambda: ProgressiveDistillation(*pair, few, optimizer=adam),
        "consistency": lambda: ConsistencyDistillation(
            origin(folder, AsConsistencyModel(0.01)), pair[1], largest=10.0, target_decay=0.9, optimizer=adam
        ),
        "regression": lambda: PairRegression(*pair, few, optimizer=adam),
        "recording": lambda: DegradationRecording(*pair, [8.0], 4, optimizer=adam),
        "diff_instruct": lambda: score(folder, average_decay=0.9),
        "dmd": lambda: score(folder, sigmas=[8.0, 1.0], scaling="dmd", order="generator_first", fake_updates=3),
        "disback": lambda: score(folder, path=path, interval=3),
    }


@pytest.mark.parametrize(
    "name", ["teacher", "progressive", "consistency", "regression", "recording", "diff_instruct", "dmd", "disback"]
)
def test_a_resumed_fit_ends_with_the_same_bits(name, teacher, tmp_path):
    path, _ = recorded(teacher, 8, tmp_path / "path")
    make = families(teacher, path)[name]
    kept = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=12, save_top_k=-1)
    whole, resumed = make(), make()
    fitted(whole, 16, tmp_path / "whole", keep=kept)  # 10 batches an epoch
    fitted(resumed, 16, tmp_path / "resumed", checkpoint=str(tmp_path / "step=12.ckpt"))
    assert same(weights(whole), weights(resumed))
    if name == "recording":
        assert same(loaded_from(tmp_path / "whole", 4), loaded_from(tmp_path / "resumed", 4))


def loaded_from(folder, place):
    return loaded(FromRun("recording.yaml", PATH, run=str(folder)), place)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "sampling takes a step or more for a sample or more, got 0 and 1"),
        ({"sampler": "oiler"}, "there is no sampler 'oiler'. Did you mean 'euler'?"),
        ({"steps": 3, "within": 8}, "3 steps within 8 need a multiple of 3"),
        ({"levels": [1.0, 10.0]}, "the levels of sampling descend and are above 0, got [1.0, 10.0]"),
        ({"levels": [1.0, 0.0]}, "the levels of sampling descend and are above 0, got [1.0, 0.0]"),
        ({"levels": []}, "the levels of sampling descend and are above 0, got []"),
    ],
)
def test_impossible_samplings(settings, sentence):
    with pytest.raises(ValueError) as raised:
        Sampling(**settings)
    assert str(raised.value) == sentence


def test_impossible_numbers(teacher):
    with pytest.raises(ValueError, match=r"sampling names 'teacherr', which is no network. Did you mean 'teacher'?"):
        score(teacher, sampling={"teacherr": Sampling()})
    with pytest.raises(ValueError, match="levels is 2 or more, got 1"):
        ConsistencyDistillation(origin(teacher), origin(teacher), levels=1)
    with pytest.raises(ValueError, match=r"sample the student 'within' a grid of a multiple of 8, got None"):
        ProgressiveDistillation(origin(teacher), origin(teacher), {"student": Sampling("euler", 4)})
    with pytest.raises(ValueError, match="after 1 update or more, got interval 0"):
        score(teacher, interval=0)
    with pytest.raises(ValueError, match="label_dropout is a share below 1, got 1"):
        DenoisingTraining(origin(teacher), label_dropout=1.0)


def test_a_path_of_another_architecture(teacher, tmp_path):
    path = FromRun("recording.yaml", PATH, run=str(tmp_path))
    with pytest.raises(UserError, match="holds no path: name what a DegradationRecording left"):
        fitted(score(teacher, path=path), 1, tmp_path)
    other = Denoiser(DenoiserConfig(**SMALL | {"sizes": {"width": 8, "depth": 2}}))
    WeightPath(tmp_path / PATH).save(0, other)
    with pytest.raises(
        UserError, match=r"are of another architecture than the network .*: record the path from the same"
    ):
        fitted(score(teacher, path=path), 1, tmp_path)


def test_what_does_not_fit_together_is_told_before_the_first_step(teacher, tmp_path):
    with pytest.raises(UserError, match=r"samples \[2\] in 0 classes, the student is made for \[3\] in 0"):
        fitted(DenoisingTraining(FromConfig("Denoiser", {"shape": [3]})), 1, tmp_path)
    with pytest.raises(UserError, match=r"give its origin 'then: \[{class_path: AsConsistencyModel"):
        fitted(ConsistencyDistillation(origin(teacher), origin(teacher)), 1, tmp_path)
    with pytest.raises(UserError, match=r"trainer.max_steps is a multiple of 4, not 6"):
        recorded(teacher, 6, tmp_path)
    with pytest.raises(UserError, match=r"label_dropout drops labels: name their field in data.label"):
        fitted(DenoisingTraining(origin(teacher), label_dropout=0.1), 1, tmp_path)
    with pytest.raises(UserError, match=r"There is no folder .*: fit the experiment that leaves it"):
        judge = FromFolder(str(tmp_path / "nowhere"))
        fitted(DenoisingTraining(origin(teacher), judge=judge), 1, tmp_path)
