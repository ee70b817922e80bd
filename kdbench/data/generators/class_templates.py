"""Images that are one of some templates under Gaussian noise: the best classifier is known.

They are the tasks of the small-scale proofs for Shen and Savvides 2020 (arXiv 2009.08453; ten classes that are shifted) and
for the baselines of image distillation (twenty classes at rest).
"""

from typing import Any

import numpy as np
from scipy.special import logsumexp

from kdbench.data.noise import below, normal, uniform
from kdbench.data.registry import SPLITS

SIZE = 16
STEPS = 32
"""Levels of a pixel for a difference of 1; 0 lies at 128."""
_CLASS, _SHIFT, _NOISE = range(3)  # what a random number is drawn for

Row = dict[str, Any]


class ClassTemplates:
    """Equally frequent classes: ``x = shift(t_c) + e``, ``e ~ N(0, noise^2 I)``, every shift within the range alike.

    Args:
        templates: ``[K, C, 16, 16]``.
        noise: its standard deviation.
        shift: pixels by which a template is moved at most, along rows and along columns, round the edge.
        seed: of the rows.
    """

    def __init__(self, templates: np.ndarray, noise: float, shift: int = 0, seed: int = 0) -> None:
        self.templates, self.noise, self.shift, self.seed = templates, noise, shift, seed

    def rows(self, split: str, count: int) -> list[Row]:
        """Return ``{"image": uint8 [C, 16, 16], "label"}``; row i depends on the seed, the split and i alone."""
        name = self.seed, 1 + SPLITS.index(split), np.arange(count)[:, None]  # the templates are drawn as part 0
        classes = below(len(self.templates), *name, _CLASS)[:, 0]
        down, right = below(2 * self.shift + 1, *name, _SHIFT, np.arange(2)).T - self.shift
        noise = normal(*name, _NOISE, np.arange(self.templates[0].size)).reshape(count, *self.templates[0].shape)
        clean = np.stack(
            [np.roll(self.templates[each], by, axis=(1, 2)) for each, *by in zip(classes, down, right, strict=True)]
        )
        images = as_pixels(clean + self.noise * noise)
        return [{"image": image, "label": f"c{each:02d}"} for image, each in zip(images, classes, strict=True)]

    def log_posterior(self, images: np.ndarray) -> np.ndarray:
        """Return ``log p(class | x)`` ``[N, K]`` of uint8 images; its argmax is the most accurate classifier."""
        x = as_values(images).reshape(len(images), -1)
        reach = range(-self.shift, self.shift + 1)
        shifts = [(down, right) for down in reach for right in reach]
        joint = np.empty((len(x), len(self.templates)))
        for number, template in enumerate(self.templates):
            moved = np.stack([np.roll(template, by, axis=(1, 2)).ravel() for by in shifts])
            joint[:, number] = logsumexp((x @ moved.T - 0.5 * np.square(moved).sum(-1)) / self.noise**2, axis=-1)
        return joint - logsumexp(joint, axis=-1, keepdims=True)

    def best_accuracy(self, rows: list[Row]) -> float:
        """Return the share of ``rows`` that Bayes' rule tells."""
        posterior = self.log_posterior(np.stack([row["image"] for row in rows]))
        return float((posterior.argmax(-1) == [int(row["label"][1:]) for row in rows]).mean())


def waves(classes: int = 10, channels: int = 3, contrast: float = 0.2, seed: int = 0) -> np.ndarray:
    """Return smooth random templates ``[K, C, 16, 16]``: at most two waves from edge to edge, mean 0, one root mean square.

    Args:
        classes: K.
        channels: C.
        contrast: the root mean square of each template.
        seed: of the templates.
    """
    low = np.arange(-2, 3)
    parts = normal(seed, 0, *np.ix_(range(2), range(classes), range(channels), range(len(low)), range(len(low))))
    spectrum = np.zeros((classes, channels, SIZE, SIZE), dtype=complex)
    spectrum[..., low[:, None], low] = parts[0] + 1j * parts[1]
    spectrum[..., 0, 0] = 0
    templates = np.fft.ifft2(spectrum).real
    return contrast * templates / np.sqrt(np.square(templates).mean((1, 2, 3), keepdims=True))


def spots(classes: int = 20, height: float = 0.4, seed: int = 0) -> np.ndarray:
    """Return templates ``[K, 1, 16, 16]`` that are sums of three round Gaussians, 1.5 to 3 pixels wide, at random places."""
    drawn = uniform(seed, 0, *np.ix_(range(classes), range(3), range(3)))[..., None, None]
    down, right, widths = 2 + 12 * drawn[:, :, 0], 2 + 12 * drawn[:, :, 1], 1.5 + 1.5 * drawn[:, :, 2]
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    return height * np.exp(-0.5 * ((rows - down) ** 2 + (columns - right) ** 2) / widths**2).sum(1, keepdims=True)


def as_pixels(values: np.ndarray) -> np.ndarray:
    """Return values as uint8: 128 for 0, and 32 levels for a difference of 1."""
    return np.clip(np.rint(128 + STEPS * values), 0, 255).astype(np.uint8)


def as_values(pixels: np.ndarray) -> np.ndarray:
    """Return what :func:`as_pixels` was given, rounded to its levels."""
    return (pixels.astype(np.float64) - 128) / STEPS


def shifted_waves() -> ClassTemplates:
    """Return ten classes of 3x16x16: :func:`waves` moved by up to 3 pixels, under noise of 0.8."""
    return ClassTemplates(waves(), noise=0.8, shift=3)


def resting_spots() -> ClassTemplates:
    """Return twenty classes of 1x16x16: :func:`spots` under noise of 0.5."""
    return ClassTemplates(spots(), noise=0.5)


def waves_images(split: str, count: int) -> list[Row]:
    """Return rows of :func:`shifted_waves`."""
    return shifted_waves().rows(split, count)


def spots_images(split: str, count: int) -> list[Row]:
    """Return rows of :func:`resting_spots`."""
    return resting_spots().rows(split, count)
