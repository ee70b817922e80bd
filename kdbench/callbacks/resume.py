"""Exact resume: a killed run, started again, ends with the same weights as an unbroken one, bit for bit on one CPU.

Lightning saves weights, optimiser, schedule and loops; the loaders save their place; here the random states are added,
and checkpoints are written so that a kill at any moment leaves a usable one.
"""

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from kdbench.errors import UserError
from kdbench.files import whole_file


class RandomStates(pl.Callback):
    """Saves the random states of all ranks with a checkpoint; each sets its own again at the first batch after loading."""

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


class LastCheckpoint(ModelCheckpoint):
    """Keeps one checkpoint, the newest.

    Args:
        folder: where it lies, as ``last.ckpt``.
        every: optimiser steps between two.
    """

    def __init__(self, folder: str | Path, every: int = 200) -> None:
        super().__init__(
            dirpath=folder, filename="last", every_n_train_steps=every, save_top_k=1, enable_version_counter=False
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the end of training too, whatever its step."""
        super().on_train_end(trainer, pl_module)
        trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")
