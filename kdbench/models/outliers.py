"""Outlier channels, put into a network on purpose: its function stays the same, and its activations get hard to quantise."""

import torch
from torch import nn

from kdbench.errors import UserError
from kdbench.models.folding import fold, sites
from kdbench.models.quantised_folder import describe
from kdbench.models.surgery import Facts, Surgery


class InjectOutliers(Surgery):
    """Some channels behind every norm made large, ``X' = X g + o``, and compensated in the layers that read them.

    It is what large language models grow by themselves: a few channels, the same in all tokens, far from 0 and from the others.
    Wei et al. 2023, arXiv 2304.09145, undo it.

    Args:
        channels: how many behind each norm, drawn at random.
        gain: lowest and highest g, drawn uniformly.
        offset: the size of o, whose sign is drawn; 0 where a norm or a layer that reads it has no bias.
        seed: of what is drawn.

    Raises:
        UserError: there are fewer channels, or the network cannot be folded.
    """

    def __init__(
        self, channels: int = 3, gain: tuple[float, float] = (20.0, 60.0), offset: float = 30.0, seed: int = 0
    ) -> None:
        if channels < 1 or not 0 < gain[0] <= gain[1]:
            raise UserError(f"InjectOutliers takes a channel or more and gains above 0, not {channels} and {gain}.")
        self.channels, self.gain, self.offset, self.seed = channels, gain, offset, seed

    def __call__(self, network: nn.Module, facts: Facts) -> nn.Module:
        """Return the same network with outliers."""
        generator = torch.Generator().manual_seed(self.seed)
        for site in sites(network):
            norm = network.get_submodule(site.source)
            if isinstance(norm, nn.Linear):
                continue
            width = len(norm.weight)
            if self.channels > width:
                raise UserError(f"InjectOutliers: '{site.source}' has {width} channels, not {self.channels}.")
            chosen = torch.randperm(width, generator=generator)[: self.channels]
            lowest, highest = self.gain
            gains = lowest + (highest - lowest) * torch.rand(self.channels, generator=generator)
            signs = 2 * torch.randint(2, (self.channels,), generator=generator) - 1
            scale, shift = torch.ones_like(norm.weight), torch.zeros_like(norm.weight)
            scale[chosen] = (1 / gains).to(scale)
            if site.shifts:
                shift[chosen] = (-self.offset * signs / gains).to(shift)
            fold(network, site, shift, scale)
        describe(network)
        return network
