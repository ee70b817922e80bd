"""Every file under experiments/: it is read, is complete, and its chain is planned without a network."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kdbench.data import registry
from kdbench.errors import UserError
from kdbench.suite import chain, check, experiment, fit, study

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "experiments").rglob("*.yaml"))
MAIN = [file for file in FILES if Path(file).parent.name == "experiments"]


@pytest.fixture(autouse=True)
def without_network(tmp_path, monkeypatch):
    def connect(*_):
        raise AssertionError("a plan asks nobody")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "runs"))


def layers(file):
    """Return the files that are read together: the overlay paper.yaml lies over the paper's main file."""
    path = Path(file)
    return (f"{path.parent}.yaml", file) if path.name == "paper.yaml" else (file,)


def planned(asked):
    """Return the chain of an experiment; without the folder of real data, one that needs it cannot be planned."""
    try:
        return chain.plan(asked)
    except UserError as error:
        if registry.FOLDER not in os.environ and f"needs {registry.FOLDER}" in str(error):
            pytest.skip(str(error))
        raise


def once(stage):
    """Return the stages of a chain, of a fleet the first."""
    return list({each.name: each for each in reversed(list(stage.walk()))}.values())


def test_there_are_experiments():
    assert "experiments/distilbert_ro.yaml" in MAIN


@pytest.mark.parametrize("file", FILES)
def test_an_experiment_is_complete_and_its_chain_is_planned(file):
    asked = experiment.read(*layers(file))
    check.check(asked.config)
    stage = planned(asked)
    folders = [each.folder for each in stage.walk()]
    assert len(set(folders)) == len(folders)
    assert stage.name == str(Path(layers(file)[0]).relative_to("experiments").with_suffix(""))
    for each in once(stage):
        check.check(each.config)
        assert each.record is None
        if Path(file).name != "paper.yaml":
            assert each.hub() == [], "an experiment needs no network; its overlay paper.yaml may"


@pytest.mark.parametrize("file", FILES)
def test_an_experiment_is_built(file):
    stage = planned(experiment.read(*layers(file)))
    for each in once(stage) if Path(file).name == "paper.yaml" else [stage]:
        if Path(file).name == "paper.yaml":
            each.config["trainer"] = {}  # its devices are not here
        with fit.friendly(each):
            if study.is_study(each.config):
                assert callable(study.build(each))
            else:
                found = fit.build(each, [], False)
                assert found.trainer.max_steps == each.config["trainer"].get("max_steps", -1)


@pytest.mark.parametrize("file", MAIN)
def test_a_main_file_needs_no_other_to_be_read(file):
    content = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    assert {"model", "data", "trainer"} <= content.keys() or content.keys() == {"study"}
    assert "base" not in content


def test_the_list_of_papers_shows_each_main_file_with_its_comment():
    told = subprocess.run(
        [sys.executable, "-m", "kdbench.cli", "list", "papers"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    shown = dict(re.findall(r"^  (\S+) +(.*)$", told.stdout, re.MULTILINE))
    assert list(shown) == MAIN
    for file, line in shown.items():
        assert (ROOT / file).read_text(encoding="utf-8").startswith(f"# {line}\n")
        assert len(line) > 20
