"""A network with exits as a user has it: fitted, each exit exported and measured, and mistakes in one sentence."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel

from kdbench.models.origins import quiet

ROOT = Path(__file__).parent.parent.parent
SMALL = {
    "model.student.config.hidden_size": 16,
    "model.student.config.intermediate_size": 16,
    "data.max_length": 16,
    "data.train_rows": 64,
    "trainer.max_steps": 2,
}

pytestmark = pytest.mark.slow


def kdbench(*words, folder, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "kdbench.cli", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "KDBENCH_RUNS": str(folder)},
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr.strip().splitlines()[-1]


def fitted(file, folder, settings=SMALL):
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    told = kdbench("fit", "--quiet", "--config", file, *words, folder=folder)
    return told, Path(re.search(r"Run folder: (.+)", told).group(1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fitted("experiments/modularstarencoder.yaml", tmp_path_factory.mktemp("runs"))


def test_every_exit_is_a_row_and_its_network_a_column(run):
    told, _ = run
    for exit in (2, 4, 6):
        assert re.search(rf"MRR at exit {exit} +\d", told) and re.search(rf"recall at 10 at exit {exit} +\d", told)
    assert re.search(r"student +exit_2 +exit_4", told) and re.search(
        r"forward pass of the encoder, ms( +\d+\.\d+){3}", told
    )


def test_an_exit_is_exported_as_a_plain_encoder(run, tmp_path):
    _, folder = run
    kdbench("export", folder, "--exit", 2, "--to", tmp_path / "two", folder=tmp_path)
    with quiet():
        assert AutoModel.from_pretrained(tmp_path / "two").config.num_hidden_layers == 2
    assert (tmp_path / "two" / "modules.json").is_file() and (tmp_path / "two" / "tokenizer.json").is_file()
    assert "cannot keep [3] of the exits [2, 4, 6]" in kdbench("export", folder, "--exit", 3, folder=tmp_path, code=2)


def test_exits_are_measured_against_the_whole_network(run, tmp_path):
    _, folder = run
    told = kdbench("speed", folder, "--batch", 2, "--length", 8, "--repeats", 1, folder=tmp_path)
    assert re.findall(r"^  (student|exit_\d) .* M parameters .* ms", told, re.MULTILINE) == [
        "student",
        "exit_2",
        "exit_4",
    ]


def test_pre_training_and_what_begins_with_it(tmp_path):
    small = SMALL | {"data.max_length": 33}
    for file in ("pretrain", "icc"):
        told, _ = fitted(f"experiments/modularstarencoder/{file}.yaml", tmp_path, small)
        assert re.search(r"accuracy at exit 2 +\d", told)
