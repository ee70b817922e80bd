"""The networks inside denoisers: perceptrons for points and small images, a U-Net for images.

Each is built from the shape of a sample and the number of classes (0: no labels) and is called with the scaled sample
``[B, *shape]``, its noise ``ln(sigma) / 4`` ``[B]`` and, where there are classes, the class ``[B]``; the last class is null.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from kdbench.errors import UserError


class FourierFeatures(nn.Module):
    """``[cos(2 pi f c), sin(2 pi f c)]`` of numbers c for fixed random frequencies ``f ~ N(0, 1)`` (arXiv 2006.10739)."""

    frequencies: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(count))

    def forward(self, numbers: Tensor) -> Tensor:
        """Return ``[B, 2 count]`` of numbers ``[B]``."""
        angles = 2 * math.pi * numbers[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class FourierMLP(nn.Module):
    """A perceptron with SiLU units on the sample and the Fourier features of its noise, side by side.

    Args:
        shape: of a sample.
        classes: whose embedding, where there are any, is added in the first layer.
        width: of the hidden layers.
        depth: how many there are.
        frequencies: of the Fourier features.
    """

    def __init__(
        self, shape: Sequence[int], classes: int, width: int = 128, depth: int = 3, frequencies: int = 8
    ) -> None:
        super().__init__()
        size = math.prod(shape)
        self.noise = FourierFeatures(frequencies)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.hidden = nn.ModuleList(
            nn.Linear(width if place else size + 2 * frequencies, width) for place in range(depth)
        )
        self.out = nn.Linear(width, size)

    def forward(self, sample: Tensor, noise: Tensor, label: Tensor | None) -> Tensor:
        """Return the output, of the shape of the sample."""
        first, *further = self.hidden
        states = first(torch.cat([sample.flatten(1), self.noise(noise)], dim=-1))
        if self.label is not None:
            states = states + self.label(label)
        for layer in further:
            states = layer(silu(states))
        return self.out(silu(states)).reshape(sample.shape)


class ResidualBlock(nn.Module):
    """``h + W_2 silu(W_1 silu(norm h) + c)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, states: Tensor, condition: Tensor) -> Tensor:
        """Return states ``[B, width]``."""
        return states + self.second(silu(self.first(silu(self.norm(states))) + condition))


class ResidualMLP(nn.Module):
    """A residual perceptron; noise and class enter every block: enough for images of 8 x 8 pixels.

    Args:
        shape: of a sample.
        classes: see above.
        width: of the states.
        blocks: how many there are.
        frequencies: of the Fourier features of the noise.
    """

    def __init__(
        self, shape: Sequence[int], classes: int, width: int = 256, blocks: int = 3, frequencies: int = 16
    ) -> None:
        super().__init__()
        size = math.prod(shape)
        self.noise = nn.Sequential(FourierFeatures(frequencies), nn.Linear(2 * frequencies, width), nn.SiLU())
        self.condition = nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.into = nn.Linear(size, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, size)

    def forward(self, sample: Tensor, noise: Tensor, label: Tensor | None) -> Tensor:
        """Return the output, of the shape of the sample."""
        condition = self.condition(self.noise(noise))
        if self.label is not None:
            condition = condition + self.label(label)
        states = self.into(sample.flatten(1))
        for block in self.blocks:
            states = block(states, condition)
        return self.out(silu(self.norm(states))).reshape(sample.shape)


class UNet(nn.Module):
    """The ``UNet2DModel`` of diffusers for square images ``[C, H, H]``; its timestep is ``1000 ln(sigma) / 4``.

    So consistency models take theirs; the sinusoids of diffusers are made for numbers up to 1000 (arXiv 2303.01469).

    Args:
        shape: of an image.
        classes: see above.
        sizes: further arguments of ``UNet2DModel``.

    Raises:
        UserError: diffusers is not installed.
    """

    def __init__(self, shape: Sequence[int], classes: int, **sizes: Any) -> None:
        super().__init__()
        try:
            from diffusers import UNet2DModel
        except ImportError as error:
            raise UserError("A U-Net needs diffusers: run 'pip install kdbench[diffusion]'.") from error
        channels, height, _ = shape
        known = {"sample_size": height, "in_channels": channels, "out_channels": channels}
        self.unet = UNet2DModel(**known, num_class_embeds=classes + 1 if classes else None, **sizes)

    def forward(self, sample: Tensor, noise: Tensor, label: Tensor | None) -> Tensor:
        """Return the output, of the shape of the sample."""
        return self.unet(sample, 1000 * noise, class_labels=label).sample


NETWORKS: dict[str, type[nn.Module]] = {"fourier_mlp": FourierMLP, "residual_mlp": ResidualMLP, "unet": UNet}
"""The networks by the names that a config gives them."""
