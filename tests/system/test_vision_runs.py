"""Images from end to end, very small: a teacher, students of two families, their test, export and speed."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from transformers import AutoImageProcessor, AutoModelForImageClassification

from kdbench import cli
from kdbench.data.registry import load
from kdbench.errors import UserError
from kdbench.models.origins import FromFolder
from kdbench.suite import chain, experiment, fit, runs

ROOT = Path(__file__).parent.parent.parent
DATA = {"class_path": "ImageClassification", "init_args": {"dataset": "vision/digits", "batch_size": 50}}
SGD = {"class_path": "SGD", "init_args": {"lr": 0.05, "momentum": 0.9}}


def from_config(architecture, **config):
    return {"class_path": "FromConfig", "init_args": {"architecture": architecture, "config": config}}


def term(loss, tap, **arguments):
    return {"loss": {"class_path": loss, "init_args": arguments}, "student": tap, "teacher": f"teacher.{tap}"}


TEACHER = {
    "model": {
        "class_path": "Supervised",
        "init_args": {"student": from_config("CifarResNet", depth=8, widths=[8, 8, 16, 32]), "optimizer": SGD},
    },
    "data": DATA,
    "trainer": {"max_epochs": 6},
}
STUDENT = {
    "model": {
        "class_path": "Distillation",
        "init_args": {
            "teachers": {
                "teacher": {"class_path": "FromRun", "init_args": {"experiment": "experiments/digits/teacher.yaml"}}
            },
            "student": from_config("ConvNet", widths=[8, 16]),
            "objective": {
                "soft": term("SoftCrossEntropy", "logits"),
                "hint": term("MeanSquaredError", "pooled", project=True),
                "discriminator": term("OutputDiscriminator", "logits", divisor=2),
            },
            "optimizer": SGD,
        },
    },
    "data": DATA,
    "trainer": {"max_epochs": 4},
}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the experiments, in which the tests run."""
    folder = tmp_path_factory.mktemp("vision")
    (folder / "experiments" / "digits").mkdir(parents=True)
    (folder / "experiments" / "digits" / "teacher.yaml").write_text(yaml.safe_dump(TEACHER))
    (folder / "experiments" / "digits.yaml").write_text(yaml.safe_dump(STUDENT))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KDBENCH_RUNS", str(folder / "runs"))
        yield folder


def plan(**changes):
    return chain.plan(experiment.read("experiments/digits.yaml", overrides=list(changes.items())))


@pytest.fixture(scope="module")
def run(home):
    stage = plan()
    record = fit.fit(stage, quiet=True)
    return stage, record


def test_a_student_learns_from_its_teacher(run):
    _, record = run
    metrics = record["metrics"]
    assert metrics["test/accuracy@teacher"] > 0.9
    assert metrics["test/accuracy@student"] > 0.6  # one class in ten is chance
    assert metrics["speed_ratio@teacher"] > 0
    assert metrics["parameters@student"] < metrics["parameters@teacher"]
    assert record["cache"]["mode"] == "auto"


def test_a_teacher_is_as_it_was(run):
    """Its batch norms stay in eval mode, so that their statistics do not move."""
    stage, _ = run
    teacher = FromFolder(str(stage.parents["model.teachers.teacher"].folder))
    before = teacher.build().state_dict()
    assert any("running_mean" in name for name in before)
    cli_of = fit.build(plan(**{"trainer.max_epochs": 1, "cache.mode": "off"}), [], False)
    cli_of.trainer.fit(cli_of.model, datamodule=cli_of.datamodule)
    network = cli_of.model.network("teacher")
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_rehearsal_leaves_the_students_statistics(run):
    seen = {}

    class Watch(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.update(copy.deepcopy(pl_module.student.state_dict()))
            raise KeyboardInterrupt

    cli_of = fit.build(plan(), [Watch()], False)
    with pytest.raises(SystemExit):
        cli_of.trainer.fit(cli_of.model, datamodule=cli_of.datamodule)
    counts = {name: int(value) for name, value in seen.items() if "num_batches_tracked" in name}
    assert counts and set(counts.values()) == {0}


def test_the_export_is_the_student_alone(run, home, capsys):
    stage, record = run
    cli.run(["export", str(stage.folder)])
    folder = Path(capsys.readouterr().out.strip())
    student = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert type(student).__name__ == "ConvNet"
    assert student.config.id2label == {place: str(place) for place in range(10)}
    weights = torch.load(stage.folder / runs.CHECKPOINT, weights_only=True)["state_dict"]
    inside = {name for name in weights if name.startswith("student.")}
    assert {f"student.{name}" for name in student.state_dict()} == inside
    assert {name.split(".")[2] for name in set(weights) - inside} == {"hint", "discriminator"}  # of objective.losses
    card = (folder / "README.md").read_text()
    assert "`import kdbench.models.vision` lets transformers load it." in card
    assert f"accuracy@student | {record['metrics']['test/accuracy@student']}" in card
    assert score(student, AutoImageProcessor.from_pretrained(folder)) == pytest.approx(
        record["metrics"]["test/accuracy@student"], abs=1e-6
    )


def score(student, processor):
    """Return the test accuracy that someone gets who has the folder alone: bytes through the preprocessor to the network."""
    rows = load("vision/digits", "embedded", "test")
    images = [row["image"].transpose(1, 2, 0) for row in rows]
    made = processor(images, return_tensors="pt", input_data_format="channels_last")
    with torch.no_grad():
        said = student(**made).logits.argmax(-1)
    return sum(student.config.id2label[int(each)] == row["label"] for each, row in zip(said, rows, strict=True)) / len(
        rows
    )


def test_speed_is_measured_on_images(run, home, capsys):
    stage, _ = run
    cli.run(["speed", str(stage.folder), "--batch", "4", "--repeats", "2"])
    told = capsys.readouterr().out
    assert "batch 4 x 1x8x8" in told
    assert "student" in told and "teacher" in told
    with pytest.raises(UserError, match="--length is the number of pieces of a text"):
        cli.run(["speed", str(stage.folder), "--length", "4"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model.student.config.num_channels": 3}, "ConvNet takes images of 3 channels, and those of the data have 1"),
        (
            {"model.student": from_config("MLPMixer", patch_size=3, widths=None)},
            "cuts its images into patches of 3x3, and 8x8 is no multiple",
        ),
        (
            {"model.student": from_config("ConvNet", num_labels=7)},
            "ConvNet tells 7 classes apart, and the data have 10",
        ),
        (
            {"model.objective.hint.student": "stages.9"},
            r"'stages\.9' is out of range: the network has a stem and 2 stages",
        ),
        ({"model.objective.hint.teacher": "teacher.poold"}, "CifarResNet has no tap 'poold'. Did you mean 'pooled'"),
        (
            {
                "data.image_size": 12,
                "model.student": from_config("ViTForImageClassification", **VIT, image_size=8, widths=None),
            },
            "12x12",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_training(run, changes, told):
    with pytest.raises(UserError, match=told):
        cli_of = fit.build(plan(**changes), [], False)
        cli_of.trainer.fit(cli_of.model, datamodule=cli_of.datamodule)


@pytest.mark.slow
def test_plain_transformers_loads_its_own_student_without_kdbench(run, home):
    """By the command line: a ViT from the convolutional teacher."""
    changes = {
        "model.student": json.dumps(from_config("ViTForImageClassification", **VIT, widths=None)),
        "trainer.max_epochs": 1,
    }
    words = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    told = kdbench("fit", "--quiet", "--config", "experiments/digits.yaml", *words)
    folder = next(line.removeprefix("Run folder: ") for line in told.splitlines() if line.startswith("Run folder: "))
    tested = kdbench("test", "--quiet", "--config", "experiments/digits.yaml", *words)
    assert "accuracy" in tested
    exported = kdbench("export", folder.strip()).strip()
    assert "teacher" in kdbench("speed", folder.strip(), "--repeats", "2")
    code = (
        "import sys, torch; from transformers import AutoModelForImageClassification as Auto, AutoImageProcessor as Images; "
        "student = Auto.from_pretrained(sys.argv[1]); made = Images.from_pretrained(sys.argv[1]); "
        "print(type(student).__name__, student(torch.zeros(2, 1, 8, 8)).logits.shape[1], made.size['height'], "
        "student.config.id2label[3], any(name.startswith('kdbench') for name in sys.modules))"
    )
    plain = subprocess.run([sys.executable, "-c", code, exported], capture_output=True, text=True, check=True, cwd="/")
    assert plain.stdout.split() == ["ViTForImageClassification", "10", "8", "3", "False"]


def kdbench(*words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "kdbench.cli", *words], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
