"""What a divergence and its gradient say of a student that is far from its teacher."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from kdbench.losses.divergences import jensen_shannon, kl_divergence
from kdbench.losses.transport import sinkhorn_distance
from kdbench.metrics.pictures import Picture
from kdbench.studies.study import Findings, Study

ROWS = 4


def divergence_geometry(
    separations: Sequence[float], temperature: float = 1.0, sinkhorn_temperature: float = 2.0
) -> dict[str, list[float]]:
    """Values and gradients of four divergences while student and teacher move their mass to disjoint classes.

    A batch of 4 rows and 8 classes: row i of the teacher has the logit ``s`` at class i, row i of the student at class
    4 + i, all other logits are 0. At the separation ``s = 0`` both are uniform. As ``s`` grows, both KLs grow like
    ``s / T``; the gradient of the forward one tends to a constant, that of the reverse one vanishes like ``s exp(-s /
    T)``. The Jensen-Shannon divergence saturates at ln 2, its gradient vanishing likewise. The Sinkhorn distance is at
    most 2 a row, and its gradient falls like ``exp(-s / T)``. By default each has the temperature that it is used with:
    1, and 2 for the Sinkhorn distance. Most of what its gradient then gains on that of Jensen-Shannon is the
    temperature's doing: look at equal temperatures too before saying anything of the distance itself.

    Args:
        separations: s, in logits, at least 0.
        temperature: of the KL and Jensen-Shannon divergences.
        sinkhorn_temperature: of the Sinkhorn distance (epsilon 0.1, 20 iterations).

    Returns:
        Lists with one number a separation: ``separation``; ``kl``, ``reverse_kl``, ``jensen_shannon`` (no ``T^2``) and
        ``sinkhorn``, all in the mean of a row; and for each ``<name>_gradient``, the Euclidean norm of the gradient with
        respect to the student's logits of a row, in the mean over rows. Nothing is random.

    Raises:
        ValueError: a temperature is not positive.

    Cui et al. 2024, arXiv 2402.17110.
    """
    measures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "kl": partial(kl_divergence, temperature=temperature, square_temperature=False),
        "reverse_kl": partial(kl_divergence, temperature=temperature, direction="reverse", square_temperature=False),
        "jensen_shannon": partial(jensen_shannon, temperature=temperature),
        "sinkhorn": partial(sinkhorn_distance, temperature=sinkhorn_temperature, scale=1 / ROWS),
    }
    found: dict[str, list[float]] = {"separation": [float(separation) for separation in separations]}
    for name, measure in measures.items():
        values, gradients = found.setdefault(name, []), found.setdefault(f"{name}_gradient", [])
        for separation in separations:
            places = torch.eye(2 * ROWS, dtype=torch.float64) * separation
            teacher, student = places[:ROWS], places[ROWS:].requires_grad_()
            with torch.enable_grad():
                value = measure(student, teacher)
                (gradient,) = torch.autograd.grad(ROWS * value, student)
            values.append(float(value.detach()))
            gradients.append(float(gradient.norm(dim=-1).mean()))
    return found


class DivergenceGeometry(Study):
    """:func:`divergence_geometry` as numbers ``<name>_at_<separation>`` and two pictures, values and gradients.

    Args:
        separations: see :func:`divergence_geometry`; whole numbers give the best names.
        temperature: see :func:`divergence_geometry`.
        sinkhorn_temperature: see :func:`divergence_geometry`.
    """

    def __init__(self, separations: list[float], temperature: float = 1.0, sinkhorn_temperature: float = 2.0) -> None:
        self.separations, self.temperature, self.sinkhorn_temperature = separations, temperature, sinkhorn_temperature

    def __call__(self, seed: int) -> Findings:
        """Compute all divergences; the seed does not matter."""
        found = divergence_geometry(self.separations, self.temperature, self.sinkhorn_temperature)
        places = found.pop("separation")
        numbers = {
            f"{name}_at_{place:g}".replace(".", "_"): value
            for name, values in found.items()
            for place, value in zip(places, values, strict=True)
        }
        titles = {
            "": ("Divergences", "mean of a row, nats or L1"),
            "_gradient": ("Gradients", "norm of a row's gradient"),
        }
        pictures = {
            title.lower(): Picture(
                f"{title} of disjoint distributions",
                "separation, logits",
                what,
                places,
                {
                    name.removesuffix("_gradient").replace("_", " "): values
                    for name, values in found.items()
                    if name.endswith("_gradient") == bool(ending)
                },
            )
            for ending, (title, what) in titles.items()
        }
        return Findings(numbers, pictures)
