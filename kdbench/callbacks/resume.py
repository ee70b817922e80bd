"""Exact resume: a killed run, started again, ends with the weights, curves and scores of an unbroken one, bit for bit on one CPU.

Lightning saves weights, optimiser, schedule and loops; the loaders save their places; here the random states are added, and
checkpoints are written when they are exact, and so that a kill at any moment leaves a usable one.
"""

import abc
import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from kdbench.errors import UserError
from kdbench.files import whole_file


class ExactResume(pl.Callback):
    """Lets a fit that goes on draw the numbers, and load the rows, that an unbroken one would have.

    The random states of all ranks are saved with a checkpoint; each sets its own again at the first batch after loading.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what every rank has drawn so far; all of them take part in writing a checkpoint."""
        if not dist.is_initialized():
            return {"ranks": [self._own()]}
        ranks = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, self._own())
        return {"ranks": ranks}

    def _own(self) -> dict[str, Any]:
        """Return the states of torch, of this process's CUDA device, of numpy and of Python."""
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - it is the global state that has to be kept
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
            "python": random.getstate(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep this rank's states until training goes on; building the loaders draws from them."""
        ranks = state_dict["ranks"]
        self._loaded = ranks[dist.get_rank() % len(ranks) if dist.is_initialized() else 0]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the loaders to their places.

        Lightning does so when it builds them: before it reads the checkpoint, where a schedule has asked for the number of steps.
        """
        trainer.fit_loop._load_combined_loader_states()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the loaded states before the first batch."""
        if self._loaded is None:
            return
        states, self._loaded = self._loaded, None
        torch.set_rng_state(states["torch"].cpu())
        if states["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"].cpu())
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        version, words, gauss = states["python"]
        random.setstate((version, tuple(words), gauss))


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint to a neighbour, to the disk, and only then over the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``, whole or not at all."""
        with whole_file(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the checkpoint at ``path``; raise :class:`UserError` where there is none or a damaged one."""
        if not Path(path).exists():
            raise UserError(f"There is no checkpoint '{path}' any more: make a new attempt with 'kdbench fit --fresh'.")
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except (MemoryError, PermissionError):
            raise
        except Exception as error:  # torch fails in as many ways as a file can be damaged
            raise UserError(
                f"The checkpoint '{path}' is damaged ({type(error).__name__}): remove it, and the same command starts anew."
            ) from error


class AfterSteps(Checkpoint, abc.ABC):
    """Does something after each step of the optimiser, at the one moment at which a checkpoint is exact.

    Between the batches of one step there are gradients in no checkpoint. A validation that follows a step belongs to it: Lightning
    takes it for done when it goes on from a checkpoint that was written between the two.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin at the step where a resumed run goes on."""
        self._step, self._validates = trainer.global_step, False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Act where a step has ended, unless it is validated first."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        loop = trainer.fit_loop
        self._validates = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        if not self._validates:
            self.after_step(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Act after a step that was validated."""
        if trainer.state.fn == TrainerFn.FITTING and self._validates:
            self._validates = False
            self.after_step(trainer)

    @abc.abstractmethod
    def after_step(self, trainer: pl.Trainer) -> None:
        """Act."""


class LastCheckpoint(AfterSteps):
    """Keeps one checkpoint, the newest.

    Args:
        file: where it lies.
        every: optimiser steps between two.
    """

    def __init__(self, file: Path, every: int = 200) -> None:
        self.file, self.every = file, every

    def after_step(self, trainer: pl.Trainer) -> None:
        """Save at every so many steps."""
        if trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.file)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the end of training too, whatever its step."""
        trainer.save_checkpoint(self.file)
