"""Noise levels: schedules of diffusion processes, grids that samplers walk down, and how the two forms of a latent convert.

A noisy sample is ``x_t = a x0 + s n`` with ``n ~ N(0, I)``. In the variance-exploding (VE) form ``a = 1`` and ``s = sigma``;
in the variance-preserving (VP) form ``a^2 + s^2 = 1`` and ``abar = a^2``. They are one process: ``x_VE = x_VP / a`` and
``sigma = s / a``. Samplers and denoisers work in the VE form. Grids are float64 and descend.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Spacing = Literal["leading", "trailing", "lcm"]
LCM_POINTS = 50


# ---- schedules: the share of the signal at each of T timesteps ----


def linear_schedule(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """``abar`` ``[T]`` of betas on a line: ``abar_t = prod_(i <= t) (1 - beta_i)`` (Ho et al. 2020, arXiv 2006.11239)."""
    return (1 - torch.linspace(start, end, steps, dtype=torch.float64)).cumprod(0)


def scaled_linear_schedule(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """``abar`` ``[T]`` of betas whose square roots lie on a line, as Stable Diffusion has them (arXiv 2112.10752)."""
    return (1 - torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()).cumprod(0)


def cosine_schedule(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """``abar`` ``[T]`` of ``beta_t = 1 - f((t + 1) / T) / f(t / T)``, at most ``largest``.

    ``f(u) = cos^2((u + offset) / (1 + offset) pi / 2)`` (Nichol and Dhariwal 2021, arXiv 2102.09672).
    """
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    signal = ((times + offset) / (1 + offset) * math.pi / 2).cos().square()
    return (signal[1:] / signal[:-1]).clamp(min=1 - largest).cumprod(0)


SCHEDULES: dict[str, Callable[[], Tensor]] = {
    "linear": linear_schedule,
    "scaled_linear": scaled_linear_schedule,
    "cosine": cosine_schedule,
}


# ---- the two forms ----


def sigma_of(abar: Tensor) -> Tensor:
    """Return ``sigma = s / a = sqrt(1 / abar - 1)``."""
    return ((1 - abar) / abar).sqrt()


def alpha_of(sigma: Tensor) -> Tensor:
    """Return ``a = 1 / sqrt(1 + sigma^2)``, the factor of the signal in the VP form."""
    return (1 + sigma.square()).rsqrt()


def to_ve(x: Tensor, sigma: float) -> Tensor:
    """Return the VE form ``x sqrt(1 + sigma^2)`` of a VP latent whose level is ``sigma = s / a``."""
    return x * math.sqrt(1 + sigma**2)


def to_vp(x: Tensor, sigma: float) -> Tensor:
    """Return the VP form ``x / sqrt(1 + sigma^2)`` of a VE latent."""
    return x / math.sqrt(1 + sigma**2)


# ---- grids ----


def karras_grid(levels: int, smallest: float = 0.002, largest: float = 80.0, rho: float = 7.0) -> Tensor:
    """``[levels + 1]``: n levels evenly spaced in ``sigma^(1 / rho)`` from the largest to the smallest, then 0.

    ``sigma_i = (smax^(1/rho) + i / (n - 1) (smin^(1/rho) - smax^(1/rho)))^rho`` (Karras et al. 2022, arXiv 2206.00364, eq. 5).
    """
    _check(levels, smallest, largest)
    roots = torch.linspace(largest ** (1 / rho), smallest ** (1 / rho), levels, dtype=torch.float64)
    return _with_zero(roots**rho)


def geometric_grid(levels: int, smallest: float, largest: float) -> Tensor:
    """``[levels + 1]``: n levels in equal ratios from the largest to the smallest, then 0."""
    _check(levels, smallest, largest)
    return _with_zero(torch.linspace(math.log(largest), math.log(smallest), levels, dtype=torch.float64).exp())


def timesteps(count: int, spacing: Spacing, total: int = 1000, offset: int = 0) -> list[int]:
    """Return ``count`` of ``total`` timesteps, descending, as diffusers' schedulers choose them.

    ``leading``: ``i (total // count) + offset``, whose first is well below the last timestep, so that pure noise is taken for
    something cleaner; ``trailing``: from ``total - 1`` on; ``lcm``: evenly spaced among the 50 points
    ``(j + 1) (total / 50) - 1`` that latent consistency models are trained on, from ``total - 1`` on.

    Args:
        count: of timesteps.
        spacing: which ones.
        total: of the schedule.
        offset: ``steps_offset``, of ``leading`` alone; 1 for Stable Diffusion.

    Raises:
        ValueError: the schedule has not as many, or there is no such spacing.
    """
    if spacing not in get_args(Spacing):
        raise ValueError(f"timesteps are spaced {' or '.join(get_args(Spacing))}, not {spacing!r}")
    most = LCM_POINTS if spacing == "lcm" else total
    if not 1 <= count <= most:
        raise ValueError(f"the spacing {spacing!r} of {total} timesteps has 1 to {most} of them, not {count}")
    if spacing == "leading":
        return [place * (total // count) + offset for place in reversed(range(count))]
    if spacing == "trailing":
        return [round(total - place * total / count) - 1 for place in range(count)]
    points = [(place + 1) * (total // LCM_POINTS) - 1 for place in reversed(range(LCM_POINTS))]
    return [points[place * LCM_POINTS // count] for place in range(count)]


def timestep_grid(abar: Tensor, times: Sequence[int], last: float = 0.0) -> Tensor:
    """Return the levels ``sigma`` of some timesteps of a schedule, then the level ``last`` where the samples end.

    0 is diffusers' ``set_alpha_to_one``; without it DDIM ends at ``sigma_of(abar[0])``.
    """
    return torch.cat([sigma_of(abar.double())[list(times)], torch.tensor([last], dtype=torch.float64)])


def hand_over_step(first: Sequence[int], second: Sequence[int], own: int = 1) -> int:
    """Return how many steps of the timesteps ``first`` lead to the own-th one of ``second``: ``argmin_j |first_j - second_k|``.

    The first model takes its steps 0 .. m - 1 and the second one goes on at its timestep k (Gandikota and Bau 2025,
    arXiv 2503.10637). Of equally near timesteps the noisier counts. For k = 0 the second model does everything: 0.
    """
    return min(range(len(first)), key=lambda place: abs(first[place] - second[own])) if own else 0


def _check(levels: int, smallest: float, largest: float) -> None:
    if levels < 1 or not 0 < smallest <= largest:
        raise ValueError(f"a grid has 1 level or more, 0 < smallest <= largest: not {levels}, {smallest}, {largest}")


def _with_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])
