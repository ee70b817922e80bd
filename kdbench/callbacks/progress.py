"""What the terminal shows while a stage of the chain is fitted: one bar over all its steps, a few lines in a log file."""

import math
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Steps(pl.Callback):
    """Tells another how far a fit is.

    Args:
        tell: is given what is being done, the steps so far, and all steps (None where they are not known).
        every: seconds between two calls.
    """

    def __init__(self, tell: Callable[[str, int, int | None], None], every: float = 1.0) -> None:
        self.tell, self.every = tell, every
        self.told = -math.inf

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Tell the optimiser steps."""
        steps = trainer.estimated_stepping_batches
        self._tell("fitting", _steps(trainer), int(steps) if steps < math.inf else None)

    def on_test_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, place: int, *_: Any
    ) -> None:
        """Tell the batches that are scored."""
        self._tell("scoring", place + 1, sum(trainer.num_test_batches))

    def _tell(self, doing: str, done: int, total: int | None) -> None:
        if time.monotonic() - self.told >= self.every:
            self.told = time.monotonic()
            self.tell(doing, done, total)


class StageProgress(pl.Callback):
    """One bar over the optimiser steps of the whole run; where nobody looks at a terminal, a plain line now and then.

    Args:
        label: such as ``distilbert_ro/teacher_cased (1 of 3)``.
        doing: what the passes over the training rows are for.
        refresh: seconds between two looks at the numbers, on a terminal.
        lines: seconds between two plain lines.
    """

    def __init__(self, label: str, doing: str = "fitting", refresh: float = 0.5, lines: float = 30.0) -> None:
        self.label, self.doing = label, doing
        self.console = Console(stderr=True)
        self.every = refresh if self.console.is_terminal else lines
        self.bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the bar, at the step where a resumed run goes on."""
        steps = trainer.estimated_stepping_batches
        self._begin(self.doing, steps if steps < float("inf") else None, trainer.global_step, trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Show the step and the loss that was logged last."""
        if time.monotonic() - self.shown >= self.every:
            self._show(_steps(trainer), trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the full bar behind."""
        self._show(_steps(trainer), trainer)
        self._end()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a bar for the scores."""
        self.tested = 0
        self._begin("scoring", sum(trainer.num_test_batches), 0, trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count the batch."""
        self.tested += 1
        if time.monotonic() - self.shown >= self.every:
            self._show(self.tested, trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bar away: the table follows at once."""
        self._end(transient=True)

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        """Leave the terminal as it was."""
        self._end()

    def _begin(self, what: str, total: int | None, done: int, trainer: pl.Trainer) -> None:
        self.what, self.total, self.first = what, total, done
        self.began = self.shown = time.monotonic()
        if not self.console.is_terminal or not trainer.is_global_zero:
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}  {task.fields[told]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self.console,
            auto_refresh=False,
        )
        self.task = self.bar.add_task(f"{self.label}  {what}", total=total, completed=done, told="")
        self.bar.start()

    def _show(self, done: int, trainer: pl.Trainer) -> None:
        self.shown = time.monotonic()
        speed = (done - self.first) / max(self.shown - self.began, 1e-9)
        loss = trainer.callback_metrics.get("train/loss") if self.what == "fitting" else None
        told = f"{speed:.1f}/s" + (f"  loss {float(loss):.4g}" if loss is not None else "")
        if self.bar is not None:
            self.bar.update(self.task, completed=done, told=told, refresh=True)
        elif trainer.is_global_zero:
            of = f" of {self.total}" if self.total else ""
            self.console.print(f"{self.label}  {self.what} {done}{of}  {told}", highlight=False, soft_wrap=True)

    def _end(self, transient: bool = False) -> None:
        if self.bar is not None:
            self.bar.live.transient = transient
            self.bar.stop()
            self.bar = None


def _steps(trainer: pl.Trainer) -> int:
    """Return the optimiser steps so far; of a module that optimises nothing, the batches."""
    if trainer.lightning_module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.epoch_loop.total_batch_idx + 1
