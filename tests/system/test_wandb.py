"""Weights & Biases without a key: what the offline file holds, read back with W&B's own messages."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from wandb_offline import Offline

from kdbench.suite import runs, wandb_records

ROOT = Path(__file__).parent.parent.parent
CASED = "experiments/distilbert_ro/teacher_cased.yaml"
SMALL = {
    "model.student.config.hidden_size": 32,
    "model.student.config.intermediate_size": 32,
    "data.batch_size": 4,
    "data.max_length": 16,
}
CHAIN = {
    **{
        f"stages.{stage}.{key}": value for stage in ("teacher_cased", "teacher_uncased") for key, value in SMALL.items()
    },
    **{f"stages.{stage}.trainer.max_steps": 2 for stage in ("teacher_cased", "teacher_uncased")},
    "data.batch_size": 4,
    "data.max_length": 16,
    "trainer.max_steps": 4,
    "trainer.log_every_n_steps": 1,
}


def words(settings):
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def start(*arguments, folder):
    """Start a fit with W&B for a user who has no key, in a home that is empty."""
    (folder / "home").mkdir(exist_ok=True)
    known = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    own = {"KDBENCH_RUNS": str(folder / "runs"), "HOME": str(folder / "home"), "WANDB_MODE": "offline"}
    own["MPLCONFIGDIR"] = str(folder)  # torchmetrics loads matplotlib where it is installed
    return subprocess.Popen(
        [sys.executable, "-m", "kdbench.cli", "fit", "--quiet", "--wandb", "my-project", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=known | own,
    )


@pytest.fixture(scope="module")
def flagship(tmp_path_factory):
    """The run folder of a very small flagship, logged to W&B."""
    folder = tmp_path_factory.mktemp("wandb")
    before = set(ROOT.iterdir())
    process = start("--config", "experiments/distilbert_ro.yaml", *words(CHAIN), folder=folder)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert set(ROOT.iterdir()) == before, "nothing beside the run folder"
    assert list((folder / "home").iterdir()) == [], "nothing in the home"
    assert len(list(folder.rglob("*.wandb"))) == 1, "the student's run, not those of its teachers"
    (record,) = (folder / "runs" / "distilbert_ro").glob("??????????/record.json")
    return record.parent


def offline(run):
    return [Offline(file) for file in sorted((run / "wandb").glob("offline-run-*/*.wandb"))]


@pytest.mark.slow
def test_the_run_is_named_grouped_and_tagged(flagship):
    (told,) = offline(flagship)
    assert told.run.run_id == f"distilbert_ro-{flagship.name}"
    assert told.run.display_name == f"distilbert_ro/{flagship.name}"
    assert (told.run.project, told.run.run_group, told.run.job_type) == ("my-project", "distilbert_ro", "main")
    assert list(told.run.tags) == ["distilbert_ro", "embedded"]


@pytest.mark.slow
def test_the_merged_config_is_kept(flagship):
    (told,) = offline(flagship)
    config = yaml.safe_load((flagship / "config.yaml").read_text())
    assert {key: value for key, value in told.config.items() if not key.startswith("_")} == config


@pytest.mark.slow
def test_every_term_is_there_raw_and_weighted(flagship):
    (told,) = offline(flagship)
    steps = [entry for entry in told.history if "train/loss" in entry]
    assert [entry["trainer/global_step"] for entry in steps] == [0, 1, 2, 3]
    for entry in steps:
        weighted = 0.0
        for name, weight in (("soft", 5.0), ("masked", 2.0), ("hidden", 1.0)):
            assert entry[f"train/{name}_weighted"] == pytest.approx(weight * entry[f"train/{name}"], rel=1e-5)
            weighted += entry[f"train/{name}_weighted"]
        assert entry["train/loss"] == pytest.approx(weighted, rel=1e-5)


@pytest.mark.slow
def test_what_was_measured_is_in_the_summary_and_in_the_table(flagship):
    (told,) = offline(flagship)
    metrics = json.loads((flagship / "record.json").read_text())["metrics"]
    for name in (
        "test/label_loyalty@cased",
        "test/probability_loyalty@uncased",
        "test/perplexity@student",
        "speed_ratio@cased",
    ):
        assert name in metrics
    assert {name: told.summary[name] for name in metrics} == pytest.approx(metrics)
    (table,) = flagship.glob("wandb/offline-run-*/files/media/table/result_*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["metric", "value"]
    assert dict(content["data"]) == pytest.approx(metrics)


@pytest.mark.slow
def test_the_whole_record_comes_back_from_the_run(flagship):
    (told,) = offline(flagship)
    record = json.loads((flagship / "record.json").read_text())
    assert json.loads(told.summary["record"]) == record

    class Run:
        name, state, summary = told.run.display_name, "finished", told.summary

    class Api:
        def runs(self, path, filters):
            return [Run]

    assert wandb_records.records("somebody/my-project", Api()) == {told.run.display_name: record}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_resumed_run_goes_on_in_the_same_run(number, tmp_path):
    arguments = ("--config", CASED, *words(SMALL | {"trainer.max_steps": 600}))
    stopped = start(*arguments, folder=tmp_path)
    end = time.monotonic() + 200
    while not list(tmp_path.glob(f"runs/distilbert_ro/teacher_cased/*/{runs.CHECKPOINT}")):
        assert stopped.poll() is None, stopped.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)
    stopped.send_signal(number)
    stopped.wait()
    time.sleep(1.1)  # the names of W&B's folders tell the second
    resumed = start(*arguments, folder=tmp_path)
    _, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err
    (record,) = tmp_path.rglob("record.json")
    name = f"distilbert_ro-teacher_cased-{record.parent.name}"
    files = sorted(record.parent.glob("wandb/offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{name}.wandb"] * 2
    first, second = offline(record.parent)
    assert second.run.run_id == name
    assert (second.run.run_group, second.run.job_type) == ("distilbert_ro", "teacher_cased")
    steps = [entry["trainer/global_step"] for entry in second.history if "train/loss" in entry]
    assert steps[0] >= 200
    assert steps[-1] == 599
    if number == signal.SIGINT:  # W&B keeps the last 32 kB in memory, and loses them with a process that is killed
        assert first.run.run_id == name
        assert first.config == second.config
        assert [entry["trainer/global_step"] for entry in first.history][:3] == [
            49,
            99,
            149,
        ]  # 199 comes behind the checkpoint
