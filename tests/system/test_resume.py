"""An experiment of every paper ends, wherever it dies, with the scores, curves and weights of a fit that does not."""

import functools
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from kdbench.callbacks.resume import LastCheckpoint
from kdbench.suite import chain, experiment, fit, runs

ROOT = Path(__file__).parent.parent.parent
STEPLESS = {"data_mixture_inference", "outlier_suppression_plus"}
"""A study, and a network that is calibrated and not trained."""
BESIDE = {"diversity_distillation": "diversity_distillation/slider", "regmix": "regmix/proxy"}
"""An experiment that learns, where the paper's own only samples, or is made from twenty runs."""
PAPERS = sorted({each.stem for each in (ROOT / "experiments").glob("*.yaml")} - STEPLESS)
FEW = {
    "trainer.max_steps": 8,
    "trainer.max_epochs": -1,
    "trainer.val_check_interval": 3,
    "trainer.check_val_every_n_epoch": None,
    "trainer.limit_val_batches": 2,
    "trainer.limit_test_batches": 2,
    "trainer.accelerator": "cpu",
}
CHANGES = {"disback": {"stages.degradation.model.every": 3, "model.interval": 2}}


class Dies(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise InterruptedError


@pytest.fixture(autouse=True)
def checkpoints_at_every_step(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(fit, "LastCheckpoint", functools.partial(LastCheckpoint, every=1))


def plan(paper):
    """Return a new attempt of a paper's experiment of a few steps, whose stages have a few too."""
    changes, name = FEW | CHANGES.get(paper, {}), BESIDE.get(paper, paper)
    asked = ROOT / "experiments" / f"{name}.yaml"
    for stage in chain.plan(experiment.read(asked, overrides=list(changes.items()))).walk():
        if "trainer" in stage.config and stage.name != name:
            few = {"max_steps": 6, "max_epochs": -1, "limit_val_batches": 1, "limit_test_batches": 1}
            changes |= {f"stages.{Path(stage.name).name}.trainer.{key}": value for key, value in few.items()}
    return chain.plan(experiment.read(asked, overrides=list(changes.items())), fresh=True)


def told(stage):
    """Fit, and return what cannot depend on the clock."""
    record = fit.fit(stage, quiet=True)
    clocked = ("seconds", "speed", "train/")  # the last log may be of the attempt before
    scores = {key: value for key, value in record["metrics"].items() if not any(each in key for each in clocked)}
    curves = {key: {**curve, "seconds": None} for key, curve in record["curves"].items()}
    return scores, curves, torch.load(stage.folder / runs.CHECKPOINT, weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_wherever_a_fit_dies_it_ends_as_one_that_does_not(paper):
    scores, curves, weights = told(plan(paper))
    dying = plan(paper)
    with pytest.raises(InterruptedError):
        fit.fit(dying, quiet=True, watch=[Dies(7)])  # the last checkpoint is that of step 6, which was validated
    again = told(dying)
    assert again[:2] == (scores, curves)
    assert all(torch.equal(value, again[2][name]) for name, value in weights.items())
    assert weights.keys() == again[2].keys()
