"""The benchmarks run: they are commands that nobody else calls."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def table(*command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("|")]
    return {first: [float(value) for value in values] for first, *values in lines[2:]}


@pytest.mark.slow
def test_what_a_step_costs_beside_the_loop_by_hand():
    told = table("tests.benchmarks.speed", "--job", "tiny", "--rounds", "1")
    assert {"plain", "kdbench", "kdbench, logging each step"} <= set(told)
    for seconds, _, apart in told.values():
        assert seconds > 0 and apart < 1e-5  # the same weights, whoever trains


@pytest.mark.slow
def test_what_a_step_of_diffusion_costs():
    told = table("tests.benchmarks.diffusion", "--rounds", "1", "--steps", "20")
    assert len(told) == 5 and all(plain > 0 and ours > 0 for plain, ours, *_ in told.values())
