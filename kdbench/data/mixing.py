"""Mixtures of the rows of a batch: of images (mixup, CutMix), of the embeddings of texts (mixup), and of their labels.

The teacher labels the mixture itself. All that is drawn is a pure function of the seed, the rows and their draws.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor
from torch.nn.functional import one_hot

from kdbench.data.noise import uniform
from kdbench.losses.base import check_share

_SHARE, _ORDER, _MIXED, _BATCH = range(4)  # what a random number is drawn for

Numbers = Sequence[int] | np.ndarray


# ---- what is drawn ----


def draw_shares(uniforms: np.ndarray, concentration: float) -> np.ndarray:
    """Return shares ``l ~ Beta(a, a)``: the quantiles at uniform random numbers.

    Raises:
        ValueError: the concentration a is not positive.
    """
    if not concentration > 0:
        raise ValueError(f"the concentration of the Beta distribution must be positive, got {concentration}")
    return betaincinv(concentration, concentration, uniforms)


def draw_partners(seed: int, rows: Numbers, draws: Numbers) -> Tensor:
    """Return for each row the place of its partner, int64 ``[B]``: the next one in a random order of the rows.

    None is mixed with itself and each is a partner once. The partners are a pure function of the set of (row, draw).
    """
    order = np.argsort(uniform(seed, np.asarray(rows), np.asarray(draws), _ORDER), kind="stable")
    partner = np.empty(len(order), dtype=np.int64)
    partner[order] = np.roll(order, -1)
    return torch.from_numpy(partner)


def draw_mixup(
    seed: int, rows: Numbers, draws: Numbers, concentration: float, rate: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draw for each row of a batch its partner and its own share ``l`` of the mixture, ``l ~ Beta(a, a)``.

    The share is a pure function of (seed, row, draw), the partners of the set of rows in the batch.

    Args:
        seed: names all that is drawn.
        rows: number of each row in its split, ``[B]``.
        draws: which random version of each row, ``[B]``; mixtures that shall differ between epochs need other draws.
        concentration: ``a``, above 0: 1 draws evenly, less keeps rows apart.
        rate: the share of rows that are mixed; the others keep ``l = 1``.

    Returns:
        partner, int64 ``[B]``, and share, float32 ``[B]`` in [0, 1].

    Raises:
        ValueError: the concentration is not positive, or the rate no share.

    Source: Zhang et al. 2018, arXiv 1710.09412.
    """
    check_share("rate", rate)
    rows, draws = np.asarray(rows), np.asarray(draws)
    share = draw_shares(uniform(seed, rows, draws, _SHARE), concentration)
    share = np.where(uniform(seed, rows, draws, _MIXED) < rate, share, 1.0)
    return draw_partners(seed, rows, draws), torch.from_numpy(share.astype(np.float32))


# ---- images ----


class Mixing(ABC):
    """How the images of a batch are mixed, all of them alike.

    Args:
        concentration: a of the Beta distribution that the share of a row's own image is drawn from, one a batch.
    """

    def __init__(self, concentration: float = 1.0) -> None:
        draw_shares(np.array([0.5]), concentration)
        self.concentration = concentration

    @abstractmethod
    def partners(self, seed: int, rows: Numbers, draws: Numbers) -> Tensor:
        """Return the place of each row's partner, int64 ``[B]``."""

    @abstractmethod
    def __call__(self, images: Tensor, partner: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images ``[B, C, H, W]``.

        Args:
            images: of the batch.
            partner: the place of each row's partner ``[B]``.
            numbers: what :meth:`numbers` gave.

        Returns:
            the mixtures ``[B, C, H, W]``, and the share of each row's own image ``[B]``.
        """

    def numbers(self, seed: int, rows: Numbers, draws: Numbers) -> Tensor:
        """Return what is drawn once a batch, float32 ``[3]``: the share l and a place in (0, 1)^2."""
        drawn = uniform(seed, int(rows[0]), int(draws[0]), _BATCH, np.arange(3))
        drawn[0] = draw_shares(drawn[0], self.concentration)
        return torch.from_numpy(drawn.astype(np.float32))


class Mixup(Mixing):
    """``l x_i + (1 - l) x_(i-1)`` with the larger of l and ``1 - l``, as Beyer et al. 2022 (arXiv 2106.05237) mix.

    Args:
        concentration: a of ``l ~ Beta(a, a)``, one a batch.
        larger: take the larger of l and ``1 - l``, so that a row is the main part of its mixture; else l as it comes.

    Source: Zhang et al. 2018, arXiv 1710.09412.
    """

    def __init__(self, concentration: float = 1.0, larger: bool = True) -> None:
        super().__init__(concentration)
        self.larger = larger

    def partners(self, seed: int, rows: Numbers, draws: Numbers) -> Tensor:
        """Return the place before each; the rows of a batch come in a random order anyway."""
        return torch.arange(len(rows)).roll(1)

    def __call__(self, images: Tensor, partner: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Mix every pixel."""
        share = torch.maximum(numbers[0], 1 - numbers[0]) if self.larger else numbers[0]
        return torch.lerp(images[partner], images, share), share.expand(len(images))


class CutMix(Mixing):
    """A box of the partner's image stands in each image, the same box in all images of a batch.

    Its edges are ``sqrt(1 - l)`` of the image's, its centre is any pixel alike, and what would lie outside is cut off, so
    that the share of a row's own image is ``1 - box / (H W)`` in the end. Source: Yun et al. 2019, arXiv 1905.04899.
    """

    def partners(self, seed: int, rows: Numbers, draws: Numbers) -> Tensor:
        """Return partners in a random order."""
        return draw_partners(seed, rows, draws)

    def __call__(self, images: Tensor, partner: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Paste the box."""
        inside = [
            self._reach(size, numbers[0], place) for size, place in zip(images.shape[-2:], numbers[1:], strict=True)
        ]
        box = inside[0][:, None] & inside[1]
        return torch.where(box, images[partner], images), 1 - box.float().mean().expand(len(images))

    @staticmethod
    def _reach(size: int, share: Tensor, place: Tensor) -> Tensor:
        """Return which of ``size`` rows or columns the box covers."""
        half, centre = (size * (1 - share).sqrt()).floor() // 2, (size * place).floor()
        at = torch.arange(size, device=share.device)
        return (at >= centre - half) & (at < centre + half)


# ---- embeddings ----


def mixup(embeddings: Tensor, mask: Tensor, partner: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Mix the embeddings of rows: ``x~ = l x_i + (1 - l) x_j``, j the partner of i; padding counts as 0.

    A place is real where a text with a share above 0 has a token, so that ``l = 1`` gives ``x_i`` and its mask exactly.
    Student and teacher each mix their own embeddings with the same partners and shares, and the teacher labels ``x~``.

    Args:
        embeddings: of the tokens, before positions are added, ``[B, S, H]``.
        mask: 1 at tokens, 0 at padding, ``[B, S]``.
        partner: the row that each row is mixed with, int64 ``[B]``.
        share: ``l`` of each row, in [0, 1], ``[B]``.

    Returns:
        ``x~`` ``[B, S, H]``, at padding what the embeddings hold there, and its mask ``[B, S]`` in the dtype of ``mask``.

    Raises:
        ValueError: the shapes do not fit.

    Source: Guo et al. 2019, arXiv 1905.08941 (mixup of word embeddings); He et al. 2021, arXiv 2109.11105.
    """
    if embeddings.dim() != 3 or mask.shape != embeddings.shape[:2]:
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit embeddings of {tuple(embeddings.shape)}")
    if partner.shape != mask.shape[:1] or share.shape != mask.shape[:1]:
        raise ValueError(f"{len(mask)} rows need as many partners and shares, got {len(partner)} and {len(share)}")
    real, part = mask.bool(), share[:, None]
    known = embeddings.masked_fill(~real[..., None], 0.0)
    mixed = torch.lerp(known[partner], known, part[..., None].to(embeddings.dtype))
    both = (real & (part > 0)) | (real[partner] & (part < 1))
    return torch.where(both[..., None], mixed, embeddings), both.to(mask.dtype)


# ---- labels ----


def mix_labels(labels: Tensor, partner: Tensor, share: Tensor, classes: int) -> Tensor:
    """Return the gold distributions of mixtures, ``l onehot(y_i) + (1 - l) onehot(y_j)``.

    Args:
        labels: classes ``[B]``.
        partner: the row that each row is mixed with, int64 ``[B]``.
        share: ``l`` of each row, ``[B]``.
        classes: their number C.

    Returns:
        ``[B, C]`` in the dtype of ``share``.
    """
    gold = one_hot(labels, classes).to(share.dtype)
    return torch.lerp(gold[partner], gold, share[:, None])
