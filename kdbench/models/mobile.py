"""Networks of depthwise convolutions, as in RepDistiller's CIFAR tables (Tian et al. 2020, arXiv 1910.10699)."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from kdbench.errors import UserError
from kdbench.models.vision import ConvLayer, ConvolutionalClassifier, check_sizes, register

SHUFFLE_WIDTHS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (224, 488, 976, 2048),
}
"""Channels of the three stages and of the last convolution, by the factor of the width."""
SHUFFLE_BLOCKS = (3, 7, 3)
"""Blocks of each stage behind the one that halves the size."""


class ShuffleNetV2Config(PreTrainedConfig):
    """The sizes of a :class:`ShuffleNetV2`.

    Args:
        factor: of the width: 0.5, 1, 1.5 or 2.
        num_channels: of the images.
        kwargs: what transformers itself keeps in a ``config.json``, such as ``num_labels``.

    Raises:
        UserError: another factor.
    """

    model_type = "kdbench_shufflenet_v2"

    def __init__(self, factor: float = 1.0, num_channels: int = 3, **kwargs: Any) -> None:
        self.factor, self.num_channels = factor, num_channels
        if factor not in SHUFFLE_WIDTHS:
            raise UserError(f"A ShuffleNetV2 has a factor of {', '.join(map(str, SHUFFLE_WIDTHS))}, not {factor}.")
        super().__init__(**kwargs)


class ShuffleBlock(nn.Module):
    """Two paths side by side, their channels shuffled: ``relu(shuffle([left(x_1), right(x_2)]))``.

    At the same size x_1 and x_2 are the halves of the channels and the left path is the identity; where the size is halved,
    both are x.
    """

    def __init__(self, inputs: int, width: int, halves: bool) -> None:
        super().__init__()
        self.halves, half, stride = halves, width // 2, 2 if halves else 1
        self.left = nn.Sequential()
        if halves:
            self.left = nn.Sequential(
                ConvLayer(inputs, inputs, 3, 2, groups=inputs, activation=False),
                ConvLayer(inputs, half, 1, activation=False),
            )
        self.right = nn.Sequential(
            ConvLayer(inputs if halves else half, half, 1),
            ConvLayer(half, half, 3, stride, groups=half, activation=False),
            ConvLayer(half, half, 1, activation=False),
        )
        self.activation = nn.ReLU()  # what goes by on the left at the same size is rectified already

    def forward(self, states: Tensor) -> Tensor:
        """Return ``[B, width, H / stride, W / stride]`` for ``[B, inputs, H, W]``."""
        first, second = (states, states) if self.halves else states.chunk(2, dim=1)
        paths = torch.stack([self.left(first), self.right(second)], dim=2)
        return self.activation(paths.flatten(1, 2))


class ShuffleNetV2(ConvolutionalClassifier):
    """ShuffleNet V2 (Ma et al. 2018, arXiv 1807.11164) for images of about 32x32.

    As in RepDistiller the stem is a 1x1 convolution at stride 1, without pooling. Its pre-activations of a block come before the
    channels are shuffled, ours in the order of the block's output.
    """

    config_class = ShuffleNetV2Config

    def __init__(self, config: ShuffleNetV2Config) -> None:
        stem = 24
        *widths, last = SHUFFLE_WIDTHS[config.factor]
        stages = [ConvLayer(config.num_channels, stem, 1)]
        for (inputs, width), blocks in zip(pairwise([stem, *widths]), SHUFFLE_BLOCKS, strict=True):
            rest = (ShuffleBlock(width, width, halves=False) for _ in range(blocks))
            stages.append(nn.Sequential(ShuffleBlock(inputs, width, halves=True), *rest))
        super().__init__(config, stages, last, ConvLayer(widths[-1], last, 1))

    def _init_weights(self, module: nn.Module) -> None:
        """Keep torch's own initialisation, as RepDistiller does here."""


MOBILE_STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
"""Expansion, channels, blocks and stride of the groups of blocks in each stage."""


class CifarMobileNetV2Config(PreTrainedConfig):
    """The sizes of a :class:`CifarMobileNetV2`.

    Args:
        factor: of the width of every block.
        num_channels: of the images.
        kwargs: what transformers itself keeps in a ``config.json``, such as ``num_labels``.

    Raises:
        UserError: a factor that leaves no channel.
    """

    model_type = "kdbench_cifar_mobilenet_v2"

    def __init__(self, factor: float = 0.5, num_channels: int = 3, **kwargs: Any) -> None:
        self.factor, self.num_channels = factor, num_channels
        check_sizes("CifarMobileNetV2", width=int(16 * factor))
        super().__init__(**kwargs)


class InvertedResidual(nn.Module):
    """A depthwise 3x3 convolution between two 1x1 ones, the last of them linear; plus x where size and width stay."""

    def __init__(self, inputs: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.adds = stride == 1 and inputs == width
        self.layers = nn.Sequential(
            ConvLayer(inputs, inner, 1),
            ConvLayer(inner, inner, 3, stride, groups=inner),
            ConvLayer(inner, width, 1, activation=False),
        )

    def forward(self, states: Tensor) -> Tensor:
        """Return ``[B, width, H / stride, W / stride]`` for ``[B, inputs, H, W]``."""
        return states + self.layers(states) if self.adds else self.layers(states)


class CifarMobileNetV2(ConvolutionalClassifier):
    """MobileNet V2 (Sandler et al. 2018, arXiv 1801.04381) for images of about 32x32, as RepDistiller has it.

    The stem halves the size; the blocks of 24 channels do not, those of 32, 64 and 160 do. Units are rectified linear ones
    without an upper limit, widths are the products with the factor rounded down, and the last 1280 channels stay. Stages end
    without an activation.
    """

    config_class, classifier_std = CifarMobileNetV2Config, 0.01

    def __init__(self, config: CifarMobileNetV2Config) -> None:
        inputs = int(32 * config.factor)
        stages = [ConvLayer(config.num_channels, inputs, stride=2)]
        for groups in MOBILE_STAGES:
            blocks = []
            for expansion, channels, count, stride in groups:
                width = int(channels * config.factor)
                for place in range(count):
                    blocks.append(InvertedResidual(inputs, width, 1 if place else stride, expansion))
                    inputs = width
            stages.append(nn.Sequential(*blocks))
        last = 1280
        super().__init__(config, stages, last, ConvLayer(inputs, last, 1))


register(ShuffleNetV2)
register(CifarMobileNetV2)
