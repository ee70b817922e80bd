"""The progress bar, with the stage of the chain that is running."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm


class StageProgress(TQDMProgressBar):
    """Lightning's bar over the optimiser steps of the whole run, labelled with the stage.

    Args:
        label: such as ``distilbert_ro/teacher_cased (1 of 3)``.
    """

    def __init__(self, label: str) -> None:
        super().__init__(refresh_rate=20)
        self.label = label

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return what the bar shows: the loss, without the logger's version."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return shown

    def init_train_tqdm(self) -> tqdm:
        """Return a bar without a line of its own for each epoch."""
        bar = super().init_train_tqdm()
        bar.leave = True
        return bar

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Label the bar with the stage and the epoch."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(f"{self.label}, epoch {trainer.current_epoch}")

    def init_validation_tqdm(self) -> tqdm:
        """Return a silent bar: validation is short and shows in the scores."""
        return tqdm(disable=True)

    init_sanity_tqdm = init_validation_tqdm

    def init_test_tqdm(self) -> tqdm:
        """Return a silent bar: the table follows at once."""
        return tqdm(disable=True)
