"""What a record says beyond the last checkpoint: curves, the best checkpoint, single rows; and runs that only test."""

import csv
import math
import statistics
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from kdbench import cli
from kdbench.callbacks.curves import AXES
from kdbench.errors import UserError
from kdbench.suite import chain, experiment, fit, runs

ROOT = Path(__file__).parent.parent.parent
TINY = [
    "--stages.markov_cased.trainer.max_steps",
    "40",
    "--model.student.experiment",
    "experiments/distilbert_ro/markov_cased.yaml",
]
PROBE = ["--config", "experiments/distilbert_ro/probe.yaml", *TINY, "--trainer.max_epochs", "4"]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("KDBENCH_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


def plan(*arguments):
    parsed = cli.parse(list(arguments), {"seed"}, set())
    return chain.plan(experiment.read(*parsed.configs, overrides=parsed.overrides))


class AtTheEnd(pl.Callback):
    """Keeps a whole checkpoint of the end of the fit."""

    def __init__(self, file):
        self.file = file

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.file)
        self.checkpoint = torch.load(self.file, weights_only=True)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return AtTheEnd(tmp_path_factory.mktemp("end") / "whole.ckpt")


@pytest.fixture(scope="module")
def probe(home, seen):
    stage = plan(*PROBE)
    fit.fit(stage, quiet=True, watch=[seen])
    return stage


def weights(stage, file=runs.CHECKPOINT):
    return torch.load(stage.folder / file, weights_only=True)["state_dict"]


def test_only_what_train_names_is_trained(probe, seen):
    teacher = weights(probe.parents["model.student"])
    ours = weights(probe)
    frozen = [name for name in ours if name in teacher and ".encoder." in name]
    assert frozen
    assert all(torch.equal(ours[name], teacher[name]) for name in frozen)
    best, last = (weights(probe, file)["student.classifier.weight"] for file in (runs.BEST, runs.CHECKPOINT))
    optimizer = seen.checkpoint["optimizer_states"][0]
    assert len(optimizer["state"]) == 2, "the weight and the bias of the classifier"
    assert best.shape == last.shape


def test_a_pattern_that_names_nothing_is_refused():
    with pytest.raises(UserError, match=r"no parameter of the student is named 'clasifier.\*'"):
        fit.fit(plan(*PROBE, "--model.train", "['clasifier.*']"), quiet=True)


def test_curves_have_a_point_for_every_validation(probe):
    curves = probe.record["curves"]
    val = curves["val/macro_f1@student"]
    assert len(val["values"]) == 4
    assert val["steps"] == [13, 26, 39, 52], "100 rows in batches of 8"
    assert val["examples"] == [100, 200, 300, 400]
    assert val["seconds"] == sorted(val["seconds"])
    assert val["best"] == max(range(4), key=lambda place: val["values"][place])
    assert set(val) == {"values", "best", *AXES}


def test_test_scores_are_known_at_the_best_checkpoint_and_at_the_last(probe, tmp_path):
    record = probe.record
    curve = record["curves"]["test/accuracy@student"]
    assert curve["values"][-1] == record["metrics"]["test/accuracy@student"]
    best = record["curves"]["val/macro_f1@student"]["best"]
    assert curve["steps"][0] == record["curves"]["val/macro_f1@student"]["steps"][best]
    with fit.friendly(probe):
        built = fit.build(probe, [], False)
        (scores,) = built.trainer.test(
            built.model, datamodule=built.datamodule, ckpt_path=str(probe.folder / runs.BEST), verbose=False
        )
    assert scores["test/accuracy@student"] == pytest.approx(curve["values"][0], abs=1e-7)


def test_the_table_of_rows_adds_up_to_the_score(probe):
    with (probe.folder / runs.ITEMS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["id"]) for row in rows] == list(range(600))
    mean = statistics.fmean(float(row["accuracy"]) for row in rows)  # each sentence has 16 words
    assert mean == pytest.approx(probe.record["metrics"]["test/accuracy@student"], abs=1e-6)


def test_curves_go_on_after_a_kill(probe, seen):
    """The state of the callback in a checkpoint holds the points before it."""
    callback = next(state for name, state in seen.checkpoint["callbacks"].items() if "Curves" in name)
    assert [point["steps"] for point in callback["points"]] == [13, 26, 39, 52]
    assert callback["examples"] == 400
    assert callback["seconds"] > callback["points"][-1]["seconds"]


def test_an_experiment_without_a_fit_is_only_tested(probe, tmp_path):
    words = ["--config", "experiments/distilbert_ro/markov_cased.yaml", "--fit", "false"]
    with pytest.raises(UserError, match="no option '--fit'"):
        cli.parse(words, {"seed"}, set())
    file = tmp_path / "released.yaml"
    file.write_text(
        "fit: false\n"
        "model: {class_path: Supervised, init_args: {student: {class_path: FromRun, "
        "init_args: {experiment: experiments/distilbert_ro/markov_cased.yaml}}}}\n"
        "data: {class_path: MaskedLanguageModeling, init_args: {dataset: synthetic/hidden_markov, max_length: 20, power: 0.0}}\n"
    )
    stage = plan("--config", str(file), "--stages.markov_cased.trainer.max_steps", "40")
    record = fit.fit(stage, quiet=True)
    teacher = stage.parents["model.student"]
    assert record["steps"] == 0
    assert record["curves"] == {}
    assert not (stage.folder / runs.CHECKPOINT).exists()
    cross_entropy = record["metrics"]["test/cross_entropy@student"]
    assert cross_entropy == pytest.approx(teacher.record["metrics"]["test/cross_entropy@student"], abs=1e-5)
    assert (stage.folder / runs.STUDENT / "config.json").exists()
    assert math.isfinite(fit.evaluate(stage)["metrics"]["test/accuracy@student"])
