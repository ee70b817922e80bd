"""Concept sliders: low-rank weights that move one attribute of what a diffusion model draws, up or down."""

import abc
import copy
import dataclasses

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from kdbench.data.densities import DensitySamples
from kdbench.errors import UserError, nearest
from kdbench.losses.denoising import DenoisingLoss, Weighting
from kdbench.methods.base import Distillation, Optimizer
from kdbench.methods.drawing import Drawing, Sampling
from kdbench.methods.objective import Batch, Term, Values
from kdbench.methods.optimizers import Schedule
from kdbench.models.deltas import loras, scaled
from kdbench.models.origins import Origin
from kdbench.models.samplers import sample, seeded


class Direction(abc.ABC):
    """Where a slider leads to: a direction among denoised samples, and the attribute that grows along it."""

    @abc.abstractmethod
    def learn(self, data: DensitySamples) -> None:
        """Take what is needed from the data; raise :class:`UserError` where they lack it."""

    @abc.abstractmethod
    def __call__(self, base: nn.Module, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """Return the direction ``[B, ...]`` at noisy samples."""

    @abc.abstractmethod
    def attribute(self, samples: Tensor, logits: Tensor | None) -> Tensor:
        """Return how much of the attribute samples have ``[B]``; ``logits`` are the judge's, where there is one."""


class MeanHalves(Direction):
    """The mean of the half of a class with the larger mean values less that of the other half: thick strokes less thin ones.

    The attribute is the mean value of a sample.
    """

    def learn(self, data: DensitySamples) -> None:
        """Compare the halves of every class of the training rows, or of all rows where there are no classes."""
        table = data.table("train")
        samples, label = table["sample"], table.get("label")
        numbers = torch.zeros(len(samples), dtype=torch.int64) if label is None else label
        groups = [samples[numbers == each] for each in range(int(numbers.max()) + 1)]
        self.directions = torch.stack([self._halves(group) for group in groups])

    def _halves(self, group: Tensor) -> Tensor:
        above = self.attribute(group) > self.attribute(group).median()
        return group[above].mean(0) - group[~above].mean(0)

    def __call__(self, base: nn.Module, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """Return the direction of the class, wherever the samples are."""
        directions = self.directions.to(x)
        return directions.expand_as(x) if label is None else directions[label]

    def attribute(self, samples: Tensor, logits: Tensor | None = None) -> Tensor:
        """Return the mean value of each sample."""
        return samples.flatten(1).mean(1)


class BetweenClasses(Direction):
    """``D(x, c+) - D(x, c-)``: what the base would rather draw for one class than for another, whatever the class is.

    The attribute is ``log p(c+) - log p(c-)`` of the judge (Gandikota et al. 2023, arXiv 2311.12092, eq. 7, whose classes are
    prompts).

    Args:
        positive: the name of c+.
        negative: the name of c-.
    """

    def __init__(self, positive: str, negative: str) -> None:
        self.names = (positive, negative)

    def learn(self, data: DensitySamples) -> None:
        """Find the numbers of the classes; raise :class:`UserError` when there are none of these names."""
        labels = data.labels or []
        for name in self.names:
            if name not in labels:
                raise UserError(f"The data have no class '{name}' for a slider.{nearest(name, labels)}")
        self.positive, self.negative = (labels.index(name) for name in self.names)

    def __call__(self, base: nn.Module, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """Return the difference of two denoised samples."""
        more, less = (torch.full((len(x),), number, device=x.device) for number in (self.positive, self.negative))
        return base(x, sigma, more).denoised - base(x, sigma, less).denoised

    def attribute(self, samples: Tensor, logits: Tensor | None) -> Tensor:
        """Return the judge's log-odds; raise :class:`UserError` without a judge."""
        if logits is None:
            raise UserError("A slider between classes is measured by a judge: give 'judge'.")
        return logits[:, self.positive] - logits[:, self.negative]


class ConceptSlider(Drawing, Distillation):
    """``(D_c(x, sigma) - (D(x, sigma) + c eta d))^2`` with c = 1 or -1, D the base and ``D_c`` the base with its LoRA at c.

    x is what the network with its LoRA has made of noise on the way to a level ``sigma`` of its grid. In the noise
    predictions of the paper the same target is ``eps + c eta (eps(c+) - eps(c-))`` (Gandikota et al. 2023, arXiv 2311.12092,
    eq. 7, and its code). The run leaves the LoRA in its folder ``lora``, and as ``student`` the network with c = 1.

    The test draws from the same noise at every scale c; with ``fit: false`` it tests a LoRA that another network has learnt.

    Args:
        student: the origin of the network with a LoRA: ``then`` has ``AddLoRA``, or ``ApplyLoRA`` with ``scale: null``.
        base: the origin of the network without.
        direction: d.
        eta: how far c = 1 leads.
        weighting: of the squares at a level; ``epsilon`` is the paper's.
        scales: c of the test, each scored under the name ``at_2`` or ``at_minus_2``.
        sampling: see :class:`~kdbench.methods.drawing.Drawing`; the levels of ``student`` are those it learns at.
        judge: see :class:`~kdbench.methods.drawing.Drawing`.
        optimizer: see :class:`~kdbench.methods.base.Distillation`.
        schedule: see :class:`~kdbench.methods.base.Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        base: Origin,
        direction: Direction,
        eta: float = 1.0,
        weighting: Weighting = "x0",
        scales: list[float] | None = None,
        sampling: dict[str, Sampling] | None = None,
        judge: Origin | None = None,
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        terms = {"slider": Term(DenoisingLoss(weighting), student="denoised", teacher="base.denoised")}
        super().__init__(student, terms, {"base": base}, None, optimizer, schedule)
        self.draw_by(sampling, judge)
        self.direction, self.eta = direction, eta
        self.scales = {_name(scale): scale for scale in scales or (-2.0, -1.0, 1.0, 2.0)}

    def complete(self) -> None:
        """Look for the LoRA, and learn the direction."""
        super().complete()
        if not loras(self.student):
            raise UserError("A slider is a LoRA: give the student's origin 'then: [AddLoRA]'.")
        self.direction.learn(self.data)

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with a side c, and with samples half made at that side, down to a level of the grid."""
        generator = self.noise_of(batch)
        view, levels = batch["inputs"], self.sampling["student"].grid()[:-1]
        place, side = (int(torch.randint(end, (), generator=generator, device=self.device)) for end in (len(levels), 2))
        scale, noise = 2.0 * side - 1, seeded(generator)
        x = noise(view["sample"])
        with scaled(self.student, scale):
            (whole,) = self.segments("student")
            part = dataclasses.replace(whole, grid=levels[: place + 1])
            x = sample([part], x, view.get("label"), noise).samples if place else float(levels[0]) * x
        sigma = levels[place].to(x).expand(len(x))
        return {**batch, "inputs": {**view, "sample": x, "sigma": sigma}, "sigma": sigma, "scale": scale}

    @torch.no_grad()
    def teach(self, batch: Batch) -> dict[str, Values]:
        """Return what the base thinks x0 is, moved by ``c eta d``."""
        view, base = batch["inputs"], self.network("base")
        x, sigma, label = view["sample"], view["sigma"], view.get("label")
        moved = batch["scale"] * self.eta * self.direction(base, x, sigma, label)
        return {"base": {"denoised": base(x, sigma, label).denoised + moved}}

    def learn(self, batch: Batch, teacher: dict[str, Values]) -> dict[str, Tensor]:
        """Return what the network with its LoRA at c thinks x0 is."""
        with scaled(self.student, batch["scale"]):
            return super().learn(batch, teacher)

    # ---- the test ----

    def prepare_scores(self, compared: list[str]) -> None:
        """Also make the metrics of every scale."""
        super().prepare_scores(compared)
        for metrics in (self.scores, self.discrepancies):
            metrics.update({name: copy.deepcopy(metrics["student"]) for name in self.scales})
        self.attributes = nn.ModuleDict({name: MeanMetric() for name in (*self.scores, "still")})
        self.moves = nn.ModuleDict({name: MeanMetric() for name in self.scales})

    def on_test_epoch_start(self) -> None:
        """Also forget the attributes of validation."""
        super().on_test_epoch_start()
        for metric in (*self.attributes.values(), *self.moves.values()):
            metric.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Also score what is drawn at every scale, and how far it is from what the same noise gives at 0."""
        super().test_step(batch, batch_idx)
        with scaled(self.student, 0.0):
            still = self.answer("student", batch)["samples"]
        self._measure("still", still)
        for name, scale in self.scales.items():
            with scaled(self.student, scale):
                drawn = self.answer("student", batch)
            self._score(name, drawn, batch)
            self.moves[name].update((drawn["samples"] - still).flatten(1).norm(dim=1))

    def _score(self, name: str, outputs: dict[str, Tensor], batch: Batch) -> None:
        """Also measure the attribute."""
        super()._score(name, outputs, batch)
        self._measure(name, outputs["samples"])

    def _measure(self, name: str, samples: Tensor) -> None:
        logits = self.judged(samples)["logits"] if self.judge is not None else None
        self.attributes[name].update(self.direction.attribute(samples, logits))

    def on_test_epoch_end(self) -> None:
        """Also log the attribute, its difference from that at the scale 0, and the distance from the samples there.

        The distance is Euclidean, over all values of a sample.
        """
        super().on_test_epoch_end()
        values = {name: metric.compute() for name, metric in self.attributes.items()}
        self.log_dict({f"test/attribute@{name}": value for name, value in values.items() if name != "still"})
        self.log_dict({f"test/effect@{name}": values[name] - values["still"] for name in self.scales})
        self.log_dict({f"test/moved@{name}": self.moves[name].compute() for name in self.scales})


def _name(scale: float) -> str:
    return f"at_{'minus_' if scale < 0 else ''}{abs(scale):g}".replace(".", "_")
