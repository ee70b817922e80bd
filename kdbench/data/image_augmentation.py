"""Changes of images that keep their class, made on the device for a whole batch; every image has random numbers of its own.

A change is a pure function of the images and of as many numbers for each of them as ``numbers`` says, so that whoever
draws these decides what repeats.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from kdbench.errors import UserError
from kdbench.losses.base import check_share

if TYPE_CHECKING:
    from PIL.Image import Image

_ATTEMPTS = 10  # to find a box that fits, as in torchvision and timm


class ImageAugmentation(ABC):
    """How the images of a batch are changed; ``numbers`` says how many random numbers each of them takes."""

    numbers: int

    @abstractmethod
    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Return changed images.

        Args:
            images: ``[B, C, H, W]`` in [0, 1].
            drawn: ``[B, numbers]`` in [0, 1).
        """


class RandomCrop(ImageAugmentation):
    """A crop of the image's own size out of the image with a border: a shift by up to ``padding`` pixels.

    Args:
        padding: width of the border.
        mode: what it holds: ``constant`` 0, ``reflect`` the image mirrored, ``circular`` the image's other side.
    """

    numbers = 2

    def __init__(self, padding: int, mode: Literal["constant", "reflect", "circular"] = "constant") -> None:
        if padding < 1:
            raise ValueError(f"a crop needs a border of at least 1 pixel, got padding {padding}")
        self.padding, self.mode = padding, mode

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Return the crops."""
        height, width = images.shape[-2:]
        windows = pad(images, [self.padding] * 4, mode=self.mode).unfold(2, height, 1).unfold(3, width, 1)
        top, left = (drawn * (2 * self.padding + 1)).long().T
        return windows[torch.arange(len(images), device=images.device), :, top, left]


class HorizontalFlip(ImageAugmentation):
    """Left and right change places.

    Args:
        probability: of each image to be flipped.
    """

    numbers = 1

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = check_share("probability", probability)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Return the images, some of them flipped."""
        return torch.where(drawn[:, :1, None, None] < self.probability, images.flip(-1), images)


class Boxes(NamedTuple):
    """One box an image, ``[B]`` each, in pixels."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    found: Tensor
    """Whether the image has a place for its box."""


class Boxed(ImageAugmentation, ABC):
    """A change that draws a box in each image.

    Args:
        scale: bounds of the box's share of the image's area, drawn evenly.
        ratio: bounds of its width over its height, drawn evenly in the logarithm.
    """

    numbers = 2 * _ATTEMPTS + 2

    def __init__(self, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"a box has a share of the area in (0, 1] and a ratio above 0, got {scale} and {ratio}")
        self.scale, self.ratio = scale, ratio

    def boxes(self, drawn: Tensor, height: int, width: int) -> Boxes:
        """Return the first box of ten that fits into an image; every place for it is alike."""
        area = height * width * _between(*self.scale, drawn[:, : 2 * _ATTEMPTS : 2])
        ratio = _between(*map(math.log, self.ratio), drawn[:, 1 : 2 * _ATTEMPTS : 2]).exp()
        wide, high = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
        first = fits.int().argmax(1, keepdim=True)
        wide, high = wide.gather(1, first)[:, 0], high.gather(1, first)[:, 0]
        down, right = drawn[:, 2 * _ATTEMPTS : 2 * _ATTEMPTS + 2].T
        top, left = (down * (height - high + 1)).long(), (right * (width - wide + 1)).long()
        return Boxes(top, left, high, wide, fits.any(1))


class RandomResizedCrop(Boxed):
    """A box of the image, resized bilinearly to a square (Szegedy et al. 2015, arXiv 1409.4842), as torchvision does it.

    An image in which none of ten boxes fits gives the largest box in its middle whose ratio is within the bounds.

    Args:
        size: the edge of the square; default: the image keeps its size.
        scale: see :class:`Boxed`.
        ratio: see :class:`Boxed`.
    """

    def __init__(
        self,
        size: int | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        super().__init__(scale, ratio)
        self.size = size

    def boxes(self, drawn: Tensor, height: int, width: int) -> Boxes:
        """Return the box of each image."""
        drawn_boxes = super().boxes(drawn, height, width)
        high, wide = min(height, round(width / self.ratio[0])), min(width, round(height * self.ratio[1]))
        middle = ((height - high) // 2, (width - wide) // 2, high, wide)
        own = [torch.where(drawn_boxes.found, *each) for each in zip(drawn_boxes, middle, strict=False)]
        return Boxes(*own, torch.ones_like(drawn_boxes.found))

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Return the resized boxes, ``[B, C, size, size]`` where there is a size."""
        height, width = images.shape[-2:]
        box = self.boxes(drawn, height, width)
        rows = _places(box.top, box.height, self.size or height) * (2 / height) - 1
        columns = _places(box.left, box.width, self.size or width) * (2 / width) - 1
        grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)
        return grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)

    def cut(self, image: "Image", drawn: Tensor, size: int) -> "Image":
        """Return the same of one image as it comes from a file, of any size, for ``drawn`` ``[numbers]``."""
        from PIL.Image import Resampling

        top, left, height, width, _ = (int(each) for each in self.boxes(drawn[None], image.height, image.width))
        return image.crop((left, top, left + width, top + height)).resize((size, size), Resampling.BILINEAR)


class Erasing(Boxed):
    """A box of the image is filled with one random colour (Zhong et al. 2020, arXiv 1708.04896).

    Args:
        probability: of each image to lose a box.
        scale: see :class:`Boxed`.
        ratio: see :class:`Boxed`.
    """

    numbers = Boxed.numbers + 4

    def __init__(
        self,
        probability: float = 0.25,
        scale: tuple[float, float] = (0.02, 1 / 3),
        ratio: tuple[float, float] = (0.3, 1 / 0.3),
    ) -> None:
        super().__init__(scale, ratio)
        self.probability = check_share("probability", probability)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Return the images, a box erased in some of them."""
        channels, height, width = images.shape[1:]
        box = self.boxes(drawn, height, width)
        row, column = (torch.arange(size, device=images.device) for size in (height, width))
        rows = (row >= box.top[:, None]) & (row < (box.top + box.height)[:, None])
        columns = (column >= box.left[:, None]) & (column < (box.left + box.width)[:, None])
        erased = box.found & (drawn[:, -4] < self.probability)
        inside = (rows[:, :, None] & columns[:, None] & erased[:, None, None])[:, None]
        return torch.where(inside, drawn[:, -3:][:, :channels, None, None].to(images.dtype), images)


class ColourJitter(ImageAugmentation):
    """Brightness, contrast, saturation and hue of images in RGB change, in this order, each by a factor of its own.

    Args:
        brightness: b: factors are drawn evenly from ``[max(0, 1 - b), 1 + b]``.
        contrast: as ``brightness``.
        saturation: as ``brightness``.
        hue: at most 0.5: a share of the circle of colours by which they turn, drawn evenly from ``[-hue, hue]``.
    """

    numbers = 4

    def __init__(
        self, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.0
    ) -> None:
        if min(brightness, contrast, saturation, hue) < 0 or hue > 0.5:
            raise ValueError(
                f"a jitter is at least 0, of the hue at most 0.5, got {(brightness, contrast, saturation, hue)}"
            )
        _kornia()
        self.factors, self.hue = (brightness, contrast, saturation), hue

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Return the images in other colours."""
        enhance = _kornia().enhance
        check_coloured(self, images)
        changes = (
            enhance.adjust_brightness_accumulative,
            enhance.adjust_contrast_with_mean_subtraction,
            enhance.adjust_saturation_with_gray_subtraction,
        )
        for change, jitter, own in zip(changes, self.factors, drawn.T[:3], strict=True):
            if jitter:
                images = change(images, _between(max(0.0, 1 - jitter), 1 + jitter, own))
        if self.hue:
            images = enhance.adjust_hue(images, 2 * torch.pi * _between(-self.hue, self.hue, drawn[:, 3]))
        return images


class RandAugment(ImageAugmentation):
    """A few changes one after another, each drawn evenly from fourteen, of one strength (Cubuk et al. 2020, arXiv 1909.13719).

    The changes of images in RGB and their strengths are those of torchvision: nothing; shear and shift along either axis,
    rotation; brightness, saturation, contrast, sharpness; fewer bits, inversion above a threshold; the full range of values, an
    even histogram. Where a change has two directions, either is alike. What comes in from outside is black.

    Args:
        operations: how many changes.
        magnitude: their strength, from 0 to 30.
    """

    def __init__(self, operations: int = 2, magnitude: int = 9) -> None:
        if operations < 1 or not 0 <= magnitude <= 30:
            raise ValueError(
                f"RandAugment takes operations >= 1 and a magnitude from 0 to 30, got {operations}, {magnitude}"
            )
        _kornia()
        self.operations, self.magnitude = operations, magnitude
        self.numbers = 2 * operations

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Return changed images."""
        check_coloured(self, images)
        changes = list(_changes(self.magnitude / 30, images.shape[-1]).values())
        for choice, side in drawn.view(-1, self.operations, 2).permute(1, 2, 0):
            chosen, sign = (choice * len(changes)).long(), torch.where(side < 0.5, -1.0, 1.0)
            changed = images.clone()
            for number, change in enumerate(changes):
                own = (chosen == number).nonzero()[:, 0]
                if len(own):
                    changed[own] = change(images[own], sign[own])
            images = changed
        return images


def _changes(strength: float, width: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return the changes of RandAugment by name, at a strength in [0, 1]; each takes images and the sign of each ``[B]``."""
    enhance, geometry = _kornia().enhance, _kornia().geometry.transform
    black = {"mode": "nearest", "padding_mode": "zeros"}
    shift, bits = strength * width * 150 / 331, 8 - round(4 * strength)

    def along(sign: Tensor, amount: float, axis: int) -> Tensor:
        return amount * torch.stack((sign, sign * 0) if axis == 0 else (sign * 0, sign), dim=-1)

    return {
        "identity": lambda x, sign: x,
        "shear_x": lambda x, sign: geometry.shear(x, along(sign, 0.3 * strength, 0), **black),
        "shear_y": lambda x, sign: geometry.shear(x, along(sign, 0.3 * strength, 1), **black),
        "translate_x": lambda x, sign: geometry.translate(x, along(sign, shift, 0), **black),
        "translate_y": lambda x, sign: geometry.translate(x, along(sign, shift, 1), **black),
        "rotate": lambda x, sign: geometry.rotate(x, 30 * strength * sign, **black),
        "brightness": lambda x, sign: enhance.adjust_brightness_accumulative(x, 1 + 0.9 * strength * sign),
        "saturation": lambda x, sign: enhance.adjust_saturation_with_gray_subtraction(x, 1 + 0.9 * strength * sign),
        "contrast": lambda x, sign: enhance.adjust_contrast_with_mean_subtraction(x, 1 + 0.9 * strength * sign),
        "sharpness": lambda x, sign: enhance.sharpness(x, 1 + 0.9 * strength * sign),
        "posterize": lambda x, sign: enhance.posterize(x, bits),
        "solarize": lambda x, sign: enhance.solarize(x, 1 - strength),
        "autocontrast": lambda x, sign: enhance.normalize_min_max(x),
        "equalize": lambda x, sign: enhance.equalize(x),
    }


def check_coloured(change: ImageAugmentation, images: Tensor) -> None:
    """Raise :class:`UserError` unless the images have three channels."""
    if images.shape[1] != 3:
        raise UserError(
            f"{type(change).__name__} changes the colours of images in RGB, and these have {images.shape[1]} channels: "
            "leave it out of data.augment."
        )


def _between(low: float, high: float, drawn: Tensor) -> Tensor:
    return low + (high - low) * drawn


def _places(start: Tensor, length: Tensor, count: int) -> Tensor:
    """Return where ``count`` pixels ``[B, count]`` are read along one axis of a box, no nearer to its edges than half a pixel."""
    at = (torch.arange(count, device=start.device) + 0.5) * (length / count)[:, None]
    return start[:, None] + torch.minimum(at.clamp(min=0.5), length[:, None] - 0.5)


def _kornia() -> ModuleType:
    """Return kornia, which some installations do without."""
    try:
        import kornia
        import kornia.enhance
        import kornia.geometry
    except ImportError as error:
        raise UserError("ColourJitter and RandAugment need kornia: pip install 'kdbench[vision]'.") from error
    return kornia
