"""The moving average of a network's weights: a teacher, the target of a consistency model, what of a student is evaluated."""

import copy

import torch
from torch import Tensor, nn

WARM_UP = 10


class MovingAverage(nn.Module):
    """A copy of a network whose weights follow it, ``average = d average + (1 - d) weights``; buffers are copied.

    The copy is in eval mode, without gradient. It and the number of updates are in the state, so that a fit resumes exactly.

    Args:
        network: what is followed; the copy starts with its weights.
        decay: d, in [0, 1]; 0 copies.
        warm_up: take ``min(d, (1 + k) / (10 + k))`` at the update k = 0, 1, ... instead of d.
    """

    updates: Tensor

    def __init__(self, network: nn.Module, decay: float = 0.999, warm_up: bool = False) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"the decay of a moving average lies in [0, 1], got {decay}")
        self.decay, self.warm_up = decay, warm_up
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._weights: tuple[nn.Module, list[Tensor], list[Tensor]] | None = None

    def train(self, mode: bool = True) -> "MovingAverage":
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, network: nn.Module, decay: float | None = None) -> None:
        """Follow the network by one update; a ``decay`` given here counts instead of the average's own.

        The parameters are looked for at the first update only: a network keeps them, wherever it moves.
        """
        decay = self._decay() if decay is None else decay
        if self._weights is None or self._weights[0] is not network:
            self._weights = (network, list(self.network.parameters()), list(network.parameters()))
        _, ours, theirs = self._weights
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for mine, each in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(each)
        self.updates += 1

    def _decay(self) -> float:
        done = int(self.updates)
        return min(self.decay, (1 + done) / (WARM_UP + done)) if self.warm_up else self.decay
