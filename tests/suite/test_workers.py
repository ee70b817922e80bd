"""Many fits in few processes: order, failures, kills, several devices, nothing left behind."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from kdbench import cli
from kdbench.errors import UserError
from kdbench.suite import chain, experiment, fit, runs, workers

ROOT = Path(__file__).parent.parent.parent
TASK = [
    *("--config", "experiments/distilbert_ro/probe.yaml", "--trainer.max_epochs", "1"),
    *("--model.student.experiment", "experiments/distilbert_ro/markov_cased.yaml"),
    *("--stages.markov_cased.trainer.max_steps", "3"),
]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "runs"))


def plan(*arguments):
    parsed = cli.parse(list(arguments), {"seed"}, set())
    seed = int(parsed.options.get("seed", 0))
    return chain.plan(experiment.read(*parsed.configs, overrides=[*parsed.overrides, ("seed_everything", seed)]))


def weights(stage):
    return torch.load(stage.folder / runs.CHECKPOINT, weights_only=True)["state_dict"]


@pytest.mark.slow
def test_the_tenth_fit_of_a_process_is_the_first_of_another(tmp_path, monkeypatch, capfd):
    stages = [plan(*TASK, "--seed", str(seed)) for seed in range(10)]
    assert workers.fit_all(stages, title="ten") == {}
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 11, "one teacher, made once, and ten runs"
    assert told[0].startswith("1/11 distilbert_ro/markov_cased: ")
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "alone"))
    alone = plan(*TASK, "--seed", "9")
    assert workers.fit_all([alone]) == {}
    assert alone.id == stages[9].id
    ours, theirs = weights(stages[9]), weights(alone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_a_failure_stops_what_is_made_from_it_and_nothing_else():
    broken = plan(*TASK, "--stages.markov_cased.data.tokenizer", "null", "--stages.markov_cased.trainer.max_steps", "4")
    good = plan(*TASK)
    failed = workers.fit_all([broken, good], jobs=2)
    parent = broken.parents["model.student"].folder
    assert set(failed) == {broken.folder, parent}
    assert "brings no vocabulary" in failed[parent]
    assert failed[broken.folder] == "it is made from 'distilbert_ro/markov_cased', which failed"
    assert good.finished


@pytest.mark.slow
def test_a_worker_that_is_killed_is_a_failed_run_and_the_rest_goes_on():
    long = plan("--config", "experiments/distilbert_ro/markov_cased.yaml", "--trainer.max_steps", "5000")
    short = plan(*TASK)

    def kill():
        deadline = time.monotonic() + 300
        while not (long.folder / "logs" / "attempt-0" / "metrics.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        (owner,) = (long.folder / ".lock").iterdir()
        os.kill(json.loads(owner.read_text())["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    failed = workers.fit_all([long, short])
    thread.join()
    assert list(failed) == [long.folder]
    assert "killed by signal 9" in failed[long.folder]
    assert short.finished


@pytest.mark.slow
def test_a_fit_on_two_devices_has_processes_of_its_own():
    two = ("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    stage = plan("--config", "experiments/distilbert_ro/markov_cased.yaml", "--trainer.max_steps", "3", *two)
    assert workers.fit_all([stage]) == {}
    assert stage.record["hardware"]["processes"] == 2
    assert (stage.folder / workers.LOG).exists()


def test_jobs_are_counted_from_one():
    with pytest.raises(UserError, match="--jobs is at least 1, not 0"):
        workers.fit_all([], jobs=0)


def test_a_stage_survives_being_told_as_json():
    stage = plan(*TASK)
    again = chain.Stage.from_json(json.loads(json.dumps(stage.as_json())))
    assert again == stage


def test_what_is_found_is_not_fitted_again(capfd):
    stage = plan("--config", "experiments/distilbert_ro/markov_cased.yaml", "--trainer.max_steps", "2")
    fit.fit(stage, quiet=True)
    before = (stage.folder / runs.RECORD).stat().st_mtime_ns
    assert workers.fit_all([stage]) == {}
    assert (stage.folder / runs.RECORD).stat().st_mtime_ns == before
    assert capfd.readouterr().err == ""
