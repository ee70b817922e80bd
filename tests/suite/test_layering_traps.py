"""Where jsonargparse's own layering differs from what a reader expects: through LightningCLI's real build."""

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.profilers import SimpleProfiler

from kdbench import cli
from kdbench.callbacks.profiler import Unwatched
from kdbench.losses.divergences import JensenShannon, KLDivergence
from kdbench.suite import chain, experiment, fit

ROOT = Path(__file__).parent.parent.parent
FLAGSHIP = "experiments/distilbert_ro.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "runs"))


def overlay(tmp_path, content):
    file = tmp_path / "overlay.yaml"
    file.write_text(yaml.safe_dump(content))
    return "--config", str(file)


def plan(*arguments):
    parsed = cli.parse(["--config", FLAGSHIP, *arguments], {"seed"}, {"quiet"})
    return chain.plan(experiment.read(*parsed.configs, overrides=parsed.overrides))


def built(*arguments):
    stage = plan(*arguments)
    with fit.friendly(stage):
        return fit.build(stage, [], False)


def optimizer(found):
    return found.model.optimizer([torch.nn.Parameter(torch.zeros(1))])


def model(**arguments):
    return {"model": {"init_args": arguments}}


@pytest.mark.parametrize("way", ["file", "command line", "command line, key by key"])
def test_another_optimizer_takes_nothing_over_from_adamw(way, tmp_path):
    sgd = {"class_path": "SGD", "init_args": {"lr": 0.3}}
    arguments = {
        "file": overlay(tmp_path, model(optimizer=sgd)),
        "command line": ("--model.optimizer", yaml.safe_dump(sgd)),
        "command line, key by key": ("--model.optimizer", "SGD", "--model.optimizer.lr", "0.3"),
    }[way]
    found = optimizer(built(*arguments))
    assert type(found) is torch.optim.SGD
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    assert found.defaults == plain.defaults
    assert found.defaults["weight_decay"] == 0


def test_the_optimizer_of_the_file_keeps_what_is_not_changed():
    found = optimizer(built("--model.optimizer.lr", "0.25"))
    assert type(found) is torch.optim.AdamW
    assert (found.defaults["lr"], tuple(found.defaults["betas"]), found.defaults["eps"]) == (0.25, (0.9, 0.98), 1e-6)


def test_a_profiler_of_the_trainer_takes_the_place_of_the_idle_one():
    idle, simple = (built(*asked).trainer.profiler for asked in ((), ("--trainer.profiler", "simple")))
    assert type(idle) is Unwatched and type(simple) is SimpleProfiler
    assert idle.profile("one") is idle.profile("another")


def test_without_an_optimizer_the_documented_one_is_made():
    found = optimizer(built("--model.optimizer", "null"))
    assert (type(found), found.defaults["lr"], found.defaults["weight_decay"]) == (torch.optim.AdamW, 5e-4, 0)


@pytest.mark.parametrize("way", ["file", "command line"])
def test_the_siblings_of_a_changed_term_survive(way, tmp_path):
    change = {"soft": {"loss": {"init_args": {"temperature": 9.0}}}}
    arguments = {
        "file": overlay(tmp_path, model(objective=change)),
        "command line": ("--model.objective.soft.loss.temperature", "9.0"),
    }[way]
    terms = built(*arguments).model.objective.terms
    assert {name: term.weight for name, term in terms.items()} == {"soft": 5.0, "masked": 2.0, "hidden": 1.0}
    assert type(terms["soft"].loss) is KLDivergence
    assert terms["soft"].loss.temperature == 9.0
    assert terms["soft"].combine == "mean_probabilities"


def test_a_new_term_joins_the_others(tmp_path):
    extra = {"loss": "CosineDistance", "student": "embedding", "teacher": "cased.embedding"}
    terms = built(*overlay(tmp_path, model(objective={"extra": extra}))).model.objective.terms
    assert list(terms) == ["soft", "masked", "hidden", "extra"]


@pytest.mark.parametrize("way", ["file", "command line"])
def test_another_loss_drops_the_arguments_of_the_old_one(way, tmp_path):
    arguments = {
        "file": overlay(tmp_path, model(objective={"soft": {"loss": {"class_path": "JensenShannon"}}})),
        "command line": ("--model.objective.soft.loss", "JensenShannon"),
    }[way]
    loss = built(*arguments).model.objective.terms["soft"].loss
    assert type(loss) is JensenShannon
    assert loss.temperature == JensenShannon().temperature != 2.0, "KLDivergence's temperature of 2 is gone"


@pytest.mark.parametrize("way", ["file", "command line"])
def test_null_deletes_a_term_and_a_teacher(way, tmp_path):
    arguments = {
        "file": overlay(
            tmp_path,
            model(
                teachers={"uncased": None}, align=None, objective={"hidden": None, "soft": {"teacher": "cased.logits"}}
            ),
        ),
        "command line": (
            *("--model.teachers.uncased", "null", "--model.align", "null", "--model.objective.hidden", "null"),
            *("--model.objective.soft.teacher", "cased.logits"),
        ),
    }[way]
    found = built(*arguments).model
    assert list(found.objective.terms) == ["soft", "masked"]
    assert found.teacher_names == ["cased"]
    assert found.align == {}


CHANGES = {
    "model.objective.soft.weight": 0.5,
    "model.optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}},
    "model.student.then": [{"class_path": "CopyLayers", "init_args": {"layers": [1, 2]}}],
    "model.objective.hidden": None,
    "data.batch_size": 16,
    "trainer.max_steps": 7,
    "stages.teacher_cased.trainer.max_steps": 5,
}


def test_a_file_and_the_command_line_mean_the_same(tmp_path):
    file = {
        **model(
            objective={"soft": {"weight": 0.5}, "hidden": None},
            optimizer=CHANGES["model.optimizer"],
            student={"init_args": {"then": CHANGES["model.student.then"]}},
        ),
        "data": {"init_args": {"batch_size": 16}},
        "trainer": {"max_steps": 7},
        "stages": {"teacher_cased": {"trainer": {"max_steps": 5}}},
    }
    line = [word for key, value in CHANGES.items() for word in (f"--{key}", yaml.safe_dump(value))]
    one, two = plan(*overlay(tmp_path, file)), plan(*line)
    assert one.config == two.config
    assert one.id == two.id


def test_settings_of_the_trainer_lie_over_the_file_and_the_shared_defaults():
    trainer = built(
        "--trainer.max_steps", "7", "--trainer.log_every_n_steps", "3", "--trainer.gradient_clip_val", "0.5"
    ).trainer
    assert (trainer.max_steps, trainer.log_every_n_steps, trainer.gradient_clip_val) == (7, 3, 0.5)
    plain = built().trainer
    assert (plain.max_steps, plain.log_every_n_steps, plain.gradient_clip_val) == (300, 50, 5.0)


def test_a_stage_is_reached_by_its_dotted_key_wherever_it_stands():
    stage = plan("--stages.teacher_uncased.data.tokenizer.vocab_size", "900", "--trainer.max_steps", "7")
    by_name = {each.name: each for each in stage.walk()}
    sizes = {
        name: chain.arguments(chain.arguments(each.config["data"]).get("tokenizer")).get("vocab_size")
        for name, each in by_name.items()
    }
    assert sizes == {"distilbert_ro/teacher_cased": 2000, "distilbert_ro/teacher_uncased": 900, "distilbert_ro": None}
    untouched = {each.name: each.id for each in plan().walk()}
    changed = {name for name, each in by_name.items() if each.id != untouched[name]}
    assert changed == {"distilbert_ro/teacher_uncased", "distilbert_ro"}


def test_a_stage_below_a_stage_is_reached_too():
    parsed = cli.parse(
        ["--config", "experiments/distilbert_ro/upos.yaml", "--stages.teacher_cased.trainer.max_steps", "5"],
        set(),
        set(),
    )
    stage = chain.plan(experiment.read(*parsed.configs, overrides=parsed.overrides))
    steps = {each.name: each.config["trainer"]["max_steps"] for each in stage.walk()}
    assert steps == {
        "distilbert_ro/teacher_cased": 5,
        "distilbert_ro/teacher_uncased": 450,
        "distilbert_ro": 300,
        "distilbert_ro/upos": 200,
    }


def test_null_deletes_in_another_experiment_too():
    """``set`` and ``stages`` hold changes: a null in them is kept until they are applied."""
    alone = {"model.teachers.uncased": None, "model.align": None, "model.objective.soft": {"teacher": "cased.logits"}}
    task = experiment.Request(("experiments/distilbert_ro/upos.yaml",), {"model.student.set": alone})
    student = chain.plan(task.read()).parents["model.student"]
    assert list(chain.arguments(student.config["model"])["teachers"]) == ["cased"]
    assert "align" not in chain.arguments(student.config["model"])
    by_stage = experiment.Request(
        ("experiments/distilbert_ro/upos.yaml",), {f"stages.distilbert_ro.{key}": value for key, value in alone.items()}
    )
    assert chain.plan(by_stage.read()).parents["model.student"].config == student.config


def test_the_words_of_a_request_ask_for_the_same_run():
    asked = experiment.Request(
        ("experiments/distilbert_ro/upos.yaml",),
        {
            "seed_everything": 3,
            "model.optimizer.lr": 1e-05,
            "stages.distilbert_ro.model.align": None,
            "data.label": "xpos",
        },
    )
    parsed = cli.parse(["--config", *asked.words()[1:]], {"seed"}, set())
    overrides = [*parsed.overrides, ("seed_everything", int(parsed.options["seed"]))]
    assert chain.plan(experiment.read(*parsed.configs, overrides=overrides)).id == chain.plan(asked.read()).id
