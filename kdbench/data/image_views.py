"""What networks take of images: the size and the normalisation of pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate

from kdbench.errors import UserError
from kdbench.models.origins import PREPROCESSOR


@dataclass(frozen=True)
class Normalise:
    """How a network takes images: ``(x - mean) / std`` of pixels x in [0, 1], one mean and standard deviation a channel.

    Args:
        mean: of each channel.
        std: of each channel, above 0.
        size: the edge that images are resized to; default: that of the data.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(each > 0 for each in self.std):
            raise ValueError(f"every channel has a mean and a std above 0, got {list(self.mean)} and {list(self.std)}")

    @classmethod
    def brought(cls, name: str, processor: Mapping[str, Any]) -> "Normalise":
        """Return what the ``preprocessor_config.json`` of a network says, as transformers writes it.

        Args:
            name: of the network, for people.
            processor: the content of the file.

        Raises:
            UserError: the file says something else than a square and a normalisation.
        """
        cropped = processor.get("crop_size") if processor.get("do_center_crop") else None
        size = cropped or (processor.get("size") if processor.get("do_resize", True) else None)
        edges = {size} if isinstance(size, int) else set((size or {}).values())
        mean, std = processor.get("image_mean"), processor.get("image_std")
        if len(edges) > 1 or not processor.get("do_normalize", True) or mean is None or std is None:
            raise UserError(
                f"The network '{name}' brings a {PREPROCESSOR} that is no square size with mean and std: say what it takes in "
                "data.normalise."
            )
        return cls(tuple(mean), tuple(std), *edges)

    def preprocessor(self, height: int, width: int) -> dict[str, Any]:
        """Return the ``preprocessor_config.json`` that :meth:`brought` reads, for images of that size."""
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": height, "width": width},
            "resample": 2,  # bilinear
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def pixel_values(self, images: Tensor) -> Tensor:
        """Return what the network takes ``[B, C, size, size]`` of images ``[B, C, H, W]`` in [0, 1]."""
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        mean, std = (images.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        return (images - mean) / std


IMAGENET = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Means and standard deviations of the photographs of ImageNet."""


def normalisation(images: Sequence[np.ndarray]) -> Normalise:
    """Return mean and standard deviation of every channel over all pixels of images, uint8 ``[C, H, W]`` each."""
    counts = np.zeros((len(images[0]), 256))
    for start in range(0, len(images), 1000):
        for channel, pixels in enumerate(np.stack(images[start : start + 1000], axis=1)):
            counts[channel] += np.bincount(pixels.ravel(), minlength=256)
    shares, levels = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = shares @ levels
    std = np.sqrt(shares @ levels**2 - mean**2)
    return Normalise(tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))
