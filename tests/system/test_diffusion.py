"""DisBack from end to end, very small: its chain, a kill in the middle of a path, and what its record says."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
TINY = (
    *("fit", "--config", "experiments/disback.yaml", "--quiet", "--trainer.max_steps", "320"),
    *("--stages.teacher.trainer.max_steps", "20", "--stages.teacher.model.student.config.sizes.width", "16"),
    *("--stages.degradation.trainer.max_steps", "100", "--model.interval", "130"),
)


def command(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "kdbench.cli", *TINY],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KDBENCH_RUNS": str(folder)},
    )


@pytest.mark.slow
def test_a_run_killed_on_its_path_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    whole = command(tmp_path / "whole")
    _, told = whole.communicate(timeout=400)
    assert whole.returncode == 0, told
    killed = command(tmp_path / "killed")
    until = time.monotonic() + 300
    while time.monotonic() < until and not list((tmp_path / "killed/disback").glob("*/checkpoints/last.ckpt")):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not list((tmp_path / "killed/disback").glob("*/record.json"))
    resumed = command(tmp_path / "killed")
    _, told = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, told
    (one,), (two,) = ((tmp_path / name / "disback").glob("*/checkpoints/last.ckpt") for name in ("whole", "killed"))
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in (one, two))
    assert {name.partition(".")[0] for name in first} == {"student", "fake"}
    assert all(torch.equal(first[name], second[name]) for name in first)
    curves = []
    for path in (one, two):
        record = json.loads((path.parent.parent / "record.json").read_text())
        assert record["resumed"] == (path == two)
        curve = record["curves"]["val/sliced_wasserstein@student"]
        curves.append(dict(zip(curve["steps"], curve["values"], strict=True)))
        assert (path.parent.parent / "samples.png").is_file()
    assert list(curves[0]) == list(range(25, 301, 25))
    assert curves[1].items() <= curves[0].items()
    assert told == "", "Lightning's opinions are not for the terminal"
