"""Losses of diffusion models and of their step distillation, on denoised samples ``D(x, sigma) ~ E[x0 | x]``.

Samples are ``[B, ...]``, noise levels ``[B]``; a value is that of each example, ``[B]``, or their mean; targets have no
gradient. In the VP form ``x_t = a x0 + s n`` the level is ``sigma = s / a`` and the signal-to-noise ratio ``a^2 / s^2`` is
``1 / sigma^2``, so that the losses of all parameterisations are weights on ``(D - x0)^2``.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from kdbench.losses.base import RowLoss, at_least_float32, check_choice, check_same_shape, reduced
from kdbench.losses.divergences import Reduction

Weighting = Literal["x0", "epsilon", "v", "truncated", "edm"]
Elements = Literal["mean", "sum"]
Distance = Literal["l1", "l2", "huber", "pseudo_huber"]
Scaling = Literal["diff_instruct", "dmd"]


# ---- denoising ----


def denoising_weight(sigma: Tensor, weighting: Weighting = "edm", sigma_data: float = 0.5) -> Tensor:
    """Return the weight of ``(D - x0)^2`` at each level, of any shape, with ``SNR = 1 / sigma^2``.

    - ``x0``: 1.
    - ``epsilon``: SNR, which makes it ``(eps_hat - n)^2`` (Ho et al. 2020, arXiv 2006.11239).
    - ``v``: SNR + 1, which makes it ``(v_hat - v)^2`` of ``v = a n - s x0``; ``truncated``: ``max(SNR, 1)`` (Salimans and Ho
      2022, arXiv 2202.00512).
    - ``edm``: ``(sigma^2 + d^2) / (sigma d)^2 = 1 / sigma^2 + 1 / d^2`` with ``d = sigma_data`` (Karras et al. 2022, arXiv
      2206.00364).
    """
    check_choice("weighting", weighting, get_args(Weighting))
    if weighting == "x0":
        return torch.ones_like(sigma)
    ratio = sigma.square().reciprocal()
    if weighting == "truncated":
        return ratio.clamp(min=1.0)
    return ratio + {"epsilon": 0.0, "v": 1.0, "edm": sigma_data**-2}[weighting]


def denoising_loss(
    denoised: Tensor,
    clean: Tensor,
    sigma: Tensor,
    weighting: Weighting = "edm",
    sigma_data: float = 0.5,
    elements: Elements = "mean",
    reduction: Reduction = "rows",
) -> Tensor:
    """``w(sigma) (D(x0 + sigma n, sigma) - x0)^2``: of a teacher on data, of a score network on what a generator made.

    Args:
        denoised: D.
        clean: x0; in progressive distillation :func:`progressive_target`.
        sigma: the levels.
        weighting: see :func:`denoising_weight`.
        sigma_data: the standard deviation of the data, for ``edm``.
        elements: their ``mean`` in an example, or their ``sum`` as EDM's and Diff-Instruct's code have it.
        reduction: ``rows`` or ``none``.

    Raises:
        ValueError: shapes that differ, or an unknown name.
    """
    check_same_shape(denoised, clean)
    check_choice("elements", elements, get_args(Elements))
    squares = (at_least_float32(denoised) - at_least_float32(clean.detach())).square().flatten(1)
    values = squares.mean(1) if elements == "mean" else squares.sum(1)
    return reduced(denoising_weight(sigma.to(values), weighting, sigma_data) * values, reduction)


class DenoisingLoss(RowLoss):
    """:func:`denoising_loss` of a student's ``denoised``; the levels are in the field ``sigma`` of the batch."""

    takes_rows = False
    fields = ("sigma",)

    def __init__(self, weighting: Weighting = "edm", sigma_data: float = 0.5, elements: Elements = "mean") -> None:
        super().__init__()
        self.weighting = check_choice("weighting", weighting, get_args(Weighting))
        self.elements = check_choice("elements", elements, get_args(Elements))
        self.sigma_data = sigma_data

    def per_row(self, student: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
        """Return the loss of each example."""
        return denoising_loss(student, target, sigma, self.weighting, self.sigma_data, self.elements, "none")


# ---- progressive distillation ----


def progressive_target(
    x: Tensor,
    landed: Tensor,
    sigma: Tensor,
    sigma_landed: Tensor,
    alpha: Tensor | None = None,
    alpha_landed: Tensor | None = None,
) -> Tensor:
    """Return the x0 with which ONE DDIM step of the student goes from x to where two of the teacher's landed.

    ``(z'' - (s'' / s) z) / (a'' - (s'' / s) a)`` of ``z = a x0 + s n`` (Salimans and Ho 2022, arXiv 2202.00512, algorithm 2);
    in the VE form, without the alphas, ``x - sigma (x'' - x) / (sigma'' - sigma)``.

    Args:
        x: z.
        landed: z''.
        sigma: s of z.
        sigma_landed: s'' < s.
        alpha: a of z, 0 for pure noise in the VP form; 1 by default.
        alpha_landed: a''; 1 by default.
    """
    ratio = sigma_landed / sigma
    ahead = torch.ones_like(ratio) if alpha_landed is None else alpha_landed
    behind = torch.ones_like(ratio) if alpha is None else alpha
    return (landed - _beside(ratio, x) * x) / _beside(ahead - ratio * behind, x)


# ---- consistency ----


def consistency_loss(
    student: Tensor, target: Tensor, distance: Distance = "l2", scale: float = 0.03, reduction: Reduction = "rows"
) -> Tensor:
    """Distance of ``f(x, sigma_n)`` from the target network's ``f(x_hat, sigma_(n+1))`` at the next smaller level.

    With u their difference, ``l2``: the mean of ``u^2`` over the elements; ``l1``: of ``|u|``; ``huber``: of
    ``sqrt(u^2 + c^2) - c``, as the code of latent consistency models has it (arXiv 2310.04378); ``pseudo_huber``:
    ``sqrt(||u||^2 + c^2) - c`` (Song and Dhariwal 2023, arXiv 2310.14189). Song et al. 2023, arXiv 2303.01469, eq. 7, with
    the weight 1.

    Args:
        student: f of the student.
        target: f of the target network.
        distance: see above.
        scale: c; 0.001 in the code of latent consistency models.
        reduction: ``rows`` or ``none``.

    Raises:
        ValueError: shapes that differ, or an unknown name.
    """
    check_same_shape(student, target)
    check_choice("distance", distance, get_args(Distance))
    apart = (at_least_float32(student) - at_least_float32(target.detach())).flatten(1)
    if distance == "l1":
        values = apart.abs().mean(1)
    elif distance == "l2":
        values = apart.square().mean(1)
    elif distance == "huber":
        values = ((apart.square() + scale**2).sqrt() - scale).mean(1)
    else:
        values = (apart.square().sum(1) + scale**2).sqrt() - scale
    return reduced(values, reduction)


class ConsistencyLoss(RowLoss):
    """:func:`consistency_loss` of a student against its target network."""

    takes_rows = False

    def __init__(self, distance: Distance = "l2", scale: float = 0.03) -> None:
        super().__init__()
        self.distance, self.scale = check_choice("distance", distance, get_args(Distance)), scale

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each example."""
        return consistency_loss(student, target, self.distance, self.scale, "none")


def consistency_schedule(
    step: int, steps: int, fewest: int = 2, most: int = 150, start: float = 0.9
) -> tuple[float, int]:
    """Return the decay mu of the target network and the number N of levels at a step of consistency training.

    ``N = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1`` and ``mu = exp(s0 ln(mu0) / (N - 1))``, with the exponent of
    the official code (Song et al. 2023, arXiv 2303.01469, appendix C).

    Args:
        step: k, from 0.
        steps: K.
        fewest: s0.
        most: s1.
        start: mu0.
    """
    levels = math.ceil(math.sqrt(step / steps * ((most + 1) ** 2 - fewest**2) + fewest**2) - 1) + 1
    return math.exp(fewest * math.log(start) / (levels - 1)), levels


def latent_consistency_scalings(time: Tensor, stretch: float = 10.0, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return ``c_skip = d^2 / (tau^2 + d^2)`` and ``c_out = tau / sqrt(tau^2 + d^2)`` with ``tau = stretch t``.

    ``f = c_skip x_t + c_out x0_hat`` is the identity at the timestep 0 and all but x0_hat from 1 on (Luo et al. 2023, arXiv
    2310.04378, and its code).
    """
    tau = stretch * time
    spread = tau.square() + sigma_data**2
    return sigma_data**2 / spread, tau * spread.rsqrt()


# ---- score distillation ----


def distribution_matching(
    made: Tensor, fake: Tensor, real: Tensor, scaling: Scaling = "diff_instruct", weight: Tensor | float = 1.0
) -> Tensor:
    """Return the gradient on what a generator made that leads to a smaller divergence from the teacher's distribution.

    Both denoisers see the made sample noised anew, ``D(x + sigma n, sigma)``, and the difference of their scores is
    ``(D_fake - D_real) / sigma^2``. No derivative of a denoiser enters.

    - ``diff_instruct``: ``w (D_fake - D_real)``, of the integral KL divergence (Luo et al. 2023, arXiv 2305.18455).
    - ``dmd``: ``w (D_fake - D_real) / mean |x - D_real|``, the mean in each example, 0 where that is not finite (Yin et al.
      2024, arXiv 2311.18828, eq. 7 and 8).

    Args:
        made: x, of the generator.
        fake: the score network's denoised sample.
        real: the teacher's.
        scaling: see above.
        weight: w, ``[B]`` or one for all.

    Raises:
        ValueError: shapes that differ, or an unknown name.
    """
    check_same_shape(made, fake)
    check_same_shape(fake, real)
    check_choice("scaling", scaling, get_args(Scaling))
    made, fake, real = (at_least_float32(each.detach()) for each in (made, fake, real))
    gradient = (_beside(weight.to(made), made) if isinstance(weight, Tensor) else weight) * (fake - real)
    if scaling == "diff_instruct":
        return gradient
    gradient = gradient / _beside((made - real).abs().flatten(1).mean(1), made)
    return gradient.nan_to_num(0.0, 0.0, 0.0)


def distribution_matching_loss(
    made: Tensor,
    fake: Tensor,
    real: Tensor,
    scaling: Scaling = "diff_instruct",
    weight: Tensor | float = 1.0,
    reduction: Reduction = "rows",
) -> Tensor:
    """Return a loss whose gradient on x is :func:`distribution_matching`; its value tells nothing about the fit.

    ``diff_instruct``: ``sum(grad x)`` over the elements, whose mean over examples has the gradient ``grad / B``; ``dmd``:
    ``1/2 mean (x - stopgrad(x - grad))^2``, which has ``grad`` over the number of all elements. The forms are those of the
    official codes, and learning rates belong to them.
    """
    gradient = distribution_matching(made, fake, real, scaling, weight)
    made = at_least_float32(made)
    if scaling == "diff_instruct":
        return reduced((gradient * made).flatten(1).sum(1), reduction)
    return reduced((made - (made - gradient).detach()).square().flatten(1).mean(1) / 2, reduction)


def _beside(values: Tensor, samples: Tensor) -> Tensor:
    """Return numbers ``[B]``, or ``[1]`` for all, so that they multiply samples ``[B, ...]``."""
    return values.reshape(-1, *[1] * (samples.dim() - 1))
