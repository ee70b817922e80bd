"""The command line as a user types it: exit codes, one sentence for a mistake, no traceback, nothing imported in vain."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
EXPERIMENT = "experiments/distilbert_ro.yaml"
TASK = "experiments/distilbert_ro/upos.yaml"


def kdbench(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "kdbench.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["list", "losses"], ["list", "data"]])
def test_answers_without_torch(arguments):
    code = f"import sys; from kdbench import cli; cli.main({arguments}); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip().endswith("False")
    assert len(told.stdout.splitlines()) > 1


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_a_reader_that_has_seen_enough_is_no_mistake(argument):
    process = subprocess.Popen(
        [sys.executable, "-m", "kdbench.cli", argument],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141


def test_print_config_shows_the_merged_file_and_the_defaults():
    told = kdbench("fit", "--config", EXPERIMENT, "--model.objective.soft.weight", "0.5", "--print_config")
    assert told.returncode == 0
    assert "weight: 0.5" in told.stdout
    assert "use_distributed_sampler: false" in told.stdout


def test_a_dry_run_prints_the_chain(tmp_path):
    told = kdbench("fit", "--config", EXPERIMENT, "--dry-run", KDBENCH_RUNS=str(tmp_path))
    assert told.returncode == 0, told.stderr
    assert [line.split()[1] for line in told.stdout.splitlines()] == [
        "distilbert_ro/teacher_cased",
        "distilbert_ro/teacher_uncased",
        "distilbert_ro",
    ]
    assert told.stdout.count("to fit") == 3


def test_the_papers_size_is_planned_without_a_network(tmp_path):
    told = kdbench(
        *("fit", "--config", EXPERIMENT, "--config", "experiments/distilbert_ro/paper.yaml", "--dry-run"),
        KDBENCH_RUNS=str(tmp_path),
        HF_HUB_OFFLINE="1",
    )
    assert told.returncode == 0, told.stderr
    for name in ("dumitrescustefan/bert-base-romanian-cased-v1", "readerbench/RoBERT-base", "wikimedia/wikipedia"):
        assert f"would fetch from the hub: {name}" in told.stdout


MISTAKES = {
    "unknown verb": (["fti"], "Did you mean 'fit'"),
    "no config": (["fit"], "Name an experiment"),
    "missing config": (
        ["fit", "--config", "experiments/distilbert_r.yaml"],
        "Did you mean 'experiments/distilbert_ro.yaml'",
    ),
    "unknown option": (["fit", "--config", EXPERIMENT, "--frseh"], "Did you mean 'fresh'"),
    "unknown class": (
        ["fit", "--config", EXPERIMENT, "--model.objective.soft.loss", "{class_path: KLDivergense}"],
        "Did you mean 'KLDivergence'",
    ),
    "unknown data set": (["fit", "--config", TASK, "--data.dataset", "ro/rtt", "--dry-run"], "Did you mean 'ro/rrt'"),
    "unknown source": (["fit", "--config", TASK, "--data.source", "lokal", "--dry-run"], "local"),
    "missing folder": (["fit", "--config", EXPERIMENT, "--data.source", "local"], "KDBENCH_DATA"),
    "no value": (["fit", "--config"], "needs a value"),
    "seed": (["fit", "--config", EXPERIMENT, "--seed", "one"], "whole number"),
    "no run": (["speed", "runs/nothing"], "no finished run"),
    "no paper": (["reproduce", "distilbert"], "Did you mean 'distilbert_ro'"),
    "no list": (["list", "loses"], "Did you mean 'losses'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name, tmp_path):
    arguments, sentence = MISTAKES[name]
    told = kdbench(*arguments, KDBENCH_RUNS=str(tmp_path), KDBENCH_DATA="")
    assert told.returncode == 2, told.stderr
    assert sentence in told.stderr
    assert "Traceback" not in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1


LATER = {
    "unknown keys, all at once": (
        ["--model.weight_decays", "1", "--trainer.max_stepz", "3"],
        ["Did you mean 'weight_decay'", "Did you mean 'max_steps'"],
    ),
    "wrong type": (["--data.batch_size", "many"], ["batch_size"]),
    "negative batch": (["--data.batch_size", "-1"], ["at least one row"]),
    "a term that is not finite": (["--model.optimizer.lr", "1.0e+30"], ["The term 'masked' became", "example ids"]),
    "a tokenizer larger than the network": (
        ["--model.student.config.vocab_size", "100"],
        ["100 token embeddings"],
    ),
    "unwritable runs": ([], ["cannot be written"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LATER)
def test_a_mistake_that_only_building_shows(name, tmp_path):
    arguments, sentences = LATER[name]
    folder = tmp_path / "runs"
    if name == "unwritable runs":
        folder.write_text("a file stands in the place of the folder")
    told = kdbench(
        *("fit", "--config", "experiments/distilbert_ro/teacher_cased.yaml", *arguments), KDBENCH_RUNS=str(folder)
    )
    assert told.returncode == 2, told.stderr
    assert "Traceback" not in told.stderr
    for sentence in sentences:
        assert sentence in told.stderr


@pytest.mark.slow
def test_an_embedded_fit_imports_nothing_that_it_does_not_use(tmp_path):
    code = (
        "import sys; from kdbench import cli; "
        "cli.run('fit --quiet --config experiments/distilbert_ro/teacher_cased.yaml --trainer.max_steps 2'.split()); "
        "print([name for name in ('datasets', 'wandb', 'diffusers') if name in sys.modules])"
    )
    environment = {**os.environ, "KDBENCH_RUNS": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert told.stdout.strip().endswith("[]"), told.stderr
