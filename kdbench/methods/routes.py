"""Routes from noise to a sample: which of several networks goes which part of the way."""

import abc
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kdbench.errors import nearest
from kdbench.models.samplers import SAMPLERS, Form
from kdbench.models.schedules import (
    SCHEDULES,
    Spacing,
    hand_over_step,
    sigma_of,
    timestep_grid,
    timesteps,
)


class Leg(NamedTuple):
    """A part of the way that one network goes, on a grid of its own, the level where it hands over included."""

    network: str
    grid: Tensor
    guidance: float
    sampler: str


class Route(abc.ABC):
    """Which network goes which part of the way from noise to a sample."""

    form: Form = "ve"
    """The form of the latent that one network hands over to the next."""

    @abc.abstractmethod
    def legs(self) -> list[Leg]:
        """Return the parts in their order; a grid of one level goes no way."""


@dataclass
class Stretch:
    """A part of the way, as a config tells it.

    Args:
        network: ``base`` or ``student``.
        levels: of the noise, descending: where it begins, where it hands over, and levels between; 0 at the end.
        steps: how many steps of equal ratio it takes from each level to the next; to 0 it takes one.
        guidance: w of ``D_0 + w (D_c - D_0)``; 1: none.
        sampler: see :class:`~kdbench.methods.drawing.Sampling`. ``euler`` hands the noisy latent over, ``consistency`` the
            denoised sample with fresh noise.
    """

    network: str
    levels: list[float]
    steps: int = 1
    guidance: float = 1.0
    sampler: str = "euler"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a stretch takes one step or more from each level to the next, got {self.steps}")
        if not self.levels or min(self.levels) < 0 or any(after >= level for level, after in pairwise(self.levels)):
            raise ValueError(f"the levels of a stretch descend, to 0 or above, got {self.levels}")
        _check_sampler(self.sampler)

    def grid(self) -> Tensor:
        """Return all levels, float64; those that are given stay as they are to the last bit."""
        walked = [
            level * (after / level) ** (place / self.steps)
            for level, after in pairwise(self.levels)
            for place in range(self.steps if after else 1)
        ]
        return torch.tensor([*walked, self.levels[-1]], dtype=torch.float64)


class Stretches(Route):
    """A route of any number of parts, told by the levels of the noise.

    Args:
        stretches: in their order; each begins where the one before it ends.
    """

    def __init__(self, stretches: list[Stretch]) -> None:
        if not stretches:
            raise ValueError("a route has one stretch or more")
        for before, after in pairwise(stretches):
            if before.levels[-1] != after.levels[0]:
                raise ValueError(
                    f"a stretch begins where the one before it ends: at the level {before.levels[-1]:g}, not {after.levels[0]:g}"
                )
        if stretches[-1].levels[-1] != 0:
            raise ValueError(f"a route ends at the level 0, not {stretches[-1].levels[-1]:g}")
        self.stretches = stretches

    def legs(self) -> list[Leg]:
        """Return the stretches."""
        return [Leg(each.network, each.grid(), each.guidance, each.sampler) for each in self.stretches]


class OwnTimestep(Route):
    """The base goes to the student's timestep number ``own``, the student from there on: diversity distillation.

    The base takes the steps ``0 .. m - 1`` of its own timesteps with ``m = argmin_j |t_j - t'_own|``, and its noisy latent, in
    the variance-preserving form, goes on at the timestep ``t'_own`` of the student, whose steps before are replaced: ``m``
    (twice that with guidance) and ``n - own`` evaluations. Gandikota and Bau 2025, arXiv 2503.10637.

    Args:
        base_steps: of the base's timesteps, as if it went all the way.
        student_steps: n, of the student's.
        own: the number of the student's first own timestep, from 0, where the base does nothing; ``student_steps``: the base
            goes all the way.
        spacing: of both (:func:`~kdbench.models.schedules.timesteps`).
        base_spacing: of the base, where it has another.
        offset: of the spacing ``leading``: 1 in Stable Diffusion.
        schedule: ``scaled_linear``, as Stable Diffusion has it, ``linear`` or ``cosine``, of 1,000 timesteps.
        guidance: of the base; published students take none.
        sampler: of the student.
        base_sampler: of the base, where it has another.
        last: ``zero``, or ``first``: the level of the first timestep (diffusers with ``set_alpha_to_one`` false).
    """

    form = "vp"

    def __init__(
        self,
        base_steps: int = 20,
        student_steps: int = 4,
        own: int = 1,
        spacing: Spacing = "leading",
        base_spacing: Spacing | None = None,
        offset: int = 1,
        schedule: Literal["linear", "scaled_linear", "cosine"] = "scaled_linear",
        guidance: float = 7.0,
        sampler: str = "consistency",
        base_sampler: str | None = None,
        last: Literal["zero", "first"] = "zero",
    ) -> None:
        if not 0 <= own <= student_steps:
            raise ValueError(f"own is one of the student's timesteps 0 to {student_steps}, got {own}")
        self.base = timesteps(base_steps, base_spacing or spacing, offset=offset)
        self.student = timesteps(student_steps, spacing, offset=offset)
        whole = own == student_steps
        self.steps = len(self.base) if whole else hand_over_step(self.base, self.student, own)
        """m, how many steps the base takes."""
        self.own, self.guidance = own, guidance
        self.sampler, self.base_sampler = sampler, base_sampler or sampler
        for name in (self.sampler, self.base_sampler):
            _check_sampler(name)
        self.abar = SCHEDULES[schedule]()
        self.last = 0.0 if last == "zero" else float(sigma_of(self.abar)[0])

    def legs(self) -> list[Leg]:
        """Return the part of the base and that of the student."""
        base = timestep_grid(self.abar, self.base, self.last)[: self.steps + 1]
        student = timestep_grid(self.abar, self.student, self.last)[self.own :]
        return [Leg("base", base, self.guidance, self.base_sampler), Leg("student", student, 1.0, self.sampler)]


def _check_sampler(name: str) -> None:
    if name not in SAMPLERS:
        raise ValueError(f"there is no sampler '{name}'.{nearest(name, SAMPLERS)}")
