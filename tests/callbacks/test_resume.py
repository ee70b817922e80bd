"""Exact resume: a fit that dies goes on with the rows, the epochs, the curves and the weights of one that does not."""

import lightning.pytorch as pl
import pytest
import torch

from kdbench.callbacks.curves import Curves
from kdbench.callbacks.resume import ExactResume, LastCheckpoint
from kdbench.data.vectors import VectorClassification
from kdbench.methods.supervised import Supervised
from kdbench.models.origins import FromConfig

STEPS = 24
EPOCHS = {"max_epochs": 3, "val_check_interval": 1.0}
SETTINGS = {  # of 8 batches an epoch
    "each epoch": EPOCHS,
    "each epoch, as many steps": {"max_epochs": -1, "max_steps": STEPS, "val_check_interval": 1.0},
    "each fourth step": {"max_epochs": 3, "val_check_interval": 4, "check_val_every_n_epoch": None},
    "within an epoch": {"max_epochs": 3, "val_check_interval": 5},
    "two batches a step": {"max_epochs": 6, "val_check_interval": 1.0, "accumulate_grad_batches": 2},
    "within a step": {"max_epochs": 6, "val_check_interval": 5, "accumulate_grad_batches": 2},
}


class Seen(pl.Callback):
    """Writes down what each batch was, and dies at the end of a step."""

    def __init__(self, dies=None):
        self.dies, self.batches = dies, {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        place = trainer.current_epoch, batch_idx
        self.batches[place] = trainer.global_step, batch["id"].tolist()
        if trainer.global_step == self.dies:
            raise InterruptedError


def fitted(folder, settings, dies=None):
    """Fit, or go on with the fit of a folder; return curves, weights and batches."""
    pl.seed_everything(0, verbose=False)
    module = Supervised(FromConfig("MLPClassifier", {"widths": [8]}))
    curves, seen, last = Curves(folder / "best.ckpt"), Seen(dies), folder / "last.ckpt"
    trainer = pl.Trainer(
        **settings,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[ExactResume(), curves, LastCheckpoint(last, every=1), seen],
    )
    data = VectorClassification("synthetic/gaussian_tree", batch_size=256)
    resumed = {"ckpt_path": str(last), "weights_only": False} if last.exists() else {}
    if dies is not None:
        with pytest.raises(InterruptedError):
            trainer.fit(module, datamodule=data, **resumed)
    else:
        trainer.fit(module, datamodule=data, **resumed)
    points = [{key: value for key, value in point.items() if key != "seconds"} for point in curves.points]
    return points, module.state_dict(), seen.batches


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_wherever_a_fit_dies_it_ends_as_one_that_does_not(settings, tmp_path):
    whole, weights, batches = fitted(tmp_path, settings)
    assert len(whole) > 2 and len(batches) >= STEPS
    for death in (4, 5, 9, 14, 17, 22):
        folder = tmp_path / str(death)
        *_, before = fitted(folder, settings, death)
        points, resumed, after = fitted(folder, settings)
        assert points == whole, death
        assert before | after == batches, death
        assert all(value.equal(resumed[name]) for name, value in weights.items()), death


def test_a_fit_may_die_again(tmp_path):
    whole, weights, _ = fitted(tmp_path, EPOCHS)
    folder = tmp_path / "dies"
    for death in (3, 9, 10, 17):
        fitted(folder, EPOCHS, death)
    points, resumed, _ = fitted(folder, EPOCHS)
    assert points == whole
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())
