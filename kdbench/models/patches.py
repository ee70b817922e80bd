"""Networks that cut an image into patches and mix these by plain linear layers: MLP-Mixer and ResMLP."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from kdbench.errors import UserError
from kdbench.models.vision import ImageClassifier, check_sizes, register


class MLPMixerConfig(PreTrainedConfig):
    """The sizes of an :class:`MLPMixer`; Mixer-B/16 has hidden_size 768, 12 layers, patches of 16 and the default widths.

    Args:
        image_size: the edge of the images, or height and width; the number of patches is part of the weights.
        patch_size: the edge of a patch.
        hidden_size: numbers in the state of a patch.
        num_hidden_layers: how many layers there are.
        token_width: hidden units of the perceptron over the patches; default: half the hidden size.
        channel_width: hidden units of the perceptron over a patch's state; default: four times the hidden size.
        num_channels: of the images.
        kwargs: what transformers itself keeps in a ``config.json``, such as ``num_labels``.

    Raises:
        UserError: a size is below 1, or the patches do not fill the images.
    """

    model_type = "kdbench_mlp_mixer"

    def __init__(
        self,
        image_size: int | list[int] = 32,
        patch_size: int = 4,
        hidden_size: int = 64,
        num_hidden_layers: int = 4,
        token_width: int | None = None,
        channel_width: int | None = None,
        num_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        self.image_size, self.patch_size, self.num_channels = image_size, patch_size, num_channels
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.token_width = token_width if token_width is not None else max(1, hidden_size // 2)
        self.channel_width = channel_width if channel_width is not None else 4 * hidden_size
        check_sizes("MLPMixer", hidden_size=hidden_size, num_hidden_layers=num_hidden_layers)
        check_sizes("MLPMixer", token_width=self.token_width, channel_width=self.channel_width)
        patches("MLPMixer", image_size, patch_size)
        super().__init__(**kwargs)


class ResMLPConfig(PreTrainedConfig):
    """The sizes of a :class:`ResMLP`; ResMLP-S12 has hidden_size 384, 12 layers and patches of 16.

    Args:
        image_size: the edge of the images, or height and width; the number of patches is part of the weights.
        patch_size: the edge of a patch.
        hidden_size: numbers in the state of a patch.
        num_hidden_layers: how many layers there are.
        channel_width: hidden units of the perceptron over a patch's state; default: four times the hidden size.
        layer_scale: what the factors of both branches begin at: the paper's 0.1 up to 18 layers, 1e-5 for 24, 1e-6 for more.
        num_channels: of the images.
        kwargs: what transformers itself keeps in a ``config.json``, such as ``num_labels``.

    Raises:
        UserError: a size is below 1, or the patches do not fill the images.
    """

    model_type = "kdbench_resmlp"

    def __init__(
        self,
        image_size: int | list[int] = 32,
        patch_size: int = 4,
        hidden_size: int = 64,
        num_hidden_layers: int = 4,
        channel_width: int | None = None,
        layer_scale: float = 0.1,
        num_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        self.image_size, self.patch_size, self.num_channels = image_size, patch_size, num_channels
        self.hidden_size, self.num_hidden_layers, self.layer_scale = hidden_size, num_hidden_layers, layer_scale
        self.channel_width = channel_width if channel_width is not None else 4 * hidden_size
        check_sizes("ResMLP", hidden_size=hidden_size, num_hidden_layers=num_hidden_layers)
        check_sizes("ResMLP", channel_width=self.channel_width)
        patches("ResMLP", image_size, patch_size)
        super().__init__(**kwargs)


def patches(name: str, image_size: int | list[int], patch_size: int) -> int:
    """Return the number of patches; raise :class:`UserError` where they do not fill the images."""
    height, width = [image_size, image_size] if isinstance(image_size, int) else image_size
    check_sizes(name, image_size=[height, width], patch_size=patch_size)
    if height % patch_size or width % patch_size:
        raise UserError(
            f"A {name} cuts its images into patches of {patch_size}x{patch_size}, and {height}x{width} is no multiple of that: "
            "choose a patch_size that divides the image_size."
        )
    return (height // patch_size) * (width // patch_size)


class PatchEmbedding(nn.Sequential):
    """One linear map of every patch: images ``[B, channels, H, W]`` to states ``[B, N, width]``, row by row."""

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__(nn.Conv2d(channels, width, patch_size, patch_size), nn.Flatten(2))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the states."""
        return super().forward(pixel_values).transpose(1, 2)


class Perceptron(nn.Sequential):
    """``W gelu(V x + b) + c``."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__(nn.Linear(size, width), nn.GELU(), nn.Linear(width, size))


class MixerBlock(nn.Module):
    """``x + mlp(norm(x)^T)^T`` over the patches, then ``x + mlp(norm(x))`` over each patch's state."""

    def __init__(self, tokens: int, config: MLPMixerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(config.hidden_size, eps=1e-6) for _ in range(2))
        self.tokens = Perceptron(tokens, config.token_width)
        self.channels = Perceptron(config.hidden_size, config.channel_width)

    def forward(self, states: Tensor) -> Tensor:
        """Return ``[B, N, H]``."""
        states = states + self.tokens(self.norm1(states).transpose(1, 2)).transpose(1, 2)
        return states + self.channels(self.norm2(states))


class Affine(nn.Module):
    """``a x + b``, one a and one b a channel: what ResMLP has in the place of norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, states: Tensor) -> Tensor:
        """Return ``[B, N, H]``."""
        return torch.addcmul(self.bias, self.factor, states)


class ResMLPBlock(nn.Module):
    """``x + s (A aff(x)^T)^T`` with one linear map A over the patches, then ``x + t mlp(aff(x))`` over each patch's state."""

    def __init__(self, tokens: int, config: ResMLPConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1, self.norm2 = Affine(width), Affine(width)
        self.tokens, self.channels = nn.Linear(tokens, tokens), Perceptron(width, config.channel_width)
        self.scale1, self.scale2 = (nn.Parameter(torch.full((width,), config.layer_scale)) for _ in range(2))

    def forward(self, states: Tensor) -> Tensor:
        """Return ``[B, N, H]``."""
        states = states + self.scale1 * self.tokens(self.norm1(states).transpose(1, 2)).transpose(1, 2)
        return states + self.scale2 * self.channels(self.norm2(states))


class PatchClassifier(ImageClassifier):
    """The mean of ``norm(h_n)`` over the patches: ``h_0`` is their embedding, ``h_i`` the output of ``layers.(i - 1)``.

    Weights begin uniform as in Glorot and Bengio 2010, biases at 0.
    """

    block: ClassVar[type[nn.Module]]

    def __init__(self, config: MLPMixerConfig | ResMLPConfig, norm: nn.Module) -> None:
        super().__init__(config)
        tokens = patches(type(self).__name__, config.image_size, config.patch_size)
        self.embedding = PatchEmbedding(config.num_channels, config.patch_size, config.hidden_size)
        self.layers = nn.ModuleList(self.block(tokens, config) for _ in range(config.num_hidden_layers))
        self.norm = norm
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Set weights and bias of a linear map, also of that of the pixels."""
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = math.sqrt(6 / (len(module.weight) + module.weight[0].numel()))
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)

    def pooled(self, pixel_values: Tensor) -> Tensor:
        """Return one vector an image ``[B, hidden_size]``."""
        states = self.embedding(pixel_values)
        for layer in self.layers:
            states = layer(states)
        return self.norm(states).mean(1)


class MLPMixer(PatchClassifier):
    """MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601), without dropout."""

    config_class, block = MLPMixerConfig, MixerBlock

    def __init__(self, config: MLPMixerConfig) -> None:
        super().__init__(config, nn.LayerNorm(config.hidden_size, eps=1e-6))


class ResMLP(PatchClassifier):
    """ResMLP (Touvron et al. 2021, arXiv 2105.03404), without stochastic depth."""

    config_class, block = ResMLPConfig, ResMLPBlock

    def __init__(self, config: ResMLPConfig) -> None:
        super().__init__(config, Affine(config.hidden_size))


register(MLPMixer)
register(ResMLP)
