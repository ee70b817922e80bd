"""Samplers of diffusion models: functions that walk a noisy sample down a grid of noise levels, without a graph.

Samples are in the variance-exploding form ``x = x0 + sigma n``, whatever schedule a network was trained on
(:mod:`kdbench.models.schedules`). There DDIM is Euler's method, and latent consistency models are sampled as consistency
models are. A sampler asks its denoiser once a step; Heun's twice, but for a last step to 0.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kdbench.models.denoiser import Denoise, Guided, beside
from kdbench.models.schedules import to_ve, to_vp

Grid = Sequence[float] | Tensor
"""Levels of noise, descending; the last may be 0."""
Noise = Callable[[Tensor], Tensor]
"""Gives the next standard normal numbers, of the shape of its argument."""


def seeded(seed: int | torch.Generator) -> Noise:
    """Return noise from a generator, or from a new one of that seed: drawn on the generator's device, then moved."""
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed

    def draw(like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device)
        return drawn.to(like.device)

    return draw


def replayed(noises: Iterable[Tensor]) -> Noise:
    """Return noise that is known already, in its order."""
    left = iter(noises)
    return lambda like: next(left).to(like)


# ---- single steps, of samples at levels of their own too ----


def euler_step(x: Tensor, denoised: Tensor, sigma: float | Tensor, after: float | Tensor) -> Tensor:
    """Return ``D + sigma' / sigma (x - D)``, where the straight line from x towards D is at the level ``sigma'``.

    Args:
        x: samples ``[B, ...]``.
        denoised: D of them.
        sigma: their levels, one for all or ``[B]``.
        after: the levels to go to.
    """
    return denoised + _ratio(after, sigma, x) * (x - denoised)


def heun_step(
    denoise: Denoise, x: Tensor, sigma: float | Tensor, after: float | Tensor, denoised: Tensor | None = None
) -> Tensor:
    """Return :func:`euler_step` with the mean of the slopes at its two ends, of which none is at the level 0.

    Args:
        denoise: the denoiser, which is asked at ``after``, and at ``sigma`` where ``denoised`` is not given.
        x: samples ``[B, ...]``.
        sigma: their levels, one for all or ``[B]``.
        after: the levels to go to.
        denoised: D of the samples.
    """
    denoised = denoise(x, sigma) if denoised is None else denoised
    ahead = euler_step(x, denoised, sigma, after)
    back = euler_step(ahead, denoise(ahead, after), after, sigma)
    return ahead + (x - back) / 2


# ---- samplers ----


class Step(NamedTuple):
    """A step from the level ``sigma`` to the level ``after``; ``denoised`` is what the model takes x0 for at x."""

    number: int
    sigma: float
    after: float
    x: Tensor
    denoised: Tensor

    def along_slope(self, level: float) -> Tensor:
        """Return :func:`euler_step` to a level."""
        return euler_step(self.x, self.denoised, self.sigma, level)


Watch = Callable[[Step], None]


class Sampler(Protocol):
    """What a sampler is called with."""

    def __call__(
        self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise | None = None, watch: Watch | None = None
    ) -> Tensor:
        """Return the samples at the last level.

        Args:
            denoise: the denoiser.
            x: samples ``[B, ...]`` at the first level.
            grid: the levels.
            noise: fresh noise; a sampler that adds none does not ask for it.
            watch: is shown every step before it is taken.

        Raises:
            ValueError: a grid that does not descend, or no noise for a sampler that adds some.
        """


def euler(denoise: Denoise, x: Tensor, grid: Grid, noise: Noise | None = None, watch: Watch | None = None) -> Tensor:
    """``x += (sigma' - sigma) (x - D) / sigma``: DDIM with eta = 0 in the VE form (arXiv 2010.02502, 2206.00364)."""
    return _walk(denoise, x, grid, lambda step, _: step.along_slope(step.after), watch)


def heun(denoise: Denoise, x: Tensor, grid: Grid, noise: Noise | None = None, watch: Watch | None = None) -> Tensor:
    """:func:`heun_step` from level to level, and Euler's step to 0 (Karras et al. 2022, arXiv 2206.00364, algorithm 1)."""

    def advance(step: Step, _: Step | None) -> Tensor:
        if step.after == 0:
            return step.along_slope(0.0)
        return heun_step(denoise, step.x, step.sigma, step.after, step.denoised)

    return _walk(denoise, x, grid, advance, watch)


def ddim(
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    noise: Noise | None = None,
    watch: Watch | None = None,
    eta: float = 0.0,
) -> Tensor:
    """``x = D + sqrt(sigma'^2 - u^2) (x - D) / sigma + u n`` with ``u = eta sigma' sqrt(1 - sigma'^2 / sigma^2)``.

    The VE form of Song et al. 2021, arXiv 2010.02502, eq. 12 and 16.
    """

    def advance(step: Step, _: Step | None) -> Tensor:
        fresh = eta * step.after * math.sqrt(1 - (step.after / step.sigma) ** 2)
        moved = step.along_slope(math.sqrt(step.after**2 - fresh**2))
        return moved + fresh * _drawn(noise, x) if fresh else moved

    return _walk(denoise, x, grid, advance, watch)


def ancestral(
    denoise: Denoise, x: Tensor, grid: Grid, noise: Noise | None = None, watch: Watch | None = None
) -> Tensor:
    """:func:`ddim` with eta = 1: the reverse chain of DDPM, of the smaller variance (arXiv 2006.11239)."""
    return ddim(denoise, x, grid, noise, watch, eta=1.0)


def dpm_solver_2m(
    denoise: Denoise, x: Tensor, grid: Grid, noise: Noise | None = None, watch: Watch | None = None
) -> Tensor:
    """DPM-Solver++(2M): Euler's step towards D extrapolated from the last two, ``D + (D - D_before) h / (2 h_before)``.

    ``h = ln(sigma / sigma')``; the first step and one to 0 take D itself (Lu et al. 2022, arXiv 2211.01095, algorithm 2).
    """

    def advance(step: Step, before: Step | None) -> Tensor:
        if before is None or step.after == 0:
            return step.along_slope(step.after)
        ratio = math.log(step.sigma / step.after) / math.log(before.sigma / step.sigma)
        ahead = step.denoised + (step.denoised - before.denoised) * ratio / 2
        return step._replace(denoised=ahead).along_slope(step.after)

    return _walk(denoise, x, grid, advance, watch)


def consistency(
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    noise: Noise | None = None,
    watch: Watch | None = None,
    smallest: float = 0.0,
) -> Tensor:
    """``x = D + sqrt(sigma'^2 - smallest^2) n``: denoise and add fresh noise; the last step, to ``smallest`` or 0, adds none.

    Song et al. 2023, arXiv 2303.01469, algorithm 1, whose smallest level is that of the model; with 0 the sampler of latent
    consistency models (Luo et al. 2023, arXiv 2310.04378).
    """

    def advance(step: Step, _: Step | None) -> Tensor:
        fresh = math.sqrt(max(step.after**2 - smallest**2, 0.0))
        return step.denoised + fresh * _drawn(noise, x) if fresh else step.denoised

    return _walk(denoise, x, grid, advance, watch)


SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "heun": heun,
    "ddim": ddim,
    "ancestral": ancestral,
    "dpm_solver_2m": dpm_solver_2m,
    "consistency": consistency,
    "lcm": consistency,
}
"""The samplers by the names that a config gives them."""


@torch.no_grad()
def _walk(
    denoise: Denoise, x: Tensor, grid: Grid, advance: Callable[[Step, Step | None], Tensor], watch: Watch | None
) -> Tensor:
    before = None
    for number, (sigma, after) in enumerate(pairwise(_descending(grid))):
        step = Step(number, sigma, after, x, denoise(x, sigma))
        if watch is not None:
            watch(step)
        x, before = advance(step, before), step
    return x


def _ratio(upper: float | Tensor, lower: float | Tensor, x: Tensor) -> float | Tensor:
    ratio = upper / lower
    return beside(ratio.to(x), x) if isinstance(ratio, Tensor) else ratio


def _descending(grid: Grid) -> list[float]:
    levels = grid.tolist() if isinstance(grid, Tensor) else list(grid)
    if not levels or levels[-1] < 0 or any(after >= sigma for sigma, after in pairwise(levels)):
        raise ValueError(f"the levels of a grid descend, to 0 or above, got {levels}")
    return levels


def _drawn(noise: Noise | None, like: Tensor) -> Tensor:
    if noise is None:
        raise ValueError("this sampler adds noise: give it some, such as seeded(0)")
    return noise(like)


# ---- segments: several denoisers one after another ----


@dataclass(frozen=True)
class Segment:
    """A part of the way that one denoiser goes.

    Args:
        denoiser: ``denoiser(sample, sigma, label).denoised``.
        grid: its levels, the one where it hands over included.
        guidance: the weight w of :class:`~kdbench.models.denoiser.Guided`; 1: none.
        sampler: how it goes.
    """

    denoiser: nn.Module
    grid: Grid
    guidance: float = 1.0
    sampler: Sampler = euler


class Sampled(NamedTuple):
    """Samples ``[B, ...]`` and what they cost, by segment: evaluations of a network for each sample, seconds for all."""

    samples: Tensor
    evaluations: list[int]
    seconds: list[float]


Form = Literal["ve", "vp"]


def sample(
    segments: Sequence[Segment],
    start: Tensor,
    label: Tensor | None = None,
    noise: Noise | None = None,
    watch: Watch | None = None,
    form: Form = "ve",
    batch_size: int | None = None,
) -> Sampled:
    """Run segments one after another, each from the noisy latent that the one before it leaves.

    The form is that of the first latent, of what is handed over and of what is returned. In ``ve`` the first latent is
    ``sigma start``; in ``vp`` it is ``start`` itself, as the schedulers of DDPM and its kin have it. Where a segment begins at
    another level than the last one ended at, the latent of that form stays what it is.

    Args:
        segments: the parts of the way; one whose grid has a single level goes no way and costs nothing.
        start: standard normal numbers ``[B, ...]``.
        label: classes ``[B]``.
        noise: fresh noise, shared by all segments.
        watch: is shown every step (``watch=trace.append`` keeps them), numbered through all segments.
        form: see above.
        batch_size: evaluate so many samples at a time, which changes neither noise nor order.

    Raises:
        ValueError: a grid that does not descend, or no noise for a sampler that adds some.
    """
    x, at, taken, evaluations, clock = start, None, 0, [], [_now(start)]
    for part in segments:
        levels = _descending(part.grid)
        denoise = Guided(part.denoiser, label, part.guidance, batch_size)
        if len(levels) > 1:
            if at is None:
                x = levels[0] * x if form == "ve" else to_ve(x, levels[0])
            elif form == "vp" and at != levels[0]:  # equal levels keep every bit
                x = to_ve(to_vp(x, at), levels[0])
            x = part.sampler(denoise, x, levels, noise, _numbered(watch, taken))
            at, taken = levels[-1], taken + len(levels) - 1
        evaluations.append(denoise.evaluations)
        clock.append(_now(x))
    seconds = [after - before for before, after in pairwise(clock)]
    return Sampled(x if form == "ve" or at is None else to_vp(x, at), evaluations, seconds)


def _now(x: Tensor) -> float:
    """Return the seconds of a clock, after all work of the device of x."""
    if x.device.type != "cpu":
        torch.accelerator.synchronize(x.device)
    return time.perf_counter()


def _numbered(watch: Watch | None, taken: int) -> Watch | None:
    return None if watch is None else lambda step: watch(step._replace(number=taken + step.number))
