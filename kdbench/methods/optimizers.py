"""What is trained, parameter groups and learning-rate schedules."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from kdbench.errors import UserError, nearest


class Schedule:
    """A learning-rate schedule by optimiser steps: the factor of the base learning rate."""

    def factor(self, steps: int) -> Callable[[int], float]:
        """Return the factor as a function of the step, for a run of ``steps`` steps."""
        raise NotImplementedError


class LinearDecay(Schedule):
    """A linear warm-up from 0 to 1, then a linear decay to ``final``.

    Args:
        warmup: the share of all steps that warm up, in [0, 1).
        final: the factor at the last step.
    """

    def __init__(self, warmup: float = 0.05, final: float = 0.0) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1), got {warmup}")
        self.warmup, self.final = warmup, final

    def factor(self, steps: int) -> Callable[[int], float]:
        """Return ``min(step / warm, final + (1 - final) * (steps - step) / (steps - warm))``."""
        warm = round(self.warmup * steps)

        def at(step: int) -> float:
            if step < warm:
                return step / warm
            return self.final + (1 - self.final) * max(0.0, (steps - step) / max(1, steps - warm))

        return at


class Constant(Schedule):
    """The base learning rate throughout."""

    def factor(self, steps: int) -> Callable[[int], float]:
        """Return the constant 1."""
        return lambda step: 1.0


class StepDecay(Schedule):
    """The base learning rate, times ``factor`` from each of some points on.

    Args:
        at: the points, as rising shares of all steps in (0, 1): epochs 150, 180 and 210 of 240 are 0.625, 0.75 and 0.875.
        factor: of each step down, above 0.
    """

    def __init__(self, at: list[float], factor: float = 0.1) -> None:
        if not at or sorted(at) != list(at) or not 0 < at[0] <= at[-1] < 1:
            raise ValueError(f"the points of a step decay are rising shares in (0, 1), got {at}")
        if not factor > 0:
            raise ValueError(f"factor must be above 0, got {factor}")
        self.at, self.by = at, factor

    def factor(self, steps: int) -> Callable[[int], float]:
        """Return ``factor ** (number of points that are passed)``."""
        points = [round(share * steps) for share in self.at]
        return lambda step: self.by ** sum(step >= point for point in points)


FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""The optimisers that have one kernel for all weights of a group."""


def fused(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimiser, told to take its step in one kernel where torch has one and the experiment asks for no other way.

    The values differ by rounding. On a CPU a step of AdamW over four million weights takes a tenth of the time.
    """
    for group in optimizer.param_groups if isinstance(optimizer, FUSED) else []:
        places = {weight.device.type for weight in group["params"]}
        if group["fused"] is None and group["foreach"] is None and places <= {"cpu", "cuda", "mps"}:
            group["fused"] = not group["differentiable"]
    return optimizer


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters in two groups, weights with ``weight_decay``, biases and norms without.

    Where nothing decays they are one group, which an optimiser takes in one step.
    """
    decayed, plain = [], []
    for parameter in module.parameters():
        if parameter.requires_grad:
            (decayed if weight_decay and parameter.ndim > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def train_only(network: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze every parameter of a network whose name fits none of the patterns (``classifier.*``).

    Raises:
        UserError: a pattern fits no parameter.
    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"model.train: no parameter of the student is named '{pattern}'.{nearest(pattern, names)}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))
