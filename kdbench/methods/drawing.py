"""What the families share whose networks draw samples: how each network is sampled, and what the samples are worth."""

import abc
import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from kdbench.errors import UserError, nearest
from kdbench.methods.evaluation import Evaluation
from kdbench.methods.objective import Batch
from kdbench.methods.tasks import Density, JudgedDensity
from kdbench.metrics.densities import MaximumMeanDiscrepancy
from kdbench.models.denoiser import beside
from kdbench.models.moving_average import MovingAverage
from kdbench.models.origins import Facts, Origin
from kdbench.models.samplers import SAMPLERS, Noise, Sampled, Segment, consistency, sample, seeded
from kdbench.models.schedules import karras_grid
from kdbench.models.taps import Taps


@dataclass
class Sampling:
    """How samples are drawn from a network.

    Args:
        sampler: ``euler`` (DDIM), ``heun``, ``ddim``, ``ancestral``, ``dpm_solver_2m`` or ``consistency``.
        steps: how many; each costs one evaluation of the network, Heun's two but for the last.
        smallest: of the levels of Karras's grid; the last step goes from there to 0.
        largest: the level that sampling starts at.
        rho: see :func:`~kdbench.models.schedules.karras_grid`.
        within: take every ``within / steps``-th level of the grid of so many steps, so that the levels of fewer steps are
            among those of more.
        levels: the levels themselves, descending to above 0, in the place of a grid.
        guidance: w of ``D_0 + w (D_c - D_0)``; 1: none.
        per_row: samples drawn for each row of the split.

    Raises:
        ValueError: no such sampler, no step, or levels that do not descend.
    """

    sampler: str = "heun"
    steps: int = 18
    smallest: float = 0.002
    largest: float = 80.0
    rho: float = 7.0
    within: int | None = None
    levels: list[float] | None = None
    guidance: float = 1.0
    per_row: int = 1

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"there is no sampler '{self.sampler}'.{nearest(self.sampler, SAMPLERS)}")
        if self.steps < 1 or self.per_row < 1:
            raise ValueError(f"sampling takes a step or more for a sample or more, got {self.steps} and {self.per_row}")
        if self.within is not None and self.within % self.steps:
            raise ValueError(f"{self.steps} steps within {self.within} need a multiple of {self.steps}")
        if self.levels is not None and (not self.levels or sorted({*self.levels, 0.0})[:0:-1] != list(self.levels)):
            raise ValueError(f"the levels of sampling descend and are above 0, got {self.levels}")

    def grid(self, steps: int | None = None) -> Tensor:
        """Return the levels of so many steps, by default its own, 0 at the end: ``[steps + 1]``, float64."""
        if self.levels is not None:
            return torch.tensor([*self.levels, 0.0], dtype=torch.float64)
        steps = steps or self.steps
        whole = self.within or steps
        return karras_grid(whole, self.smallest, self.largest, self.rho)[:: whole // steps]


class Drawing(Evaluation, abc.ABC):
    """Networks that are scored by the samples that they draw, all of them from the same noise.

    A family that is a :class:`~kdbench.methods.base.Distillation` inherits this first and calls :meth:`draw_by` at the end
    of its constructor.
    """

    sampling: Mapping[str, Sampling]
    judge: Origin | None
    average: MovingAverage | None
    """The moving average of the student: what is scored and exported, where there is one."""

    def draw_by(
        self, sampling: Mapping[str, Sampling] | None, judge: Origin | None = None, decay: float | None = None
    ) -> None:
        """Keep how the networks draw.

        Args:
            sampling: by the name of the network; one that is not named draws as the student does.
            judge: the origin of a frozen classifier of the samples, in whose features they are compared.
            decay: of the student's moving average; None: there is none.

        Raises:
            ValueError: there is no network of that name, or the decay is no share.
        """
        self.sampling, self.judge, self.decay = {"student": Sampling(), **(sampling or {})}, judge, decay
        for name in self.sampling:
            if name not in self.origins:
                raise ValueError(f"sampling names '{name}', which is no network.{nearest(name, self.origins)}")
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"the decay of a moving average is a share below 1, got {decay}")
        self.average = None
        self._generator: Generator | None = None
        self.costs: dict[str, tuple[int, int, float]] = {}
        """Evaluations for a sample, samples and seconds that each network has taken in this test."""

    # ---- building ----

    def check_data(self) -> None:
        """Raise :class:`UserError` unless the data are samples of a density; tell the task what is known of them."""
        super().check_data()
        if not isinstance(self.task, Density):
            raise UserError(f"{type(self).__name__} learns to draw samples: it needs the data DensitySamples.")
        if self.judge is not None:
            self.judge.check()
            if not self.data.labels:
                raise UserError("A judge tells the classes of samples: name their field in data.label.")
            facts = Facts(labels=self.data.labels)
            judge = self._frozen["judge"] = self.judge.build(facts).eval().requires_grad_(False)
            self._judging = Taps(judge, ["classifier.input", "logits"])
            values = self.data.example()["inputs"]["sample"][0].numel()
            self.task = JudgedDensity(self.data.labels, judge.get_submodule("classifier").in_features, values)
        else:
            self.task.mixture = self.data.mixture

    def complete(self) -> None:
        """Begin the moving average at the student.

        Raises:
            UserError: the student is made for samples of another shape, or for other classes, than those of the data.
        """
        super().complete()
        shape, classes = list(self.data.example()["inputs"]["sample"].shape[1:]), len(self.data.labels or [])
        config = self.student.config
        if config.shape != shape or (classes and config.classes != classes):
            raise UserError(
                f"The data are samples {shape} in {classes} classes, the student is made for {config.shape} in {config.classes}: "
                "correct 'shape' and 'classes' of its config."
            )
        if self.decay is not None:
            self.average = MovingAverage(self.student, self.decay, warm_up=True)

    def network(self, name: str) -> nn.Module:
        """Return a network; for the student its moving average, where there is one."""
        return self.average.network if name == "student" and self.average is not None else super().network(name)

    # ---- drawing ----

    def noise_of(self, batch: Batch, stream: int = 0) -> Generator:
        """Return the generator of all that is drawn for a batch; ``stream`` tells one purpose from another."""
        if self._generator is None or self._generator.device != self.device:
            self._generator = Generator(self.device)
        return self._generator.manual_seed(batch["noise_seed"] + stream)

    def segments(self, name: str) -> list[Segment]:
        """Return the parts of the way from noise to the samples of a network; by default one, as its sampling says."""
        how, network = self.sampling.get(name, self.sampling["student"]), self.network(name)
        sampler = SAMPLERS[how.sampler]
        smallest = getattr(network.config, "boundary", None)
        if sampler is consistency and smallest is not None:
            sampler = functools.partial(consistency, smallest=smallest)
        return [Segment(network, how.grid(), how.guidance, sampler)]

    @torch.no_grad()
    def answer(self, name: str, batch: Batch) -> dict[str, Tensor]:
        """Return ``samples`` ``[B k, ...]`` that a network draws, k for each row, and the ``label`` that each is to have."""
        view = batch[self.data.views[name]]
        times = self.sampling.get(name, self.sampling["student"]).per_row
        noise = seeded(self.noise_of(batch))
        start = noise(view["sample"].repeat_interleave(times, 0))
        told = {"label": view["label"].repeat_interleave(times, 0)} if "label" in view else {}
        drawn = self.draw(name, start, told.get("label"), noise)
        _, count, seconds = self.costs.get(name, (0, 0, 0.0))
        self.costs[name] = (sum(drawn.evaluations), count + len(start), seconds + sum(drawn.seconds))
        return {"samples": drawn.samples, **told}

    def draw(self, name: str, start: Tensor, label: Tensor | None, noise: Noise) -> Sampled:
        """Return the samples that a network makes of noise ``[B, ...]``."""
        return sample(self.segments(name), start, label, noise)

    # ---- training ----

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Let averages follow each step of the optimiser."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.follow()

    def follow(self) -> None:
        """Let the moving average follow an update of the student."""
        if self.average is not None:
            self.average.update(self.student)

    # ---- scoring ----

    def prepare_scores(self, compared: list[str]) -> None:
        """Also make the metrics of ``data``: training rows in the place of drawn samples, the noise floor of each score."""
        super().prepare_scores(compared)
        self.scores["data"] = copy.deepcopy(self.scores["student"])
        self.discrepancies = nn.ModuleDict({name: MaximumMeanDiscrepancy() for name in self.scores})
        """In the test alone: it compares all pairs."""

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score what every network draws, and the data themselves."""
        super().test_step(batch, batch_idx)
        self._score("data", _renamed(batch["other"]), batch)

    def _score(self, name: str, outputs: dict[str, Tensor], batch: Batch) -> None:
        """Score samples ``[N, ...]`` by the metrics of the task, and by what the judge makes of them."""
        rows = {"made": outputs, "real": _renamed(batch["inputs"])}
        if self.judge is not None:
            rows = {kind: {**told, **self.judged(told["samples"])} for kind, told in rows.items()}
        for key, metric in self.scores[name].items():
            metric.update(*(rows[kind][what] for kind, what in self.task.reads[key]))
        if self.trainer.testing:
            self.discrepancies[name].update(outputs["samples"], batch["inputs"]["sample"])

    def judged(self, samples: Tensor) -> dict[str, Tensor]:
        """Return the judge's ``features`` (what its classifier sees) and ``logits`` of samples."""
        name = self._frozen["judge"].main_input_name
        found = self._judging({name: samples.flatten(1) if name == "features" else samples})
        return {"features": found["classifier.input"], "logits": found["logits"]}

    def on_test_epoch_start(self) -> None:
        """Begin to count what drawing costs."""
        super().on_test_epoch_start()
        self.costs = {}

    def on_test_epoch_end(self) -> None:
        """Also log the discrepancies, and what drawing costs: evaluations of the network for a sample, and seconds."""
        super().on_test_epoch_end()
        for name, metric in self.discrepancies.items():
            self.log(f"test/mmd@{name}", metric.compute().float())
            metric.reset()
        for name, (evaluations, count, seconds) in self.costs.items():
            self.log_dict({f"test/nfe@{name}": float(evaluations), f"test/seconds_per_sample@{name}": seconds / count})


def noisy(clean: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
    """Return ``x0 + sigma n`` of samples ``[B, ...]`` and levels ``[B]``."""
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
    return clean + beside(sigma, clean) * noise


def _renamed(view: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a view of samples as if a network had drawn them."""
    return {"samples": view["sample"], **{name: value for name, value in view.items() if name != "sample"}}
