"""Painted scenes: a textured ground and one object on it, under Gaussian noise; the best classifier is known.

It is the task of the small-scale proof for Hao et al. 2023 (arXiv 2310.19444): what is the texture, and where is the object?
"""

from typing import Any

import numpy as np
from scipy.special import logsumexp

from kdbench.data.generators.class_templates import as_pixels, as_values
from kdbench.data.noise import below, normal, uniform
from kdbench.data.registry import SPLITS

TEXTURES = ("level", "upright", "falling", "rising", "checked")
PLACES = ("top left", "top right", "bottom left", "bottom right")
GREY, RED = np.array([1.0, 1.0, 1.0]), np.array([1.0, -0.5, -0.5])
_CLASS, _PHASE, _SHIFT, _NOISE = range(4)  # what a random number is drawn for
_PHASES = 2 * np.pi / 32 * np.arange(32)  # over which the best classifier takes the mean

Row = dict[str, Any]


class PaintedScenes:
    """Twenty equally frequent classes: five grey textures of random phase, a red disc in one of four quarters.

    A texture is ``a sqrt(2) cos(2 pi u / period + phase)`` along one of four directions u, or, ``checked``, ``2 a cos(..)
    cos(..)`` along rows and columns, each with a phase of its own; four periods fill an edge. The disc covers it, and lies
    up to ``size / 16`` pixels from the centre of its quarter. ``x = scene + e``, ``e ~ N(0, noise^2 I)``.

    Args:
        size: S, the edge of an image in pixels.
        ground: a, the root mean square of the texture.
        strength: of the disc's colour.
        noise: its standard deviation.
        seed: of the rows.
    """

    def __init__(
        self, size: int = 16, ground: float = 0.15, strength: float = 0.4, noise: float = 0.5, seed: int = 0
    ) -> None:
        self.size, self.ground, self.strength, self.noise, self.seed = size, ground, strength, noise, seed
        self.reach = size // 16

    def rows(self, split: str, count: int) -> list[Row]:
        """Return ``{"image": uint8 [3, S, S], "label", "texture", "place"}``; row i depends on seed, split and i alone."""
        name = self.seed, SPLITS.index(split), np.arange(count)[:, None]
        textures, places = np.divmod(below(len(TEXTURES) * len(PLACES), *name, _CLASS)[:, 0], len(PLACES))
        phases = 2 * np.pi * uniform(*name, _PHASE, np.arange(2))
        shifts = below(2 * self.reach + 1, *name, _SHIFT, np.arange(2)) - self.reach
        ground = np.stack([self.texture(*each) for each in zip(textures, *phases.T, strict=True)])[:, None]
        disc = np.stack([self.disc(*each) for each in zip(places, *shifts.T, strict=True)])[:, None]
        scenes = np.where(disc, self.strength * _colour(RED), _colour(GREY) * ground)
        images = as_pixels(scenes + self.noise * normal(*name, _NOISE, np.arange(scenes[0].size)).reshape(scenes.shape))
        return [
            {"image": image, "label": _label(texture, place), "texture": TEXTURES[texture], "place": PLACES[place]}
            for image, texture, place in zip(images, textures, places, strict=True)
        ]

    def texture(self, number: int, first: float, second: float = 0.0) -> np.ndarray:
        """Return a texture ``[S, S]`` of given phases; only ``checked`` has a second one."""
        down, right = 8 * np.pi / self.size * np.mgrid[: self.size, : self.size]
        if TEXTURES[number] == "checked":
            return 2 * self.ground * np.cos(down + first) * np.cos(right + second)
        along = (down, right, (down + right) / np.sqrt(2), (down - right) / np.sqrt(2))[number]
        return np.sqrt(2) * self.ground * np.cos(along + first)

    def disc(self, place: int, down: int = 0, right: int = 0) -> np.ndarray:
        """Return which pixels ``[S, S]`` the disc covers, so many pixels from the centre of its quarter."""
        centre = self.size * (0.25 + 0.5 * np.array(divmod(place, 2))) + [down, right]
        rows, columns = np.mgrid[: self.size, : self.size] + 0.5
        return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= (0.14 * self.size) ** 2

    def log_posterior(self, images: np.ndarray) -> np.ndarray:
        """Return ``log p(texture, place | x)`` ``[N, 5, 4]`` of uint8 images, the mean taken over 32 phases of each wave."""
        x = as_values(images).reshape(len(images), 3, -1)
        textures = [self._waves(number) for number in range(len(TEXTURES))]
        reach = range(-self.reach, self.reach + 1)
        joint = np.empty((len(x), len(TEXTURES), len(PLACES)))
        for place in range(len(PLACES)):
            discs = [self.disc(place, down, right).ravel() for down in reach for right in reach]
            joint[:, :, place] = logsumexp(
                [[self._evidence(x, *each, disc) for each in textures] for disc in discs], axis=0
            ).T
        return joint - logsumexp(joint, axis=(1, 2), keepdims=True)

    def best_accuracy(self, rows: list[Row]) -> float:
        """Return the share of ``rows`` whose texture and place Bayes' rule tells."""
        posterior = self.log_posterior(np.stack([row["image"] for row in rows])).reshape(len(rows), -1)
        best = [_label(*divmod(int(each), len(PLACES))) for each in posterior.argmax(-1)]
        return float(np.mean([told == row["label"] for told, row in zip(best, rows, strict=True)]))

    def _waves(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a texture at phases of 0 and 90 degrees ``[R, S * S]``, and how all phases are made of these ``[P, R]``."""
        turns = np.stack([np.cos(_PHASES), np.sin(_PHASES)], axis=-1)
        checked = TEXTURES[number] == "checked"
        quarters = (0.0, np.pi / 2)
        parts = [
            self.texture(number, first, second) for first in quarters for second in (quarters if checked else (0.0,))
        ]
        return np.stack(parts).reshape(len(parts), -1), np.kron(turns, turns) if checked else turns

    def _evidence(self, x: np.ndarray, waves: np.ndarray, turns: np.ndarray, disc: np.ndarray) -> np.ndarray:
        """Return ``log p(x | texture, disc)`` ``[N]`` but for what all of them share: the mean over the phases."""
        red, seen = self.strength * RED, waves[:, ~disc]
        inside = x[..., disc].sum(-1) @ red - 0.5 * disc.sum() * np.square(red).sum()
        squares = np.einsum("pr,rs,ps->p", turns, seen @ seen.T, turns)
        outside = GREY @ x[..., ~disc] @ seen.T @ turns.T - 0.5 * np.square(GREY).sum() * squares
        return logsumexp((inside[:, None] + outside) / self.noise**2, axis=-1) - np.log(len(turns))


def images(split: str, count: int) -> list[Row]:
    """Return rows of the scenes."""
    return PaintedScenes().rows(split, count)


def _colour(channels: np.ndarray) -> np.ndarray:
    return channels[:, None, None]


def _label(texture: int, place: int) -> str:
    return f"{TEXTURES[texture]}, {PLACES[place]}"
