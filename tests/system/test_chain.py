"""The flagship from end to end, very small: teachers, student, tasks, loyalty, resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from transformers import AutoModel, AutoTokenizer
from walk import files_named

from kdbench import cli
from kdbench.suite import chain, experiment, fit, runs

ROOT = Path(__file__).parent.parent.parent
TINY = [
    *("--stages.teacher_cased.trainer.max_steps", "6", "--stages.teacher_uncased.trainer.max_steps", "6"),
    *("--stages.teacher_cased.model.student.config.hidden_size", "32"),
    *("--stages.teacher_uncased.model.student.config.hidden_size", "32"),
]
FLAGSHIP = ["--config", "experiments/distilbert_ro.yaml", *TINY, "--trainer.max_steps", "8", "--quiet"]


def plan(*arguments):
    parsed = cli.parse(list(arguments), {"seed"}, {"quiet"})
    return chain.plan(experiment.read(*parsed.configs, overrides=parsed.overrides))


class Trained(pl.Callback):
    """Looks at what the optimiser trains."""

    def on_train_end(self, trainer, pl_module):
        groups = trainer.optimizers[0].param_groups
        self.parameters = {id(each) for group in groups for each in group["params"]}
        self.of_student = {id(each) for each in pl_module.student.parameters()}


@pytest.fixture(scope="module")
def trained():
    return Trained()


@pytest.fixture(scope="module")
def flagship(tmp_path_factory, trained):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("KDBENCH_RUNS", str(tmp_path_factory.mktemp("runs")))
        stage = plan(*FLAGSHIP)
        fit.fit(stage, quiet=True, watch=[trained])
        yield stage


def test_a_run_leaves_what_the_readme_says(flagship):
    folder = flagship.folder
    record = json.loads((folder / "record.json").read_text())
    metrics = record["metrics"]
    for name in ("accuracy@student", "perplexity@cased", "label_loyalty@uncased", "probability_loyalty@cased"):
        assert metrics[f"test/{name}"] is not None
    assert metrics["speed_ratio@cased"] > 0
    assert record["data"]["source"] == "embedded"
    assert record["steps"] == 8
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["teachers"]["cased"]["init_args"]["run"] == str(
        flagship.parents["model.teachers.cased"].folder
    )
    assert list(folder.glob("logs/*/metrics.csv"))


def test_the_same_command_finds_the_run_and_a_change_makes_another(flagship):
    assert plan(*FLAGSHIP).folder == flagship.folder
    assert plan(*FLAGSHIP, "--trainer.log_every_n_steps", "3").id == flagship.id, "logging cannot change the result"
    for changed in (["--model.objective.soft.weight", "4"], ["--stages.teacher_cased.trainer.max_steps", "7"]):
        assert plan(*FLAGSHIP, *changed).id != flagship.id
    record = flagship.folder / "record.json"
    before = record.stat().st_mtime_ns
    fit.fit(plan(*FLAGSHIP), quiet=True)
    assert record.stat().st_mtime_ns == before


def test_plain_transformers_loads_the_student_with_equal_outputs(flagship):
    student = AutoModel.from_pretrained(flagship.folder / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(flagship.folder / "student")
    ids = torch.tensor([tokenizer("Ștefan cumpără o carte veche.")["input_ids"]])
    weights = torch.load(flagship.folder / runs.CHECKPOINT, weights_only=True)["state_dict"]
    inside = {name.removeprefix("student.distilbert."): value for name, value in weights.items()}
    again = AutoModel.from_config(student.config).eval()
    again.load_state_dict({name: value for name, value in inside.items() if name in again.state_dict()}, strict=True)
    with torch.no_grad():
        assert torch.equal(student(ids).last_hidden_state, again(ids).last_hidden_state)


def test_teachers_are_in_no_checkpoint_and_no_optimiser(flagship, trained):
    saved = torch.load(flagship.folder / runs.CHECKPOINT, weights_only=True)
    assert all(name.startswith("student.") for name in saved["state_dict"])
    assert trained.parameters == trained.of_student


def test_a_finished_run_keeps_no_state_of_the_optimiser(flagship):
    saved = torch.load(flagship.folder / runs.CHECKPOINT, weights_only=True)
    assert saved["global_step"] == 8
    assert "optimizer_states" not in saved
    weights = sum(value.nbytes for value in saved["state_dict"].values())
    assert (flagship.folder / runs.CHECKPOINT).stat().st_size < 1.2 * weights


def test_a_task_gives_scores_and_loyalty(flagship):
    base = [
        "--config",
        "experiments/distilbert_ro/upos.yaml",
        *TINY,
        "--stages.distilbert_ro.trainer.max_steps",
        "8",
        "--trainer.max_steps",
        "4",
    ]
    teacher = plan(*base, "--model.student.experiment", "experiments/distilbert_ro/teacher_uncased.yaml")
    fit.fit(teacher, quiet=True)
    student = plan(*base, "--model.references.uncased", str(teacher.folder))
    record = fit.fit(student, quiet=True)
    assert student.parents["model.student"].folder == flagship.folder, "the student's run is found, not fitted again"
    assert record["metrics"]["test/label_loyalty@uncased"] is not None
    assert record["metrics"]["test/macro_f1@uncased"] == pytest.approx(
        teacher.record["metrics"]["test/macro_f1@student"], abs=1e-6
    )


def test_a_fit_leaves_nothing_behind_in_its_process(flagship):
    teacher = flagship.parents["model.teachers.cased"]
    first = torch.load(teacher.folder / runs.CHECKPOINT, weights_only=True)["state_dict"]
    again = chain.plan(experiment.Experiment(teacher.name, ROOT, dict(teacher.config)), fresh=True)
    assert again.folder != teacher.folder
    fit.fit(again, quiet=True)
    second = torch.load(again.folder / runs.CHECKPOINT, weights_only=True)["state_dict"]
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("loss", "grouped"), [("KLDivergence", True), ("tests.methods.test_objective.Comparing", False)]
)
def test_batches_are_of_like_length_unless_a_loss_compares_their_rows(flagship, loss, grouped):
    stage = plan(
        *FLAGSHIP, "--model.objective.soft.loss", f"{{class_path: {loss}}}", "--trainer.limit_train_batches", "1"
    )
    with fit.friendly(stage):
        built = fit.build(stage, [], False)
        built.trainer.fit(built.model, datamodule=built.datamodule)
    assert (built.datamodule.train_dataloader().batch_sampler.group > 1) == grouped
    assert built.datamodule.val_dataloader().batch_sampler.lengths is not None


def command(*arguments, runs_folder, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "kdbench.cli", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KDBENCH_RUNS": str(runs_folder), **environment},
    )


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    arguments = (
        *("fit", "--config", "experiments/distilbert_ro/teacher_cased.yaml", "--quiet", "--trainer.max_steps", "300"),
        *("--model.student.config.hidden_size", "32", "--model.student.config.hidden_dropout_prob", "0.1"),
    )
    whole = command(*arguments, runs_folder=tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr.read()
    killed = command(*arguments, runs_folder=tmp_path / "killed")
    until = time.monotonic() + 180
    while time.monotonic() < until and not files_named(tmp_path / "killed", "last.ckpt"):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not list((tmp_path / "killed").rglob("record.json"))
    resumed = command(*arguments, runs_folder=tmp_path / "killed")
    assert resumed.wait() == 0, resumed.stderr.read()
    (one,) = (tmp_path / "whole").rglob("last.ckpt")
    (two,) = (tmp_path / "killed").rglob("last.ckpt")
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads(next((tmp_path / "killed").rglob("record.json")).read_text())["resumed"]


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path):
    arguments = (
        *("fit", "--config", "experiments/distilbert_ro/teacher_cased.yaml", "--quiet", "--trainer.max_steps", "4"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"),
        *("--model.student.config.hidden_size", "32"),
    )
    process = command(*arguments, runs_folder=tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "Run folder" in out
    (record,) = tmp_path.rglob("record.json")
    assert json.loads(record.read_text())["hardware"]["processes"] == 2
