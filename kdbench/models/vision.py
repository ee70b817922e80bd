"""Convolutional networks for small images: those of the CIFAR tables of knowledge distillation, and a plain one.

Each is a stem, stages one after another, the mean over places, and a linear layer. Sizes and strides are those of
RepDistiller (Tian et al. 2020, arXiv 1910.10699), which later papers took over, and so are the first weights: those of
convolutions as in He et al. 2015 (arXiv 1502.01852, fan-out), those of the linear layer as torch makes them or, in a VGG, with a
deviation of 0.01.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from kdbench.errors import UserError


class ImageClassifier(PreTrainedModel):
    """``logits`` of images: a linear layer ``classifier`` on one vector an image, :meth:`pooled`."""

    base_model_prefix = ""
    main_input_name = "pixel_values"
    classifier: nn.Linear

    def get_input_embeddings(self) -> None:
        """Return None: images have no vocabulary."""
        return

    def pooled(self, pixel_values: Tensor) -> Tensor:
        """Return one vector an image ``[B, width]``."""
        raise NotImplementedError

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutputWithNoAttention:
        """Return ``logits`` ``[B, classes]`` of ``pixel_values`` ``[B, channels, height, width]``."""
        return ImageClassifierOutputWithNoAttention(logits=self.classifier(self.pooled(pixel_values)))


class ConvolutionalClassifier(ImageClassifier):
    """A stem, stages one after another, and the mean over the places of the last feature maps.

    Args:
        config: with ``num_labels``.
        stages: the stem and the stages.
        width: of the features that are pooled.
        last: what happens to the last stage's maps before they are pooled.
    """

    classifier_std: ClassVar[float | None] = None
    """The deviation of the classifier's first weights, with biases of 0; None: as torch makes them."""

    def __init__(
        self, config: PreTrainedConfig, stages: Sequence[nn.Module], width: int, last: nn.Module | None = None
    ) -> None:
        super().__init__(config)
        self.stages, self.last = nn.ModuleList(stages), nn.Identity() if last is None else last
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Set the weights of a convolution, and of the classifier where the class has a deviation for them."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and self.classifier_std is not None:
            nn.init.normal_(module.weight, 0.0, self.classifier_std)
        else:
            return
        if module.bias is not None:
            nn.init.zeros_(module.bias)

    def pooled(self, pixel_values: Tensor) -> Tensor:
        """Return one vector an image ``[B, width]``."""
        states = pixel_values
        for stage in self.stages:
            states = stage(states)
        return self.last(states).mean((2, 3))


class ConvLayer(nn.Sequential):
    """Convolution (the same size at stride 1), batch norm and, unless told otherwise, a rectified linear unit."""

    def __init__(
        self,
        inputs: int,
        width: int,
        size: int = 3,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, size, stride, size // 2, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(width)
        if activation:
            self.activation = nn.ReLU()


# ---- a plain one ----


class ConvNetConfig(PreTrainedConfig):
    """The sizes of a :class:`ConvNet`.

    Args:
        widths: channels of each stage; the stem has those of the first.
        layers: convolutions in each stage.
        num_channels: of the images.
        kwargs: what transformers itself keeps in a ``config.json``, such as ``num_labels``.

    Raises:
        UserError: a size is below 1, or there is no stage.
    """

    model_type = "kdbench_convnet"

    def __init__(
        self, widths: Sequence[int] = (8, 16, 32), layers: int = 1, num_channels: int = 3, **kwargs: Any
    ) -> None:
        self.widths, self.layers, self.num_channels = list(widths), layers, num_channels
        check_sizes("ConvNet", widths=self.widths, layers=layers)
        super().__init__(**kwargs)


class ConvNet(ConvolutionalClassifier):
    """3x3 convolutions in stages of any number and width; each stage but the first halves the size with its first one."""

    config_class = ConvNetConfig

    def __init__(self, config: ConvNetConfig) -> None:
        stages = [ConvLayer(config.num_channels, config.widths[0])]
        for place, (inputs, width) in enumerate(pairwise([config.widths[0], *config.widths])):
            first = ConvLayer(inputs, width, stride=2 if place else 1)
            stages.append(nn.Sequential(first, *(ConvLayer(width, width) for _ in range(config.layers - 1))))
        super().__init__(config, stages, config.widths[-1])


# ---- residual networks ----


class CifarResNetConfig(PreTrainedConfig):
    """The sizes of a :class:`CifarResNet`.

    Args:
        depth: ``6 n + 2``: 8, 20, 32, 56, 110 have 1, 3, 5, 9, 18 blocks in each of their three stages.
        widths: channels of the stem and of the stages; the "x4" networks (resnet8x4, resnet32x4) have ``[32, 64, 128, 256]``.
        num_channels: of the images.
        kwargs: what transformers itself keeps in a ``config.json``, such as ``num_labels``.

    Raises:
        UserError: another depth, or not four widths.
    """

    model_type = "kdbench_cifar_resnet"

    def __init__(
        self, depth: int = 20, widths: Sequence[int] = (16, 16, 32, 64), num_channels: int = 3, **kwargs: Any
    ) -> None:
        self.depth, self.widths, self.num_channels = depth, list(widths), num_channels
        if depth < 8 or depth % 6 != 2:
            raise UserError(f"A CifarResNet has a depth of 6 n + 2, such as 8, 20 or 56, not {depth}.")
        if len(self.widths) != 4:
            raise UserError(f"A CifarResNet has four widths, of its stem and its three stages, not {self.widths}.")
        super().__init__(**kwargs)


class ResidualBlock(nn.Module):
    """``relu(f(x) + x)``, f two 3x3 convolutions; where size or width change, x goes through a 1x1 convolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = ConvLayer(inputs, width, stride=stride)
        self.second = ConvLayer(width, width, activation=False)
        changes = stride != 1 or inputs != width
        self.shortcut = ConvLayer(inputs, width, 1, stride, activation=False) if changes else nn.Identity()
        self.activation = nn.ReLU()

    def forward(self, states: Tensor) -> Tensor:
        """Return ``[B, width, H / stride, W / stride]`` for ``[B, inputs, H, W]``."""
        return self.activation(self.second(self.first(states)) + self.shortcut(states))


class CifarResNet(ConvolutionalClassifier):
    """A residual network for images of about 32x32 (He et al. 2016, arXiv 1512.03385, section 4.2).

    As in RepDistiller, the shortcut between two widths is a 1x1 convolution with batch norm (the paper's option B; its CIFAR
    networks pad with zeros, option A): resnet20 has 278,324 parameters for 100 classes and 272,474 for 10, where option A has
    269,722.
    """

    config_class = CifarResNetConfig

    def __init__(self, config: CifarResNetConfig) -> None:
        stem, *widths = config.widths
        stages = [ConvLayer(config.num_channels, stem)]
        for place, (inputs, width) in enumerate(pairwise(config.widths)):
            strides = [2 if place else 1] + [1] * ((config.depth - 2) // 6 - 1)
            stages.append(_sequence(ResidualBlock, inputs, width, strides))
        super().__init__(config, stages, widths[-1])


class WideResNetConfig(PreTrainedConfig):
    """The sizes of a :class:`WideResNet`: wrn-40-2 has depth 40 and factor 2.

    Args:
        depth: ``6 n + 4``: 16, 22, 28, 40 have 2, 3, 4, 6 blocks in each of their three stages.
        factor: the stages have ``16 factor``, ``32 factor`` and ``64 factor`` channels, the stem 16.
        num_channels: of the images.
        kwargs: what transformers itself keeps in a ``config.json``, such as ``num_labels``.

    Raises:
        UserError: another depth, or a factor below 1.
    """

    model_type = "kdbench_wide_resnet"

    def __init__(self, depth: int = 16, factor: int = 2, num_channels: int = 3, **kwargs: Any) -> None:
        self.depth, self.factor, self.num_channels = depth, factor, num_channels
        if depth < 10 or depth % 6 != 4:
            raise UserError(f"A WideResNet has a depth of 6 n + 4, such as 16, 28 or 40, not {depth}.")
        check_sizes("WideResNet", factor=factor)
        super().__init__(**kwargs)


class PreActivationBlock(nn.Module):
    """``f(x) + x``, f twice batch norm, rectified linear unit and 3x3 convolution.

    Where the width changes, x is ``relu(norm(x))`` through a 1x1 convolution.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if inputs != width else None

    def forward(self, states: Tensor) -> Tensor:
        """Return ``[B, width, H / stride, W / stride]`` for ``[B, inputs, H, W]``."""
        active = self.norm1(states).relu()
        change = self.conv2(self.norm2(self.conv1(active)).relu())
        return change + (states if self.shortcut is None else self.shortcut(active))


class WideResNet(ConvolutionalClassifier):
    """A wide residual network (Zagoruyko and Komodakis 2016, arXiv 1605.07146), without dropout.

    Its stages end with a sum; their pre-activations are what the next norm makes of it.
    """

    config_class = WideResNetConfig

    def __init__(self, config: WideResNetConfig) -> None:
        widths = [16, *(width * config.factor for width in (16, 32, 64))]
        stages = [nn.Conv2d(config.num_channels, widths[0], 3, 1, 1, bias=False)]
        for place, (inputs, width) in enumerate(pairwise(widths)):
            strides = [2 if place else 1] + [1] * ((config.depth - 4) // 6 - 1)
            stages.append(_sequence(PreActivationBlock, inputs, width, strides))
        last = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU())
        super().__init__(config, stages, widths[-1], last)

    def _init_weights(self, module: nn.Module) -> None:
        """Set the weights of a convolution, and the bias of the classifier."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def preactivations(self) -> list[str]:
        """Return the paths of the modules that give the pre-activations of the stem and of each stage."""
        return [*(f"stages.{stage}.0.norm1" for stage in range(1, len(self.stages))), "last.0"]


# ---- a plain deep one ----

VGG_LAYERS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of the five blocks of each depth."""


class VGGConfig(PreTrainedConfig):
    """The sizes of a :class:`VGG`.

    Args:
        depth: 8, 11, 13, 16 or 19.
        widths: channels of its five blocks.
        num_channels: of the images.
        kwargs: what transformers itself keeps in a ``config.json``, such as ``num_labels``.

    Raises:
        UserError: another depth, or not five widths.
    """

    model_type = "kdbench_vgg"

    def __init__(
        self, depth: int = 8, widths: Sequence[int] = (64, 128, 256, 512, 512), num_channels: int = 3, **kwargs: Any
    ) -> None:
        self.depth, self.widths, self.num_channels = depth, list(widths), num_channels
        if depth not in VGG_LAYERS:
            raise UserError(f"A VGG has a depth of {', '.join(map(str, VGG_LAYERS))}, not {depth}.")
        if len(self.widths) != 5:
            raise UserError(f"A VGG has five widths, one a block, not {self.widths}.")
        super().__init__(**kwargs)


class VGG(ConvolutionalClassifier):
    """Blocks of 3x3 convolutions with maxima over 2x2 between them (Simonyan and Zisserman 2015, arXiv 1409.1556).

    As in RepDistiller: batch norm, one linear layer, and no pooling between the last two blocks. The first block counts as
    the stem.
    """

    config_class, classifier_std = VGGConfig, 0.01

    def __init__(self, config: VGGConfig) -> None:
        stages = []
        layers = VGG_LAYERS[config.depth]
        for place, (inputs, width) in enumerate(pairwise([config.num_channels, *config.widths])):
            pool = [nn.MaxPool2d(2)] if 0 < place < 4 else []
            sizes = [inputs, *[width] * layers[place]]
            stages.append(nn.Sequential(*pool, *(ConvLayer(*pair, bias=True) for pair in pairwise(sizes))))
        super().__init__(config, stages, config.widths[-1])


def check_sizes(name: str, **sizes: int | list[int]) -> None:
    """Raise :class:`UserError` unless all sizes of an architecture are whole numbers of at least 1, none of them an empty list."""
    for size, value in sizes.items():
        numbers = value if isinstance(value, list) else [value]
        if not numbers or any(not isinstance(number, int) or number < 1 for number in numbers):
            raise UserError(f"The sizes of a {name} are whole numbers of at least 1: not {size} {value}.")


def register(kind: type[ImageClassifier]) -> None:
    """Make an architecture known to transformers' Auto classes, which then load what it saved."""
    AutoConfig.register(kind.config_class.model_type, kind.config_class)
    AutoModel.register(kind.config_class, kind)
    AutoModelForImageClassification.register(kind.config_class, kind)


def _sequence(block: type[nn.Module], inputs: int, width: int, strides: Sequence[int]) -> nn.Sequential:
    sizes = [inputs, *[width] * len(strides)]
    return nn.Sequential(*(block(*pair, stride) for pair, stride in zip(pairwise(sizes), strides, strict=True)))


for each in (ConvNet, CifarResNet, WideResNet, VGG):
    register(each)
