"""Nothing is learnt by gradients: the batches of one epoch are seen, and then the network, or what is left of it, is computed."""

import abc
from collections.abc import Mapping
from pathlib import Path

import torch

from kdbench.errors import UserError
from kdbench.methods.base import Distillation
from kdbench.methods.objective import Batch, Objective
from kdbench.models.origins import Origin


class ClosedForm(Distillation, abc.ABC):
    """A :class:`Distillation` without a loss: it looks at every batch once and solves behind the last one.

    Calibration, pruning and regression are of this kind. ``solve`` ends the last training step, so that validation, checkpoint and
    export, which follow, see what it made. What it leaves in ``folder`` is an artifact of the run, which ``FromRun {experiment,
    file}`` finds. There is no checkpoint before the end: a run that is interrupted looks at its batches again.

    Args:
        student: the origin of the network that is changed.
        teachers: see :class:`Distillation`.
        references: see :class:`Distillation`.
    """

    automatic_optimization = False

    def __init__(
        self,
        student: Origin,
        teachers: Mapping[str, Origin] | None = None,
        references: Mapping[str, Origin | str] | None = None,
    ) -> None:
        super().__init__(student, None, dict(teachers or {}), dict(references or {}))
        self.objective = Objective({})

    @abc.abstractmethod
    def observe(self, batch: Batch) -> None:
        """Look at a batch; the student is in eval mode."""

    @abc.abstractmethod
    def solve(self) -> None:
        """Change the student, or write to ``folder``, by what was seen; the student is in eval mode."""

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.trainer.default_root_dir)

    def setup(self, stage: str) -> None:
        """Build the networks.

        Raises:
            UserError: there is more or less than one epoch, no batch, or more than one process.
        """
        name = type(self).__name__
        if (self.trainer.max_epochs, self.trainer.max_steps) != (1, -1):
            raise UserError(
                f"{name} sees every batch once, and there are no steps: set trainer.max_epochs to 1, and no max_steps."
            )
        if self.trainer.limit_train_batches == 0:
            raise UserError(f"{name} has no batch to look at: trainer.limit_train_batches leaves one or more.")
        if self.trainer.world_size > 1:
            raise UserError(f"{name} sees all batches in one process: set trainer.devices to 1.")
        super().setup(stage)

    @torch.no_grad()
    def rehearse(self, batch: Batch) -> None:
        """Call the student once."""
        for view in self._views("student").values():
            self.student(**batch[view])

    @torch.no_grad()
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Look at a batch, and solve behind the last one."""
        self.student.eval()
        self.observe(self.prepare(batch))
        if self.trainer.is_last_batch:
            self.solve()

    def check_optimizers(self) -> None:
        """Check nothing: there is no optimiser."""

    def configure_optimizers(self) -> None:
        """Return none."""
