"""Hybrid sampling: routes, their costs, what the two networks hand over, and what they think on the way."""

import base64

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.errors import UserError
from kdbench.methods.drawing import Sampling
from kdbench.methods.hybrid import HybridSampling, Thoughts
from kdbench.methods.routes import OwnTimestep, Stretch, Stretches
from kdbench.models.denoiser import Denoiser, DenoiserConfig
from kdbench.models.origins import FromFolder
from kdbench.suite import chain, experiment, fit

LEVELS = [10.0, 1.2, 0.5, 0.2, 0.0]


# ---- routes ----


def test_a_stretch_walks_each_gap_in_steps_of_equal_ratio():
    grid = Stretch("base", [10.0, 1.2, 0.3, 0.0], steps=4).grid()
    assert len(grid) == 10
    assert grid[[0, 4, 8, 9]].tolist() == [10.0, 1.2, 0.3, 0.0]
    ratios = grid[1:-1] / grid[:-2]
    torch.testing.assert_close(ratios[:4], torch.full((4,), 0.12, dtype=torch.float64) ** 0.25)
    torch.testing.assert_close(ratios[4:], torch.full((4,), 0.25, dtype=torch.float64) ** 0.25)


@given(st.lists(st.floats(1e-3, 100), min_size=1, max_size=5, unique=True))
def test_one_step_for_each_gap_is_the_levels_themselves(levels):
    levels = [*sorted(levels, reverse=True), 0.0]
    assert Stretch("student", levels).grid().tolist() == levels


@pytest.mark.parametrize(
    ("base", "spacing", "own", "steps"),
    [(20, "leading", 1, 4), (50, "leading", 1, 11), (4, "lcm", 1, 1), (4, "lcm", 2, 2)],
)
def test_the_base_goes_to_a_timestep_of_the_student(base, spacing, own, steps):
    route = OwnTimestep(base, 4, own, spacing="lcm", base_spacing=spacing)
    assert route.steps == steps
    first, second = route.legs()
    assert (len(first.grid), len(second.grid)) == (steps + 1, 5 - own)
    assert (first.network, first.guidance, second.network, second.guidance) == ("base", 7.0, "student", 1.0)
    assert second.grid[-1] == 0


def test_the_student_or_the_base_alone():
    nothing, all_of_it = OwnTimestep(20, 4, own=0).legs()
    assert (len(nothing.grid), len(all_of_it.grid)) == (1, 5)
    all_of_it, nothing = OwnTimestep(20, 4, own=4).legs()
    assert (len(all_of_it.grid), len(nothing.grid)) == (21, 1)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Stretch("base", [1.2, 10.0]), "levels of a stretch descend"),
        (lambda: Stretch("base", [10.0, 10.0]), "levels of a stretch descend"),
        (lambda: Stretch("base", [10.0, -1.0]), "levels of a stretch descend"),
        (lambda: Stretch("base", []), "levels of a stretch descend"),
        (lambda: Stretch("base", [10.0, 1.2], steps=0), "one step or more"),
        (lambda: Stretch("base", [10.0, 1.2], sampler="eulr"), "Did you mean 'euler'"),
        (lambda: Stretches([]), "one stretch or more"),
        (lambda: Stretches([Stretch("base", [10.0, 1.2]), Stretch("student", [1.0, 0.0])]), "at the level 1.2, not 1"),
        (lambda: Stretches([Stretch("base", [10.0, 1.2])]), "ends at the level 0, not 1.2"),
        (lambda: OwnTimestep(20, 4, own=5), "timesteps 0 to 4, got 5"),
        (lambda: OwnTimestep(20, 4, sampler="lmc"), "no sampler 'lmc'"),
        (lambda: OwnTimestep(0, 4), "1 to 1000 of them, not 0"),
        (lambda: OwnTimestep(20, 0, own=0), "1 to 1000 of them, not 0"),
        (lambda: HybridSampling(FromFolder("a"), FromFolder("b"), Stretches([Stretch("teacher", LEVELS)])), "not by 'teacher'"),
    ],
)  # fmt: skip
def test_mistakes_are_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()


# ---- sampling ----


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Folders of two denoisers of the digits, with random weights."""
    folders = {}
    for seed, name in enumerate(("base", "student")):
        torch.manual_seed(seed)
        sizes = {"width": 16, "blocks": 1}
        config = DenoiserConfig([1, 8, 8], "residual_mlp", sizes, sigma_data=0.75, classes=10)
        folders[name] = tmp_path_factory.mktemp(name)
        Denoiser(config).save_pretrained(folders[name])
    return folders


@pytest.fixture
def tested(networks, monkeypatch, tmp_path):
    """Make and test a hybrid; the result is the module and what it measured."""
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path))

    def run(route, **model):
        arguments = {
            **{name: {"class_path": "FromFolder", "init_args": {"folder": str(networks[name])}} for name in networks},
            "route": route,
            "sampling": {"base": {"sampler": "euler", "levels": LEVELS[:-1]}},
            **model,
        }
        asked = experiment.read("experiments/diversity_distillation.yaml")
        asked.config["model"] = {"class_path": "HybridSampling", "init_args": arguments}
        asked = experiment.Experiment(asked.name, asked.root, experiment.expand(asked.config))
        stage, drawn = chain.plan(asked), {}
        with fit.friendly(stage):
            cli = fit.build(stage, [], False)
            answer = cli.model.answer

            def kept(name, batch):
                drawn[name] = answer(name, batch)
                return drawn[name]

            monkeypatch.setattr(cli.model, "answer", kept)
            (metrics,) = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
        return cli.model, metrics, drawn

    return run


def stretches(*parts, **settings):
    names = ("network", "levels", "sampler")
    told = [dict(zip(names, part, strict=True)) | settings for part in parts]
    return {"class_path": "Stretches", "init_args": {"stretches": told}}


@pytest.mark.parametrize("sampler", ["euler", "consistency"])
def test_what_is_drawn_does_not_depend_on_who_is_called_the_student(tested, sampler):
    """The base alone, as it is sampled for comparison, is the route that the base goes all the way; to the last bit."""
    *_, drawn = tested(
        stretches(("base", LEVELS, sampler)), sampling={"base": {"sampler": sampler, "levels": LEVELS[:-1]}}
    )
    assert torch.equal(drawn["student"]["samples"], drawn["base"]["samples"])


@pytest.mark.parametrize("own", [1, 2, 3])
def test_a_student_that_is_the_base_changes_nothing(tested, networks, own):
    route = stretches(("base", LEVELS[: own + 1], "consistency"), ("student", LEVELS[own:], "consistency"))
    same = {"class_path": "FromFolder", "init_args": {"folder": str(networks["base"])}}
    *_, drawn = tested(route, student=same, sampling={"base": {"sampler": "consistency", "levels": LEVELS[:-1]}})
    assert torch.equal(drawn["student"]["samples"], drawn["base"]["samples"])


def test_costs_are_told_by_network(tested):
    route = stretches(("base", LEVELS[:2], "euler"), ("student", LEVELS[1:], "consistency"), steps=2)
    route["init_args"]["stretches"][0]["guidance"] = 2.0
    _, metrics, _ = tested(route)
    assert metrics["test/nfe_of_base@student"] == 4  # two guided steps
    assert metrics["test/nfe_of_student@student"] == 5  # twice two, and one to 0
    assert metrics["test/nfe@student"] == 9
    assert metrics["test/nfe@base"] == 4
    parts = metrics["test/seconds_of_base@student"] + metrics["test/seconds_of_student@student"]
    assert parts == pytest.approx(metrics["test/seconds_per_sample@student"], rel=0.01)


def test_timesteps_hand_over_in_the_other_form(tested):
    route = {"class_path": "OwnTimestep", "init_args": {"base_steps": 5, "own": 4, "guidance": 1.0, "sampler": "euler"}}
    module, metrics, drawn = tested(route)
    assert module.route.form == "vp"
    assert metrics["test/nfe_of_base@student"] == 5
    assert metrics["test/nfe_of_student@student"] == 0
    assert drawn["student"]["samples"].isfinite().all()


def test_thoughts_end_at_the_sample(tested):
    route = stretches(("base", LEVELS[:2], "euler"), ("student", LEVELS[1:], "consistency"))
    module, metrics, drawn = tested(route, thoughts=True)
    for name in ("student", "base"):
        lines = module.pictures[f"thoughts_{name}"].lines
        assert lines["distance"] == [metrics[f"test/thought_distance_{step}@{name}"] for step in (1, 2, 3, 4)]
        assert lines["distance"][0] > 0
        assert lines["distance"][-1] == pytest.approx(0, abs=1e-5)
        assert lines["diversity"][-1] == pytest.approx(pairwise(drawn[name]), rel=1e-5)
        shown = module.pictures[f"images_{name}"]
        assert (len(shown.y), shown.x) == (10, ["10", "1.2", "0.5", "0.2", "sample"])
        grey = torch.frombuffer(bytearray(base64.b64decode(shown.pixels)), dtype=torch.uint8).reshape(10, 5, 8, 8)
        first = [int((drawn[name]["label"] == digit).nonzero()[0]) for digit in range(10)]
        samples = drawn[name]["samples"][first, 0].clamp(-1, 1)
        torch.testing.assert_close(grey[:, -1] / 127.5 - 1, samples, rtol=0, atol=1 / 255)


def pairwise(drawn):
    groups = [drawn["samples"][drawn["label"] == digit].flatten(1) for digit in range(10)]
    return float(sum(torch.pdist(group.double()).mean() for group in groups) / 10)


def test_thoughts_can_be_forgotten():
    thoughts = Thoughts([1.0])
    rows = torch.randn(4, 3)
    thoughts.update([rows + 1], rows, None)
    once = thoughts.compute()
    thoughts.reset()
    thoughts.update([rows + 1], rows, None)
    assert thoughts.compute() == once
    assert once["thought_distance"][0] == pytest.approx(3**0.5, rel=1e-5)


def test_a_stretch_of_an_unknown_network_is_one_sentence(tested):
    with pytest.raises(UserError, match="not by 'teacher'"):
        tested(stretches(("teacher", LEVELS, "euler")))
    with pytest.raises(UserError, match="levels of a stretch descend"):
        tested(stretches(("base", LEVELS[::-1], "euler")))


def test_sampling_may_name_only_the_two_networks():
    with pytest.raises(ValueError, match="sampling names 'teacher'"):
        HybridSampling(
            FromFolder("a"), FromFolder("b"), Stretches([Stretch("base", LEVELS)]), sampling={"teacher": Sampling()}
        )
