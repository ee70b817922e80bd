"""Several networks as one, to be compared with."""

import math

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from kdbench.models.origins import Origin
from kdbench.models.surgery import Facts


class Ensemble(Origin):
    """Image classifiers whose probabilities are averaged: what a student of all of them may reach.

    Args:
        members: the origins of the networks, which take images in one way.
    """

    def __init__(self, members: list[Origin]) -> None:
        if not members:
            raise ValueError("an ensemble has at least one member")
        super().__init__()
        self.members = members

    def make(self, facts: Facts) -> nn.Module:
        """Build the members."""
        return MeanProbabilities([member.build(facts) for member in self.members])

    def tokenizer(self) -> None:
        """Return None: images have none."""
        return

    def check(self) -> None:
        """Raise :class:`UserError` when a member cannot be had."""
        for member in self.members:
            member.check()


class MeanProbabilities(nn.Module):
    """``logits = log(1/K sum_k softmax(z_k))`` of K image classifiers with logits z_k."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutputWithNoAttention:
        """Return ``logits`` ``[B, C]`` for ``pixel_values`` ``[B, channels, height, width]``."""
        logs = torch.stack([member(pixel_values=pixel_values).logits.log_softmax(-1) for member in self.members])
        return ImageClassifierOutputWithNoAttention(logits=logs.logsumexp(0) - math.log(len(self.members)))
