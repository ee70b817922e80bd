"""Several updates in each training step, each of its own networks with its own optimiser: what score distillation needs."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from kdbench.errors import UserError
from kdbench.methods.base import Distillation, Optimizer
from kdbench.methods.objective import Batch, Objective
from kdbench.methods.optimizers import Schedule, fused, parameter_groups
from kdbench.models.origins import Origin


@dataclass
class Update:
    """One of the ordered updates of a training step.

    Args:
        trains: the modules of the method, by name, whose parameters it changes.
        optimizer: over these parameters.
        schedule: of the learning rate, by the updates of this kind.
        every: at how many training steps it happens once; the first is the first step.
        weight_decay: of weights; biases and norms have none.
        clip: the largest norm of the gradient; None: any.
    """

    trains: list[str]
    optimizer: Optimizer
    schedule: Schedule
    every: int = 1
    weight_decay: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"an update happens at every step or every n-th, not every {self.every}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"the norm of a gradient is clipped to more than 0, not {self.clip}")


class Alternating(Distillation, abc.ABC):
    """A :class:`Distillation` that makes several updates a training step, in their order, each with losses of its own.

    Networks that play against each other or follow each other are trained so: a generator and the score network of what
    it generates, a codec and its discriminators. One training step is one step of the trainer (``max_steps``, schedules,
    logs), however many updates it makes. What an update does not train gets no gradient. All that training needs to go on
    is in the checkpoint: the optimisers, their schedules, and whatever a family registers as a buffer.
    """

    automatic_optimization = False
    updates: Mapping[str, Update]
    """By name, in their order; set by the constructor of the family. One at least happens at every step."""

    def __init__(
        self, student: Origin, teachers: Mapping[str, Origin], references: Mapping[str, Origin | str] | None
    ) -> None:
        super().__init__(student, None, dict(teachers), dict(references or {}))
        self.objective = Objective({})  # each update has terms of its own

    @abc.abstractmethod
    def terms(self, update: str, batch: Batch) -> dict[str, Tensor]:
        """Return the raw terms of one update; their weighted sum is what it descends."""

    def setup(self, stage: str) -> None:
        """Build the networks; refuse several processes that would wait for gradients of what an update does not train."""
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters"):
            raise UserError(
                "Alternating updates on several devices need 'trainer.strategy: ddp_find_unused_parameters_true'."
            )
        super().setup(stage)

    def weight_of(self, term: str) -> float:
        """Return the factor of a term in its update; by default 1."""
        return 1.0

    def rehearse(self, batch: Batch) -> None:
        """Compute the terms of every update once."""
        for name in self.updates:
            self.terms(name, batch)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Make every update that is due."""
        batch = self.prepare(batch)
        step, logs = self.global_step, self._logs_now()
        due = {name: update for name, update in self.updates.items() if step % update.every == 0}
        *_, counted = (name for name, update in due.items() if update.every == 1)
        for name, optimizer, schedule in zip(self.updates, self._all_optimizers(), self._all_schedules(), strict=True):
            if name not in due:
                continue
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self._total(self.terms(name, batch), batch, logs))
            if due[name].clip is not None:
                self.clip_gradients(optimizer, due[name].clip, "norm")
            if name == counted:
                optimizer.step()
            else:  # a step that the trainer does not count
                self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
            self.untoggle_optimizer(optimizer)
            schedule.step()
            self.after_update(name)

    def after_update(self, update: str) -> None:
        """Follow an update, with a moving average or a counter; by default nothing happens."""

    def check_optimizers(self) -> None:
        """Raise ValueError for a number that an optimiser refuses, or when no update happens at every step."""
        for update in self.updates.values():
            update.optimizer([nn.Parameter(torch.zeros(1))])
        if min(update.every for update in self.updates.values()) > 1:
            raise ValueError("one of the updates has to happen at every step")

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        """Return an optimiser and a schedule for each update."""
        steps = int(self.trainer.estimated_stepping_batches)
        optimizers, schedules = [], []
        for update in self.updates.values():
            trained = nn.ModuleList(self.get_submodule(name) for name in update.trains)
            optimizer = fused(update.optimizer(parameter_groups(trained, update.weight_decay)))
            own = -(-steps // update.every)
            schedules.append(torch.optim.lr_scheduler.LambdaLR(optimizer, update.schedule.factor(own)))
            optimizers.append(optimizer)
        return optimizers, schedules

    def _all_optimizers(self) -> list[Any]:
        found = self.optimizers()
        return found if isinstance(found, list) else [found]

    def _all_schedules(self) -> list[Any]:
        found = self.lr_schedulers()
        return found if isinstance(found, list) else [found]
