"""Diffusion: training a denoiser, and distilling its many steps into few along its own trajectories.

All work on denoisers ``D(x, sigma)`` of samples ``x = x0 + sigma n`` (:mod:`kdbench.models.denoiser`). Distilling by the scores
of what a generator makes is in :mod:`kdbench.methods.score_distillation`.
"""

from typing import Unpack

import torch
from torch import Generator, Tensor

from kdbench.errors import UserError
from kdbench.losses.denoising import ConsistencyLoss, DenoisingLoss, Distance, Weighting, progressive_target
from kdbench.methods.base import Distillation, LearningOptions
from kdbench.methods.drawing import Drawing, Sampling, noisy
from kdbench.methods.noise_levels import LogNormalLevels, NoiseLevels
from kdbench.methods.objective import Batch, Term, Values
from kdbench.models.denoiser import Guided, drop_labels
from kdbench.models.moving_average import MovingAverage
from kdbench.models.origins import Origin
from kdbench.models.samplers import euler_step, heun_step, sample
from kdbench.models.schedules import karras_grid


class DenoisingTraining(Drawing, Distillation):
    """A denoiser that learns ``w(sigma) (D(x0 + sigma n, sigma) - x0)^2``: the teacher of the other families.

    Args:
        student: the origin of the denoiser; its config says how it is parameterised.
        levels: of the noise; by default ``ln sigma ~ N(-1.2, 1.2^2)``.
        weighting: w, see :func:`~kdbench.losses.denoising.denoising_weight`; ``edm``, or ``epsilon`` for DDPM's loss.
        label_dropout: the share of labels that are replaced by the null class, for guidance.
        average_decay: of the moving average of the weights, which is what is scored and exported; None: there is none.
        sampling: how each network draws the samples that it is scored by; a network that is not named draws as the student.
        judge: the origin of a classifier of the samples, in whose features they are compared.
        objective: further terms.
        options: see :class:`~kdbench.methods.base.Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        levels: NoiseLevels | None = None,
        weighting: Weighting = "edm",
        label_dropout: float = 0.0,
        average_decay: float | None = None,
        sampling: dict[str, Sampling] | None = None,
        judge: Origin | None = None,
        objective: dict[str, Term] | None = None,
        **options: Unpack[LearningOptions],
    ) -> None:
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout is a share below 1, got {label_dropout}")
        terms = {"denoising": Term(DenoisingLoss(weighting), student="denoised", labels="clean")} | (objective or {})
        super().__init__(student, terms, **options)
        self.draw_by(sampling, judge, average_decay)
        self.levels, self.label_dropout = levels or LogNormalLevels(), label_dropout

    def complete(self) -> None:
        """Let the loss know the standard deviation of the data that the denoiser is made for; look for labels to drop."""
        super().complete()
        if self.label_dropout and not self.data.labels:
            raise UserError("label_dropout drops labels: name their field in data.label, or leave it out.")
        self.objective.losses["denoising"].sigma_data = self.student.config.sigma_data

    def clean(self, batch: Batch, generator: Generator) -> Tensor:
        """Return x0; here the data."""
        return batch["inputs"]["sample"]

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with noise of drawn levels, with some labels dropped, and with what it was without."""
        generator = self.noise_of(batch)
        clean = self.clean(batch, generator)
        sigma = self.levels.draw(len(clean), generator)
        view = {**batch["inputs"], "sample": noisy(clean, sigma, generator), "sigma": sigma}
        if self.label_dropout:
            view["label"] = drop_labels(view["label"], self.student.config.classes, self.label_dropout, generator)
        return {**batch, "inputs": view, "clean": clean, "sigma": sigma}


class ProgressiveDistillation(Drawing, Distillation):
    """One step of the student lands where two of the teacher's do (Salimans and Ho 2022, arXiv 2202.00512).

    The student's N levels are those that it is sampled at; the teacher goes by those between them too. A chain of such
    stages, each the teacher of the next, halves N: give all of them one grid, with ``within``. Noisy samples are made of data.

    Args:
        student: the origin of the student: the teacher's own.
        teacher: the origin of the teacher, a student of 2 N steps or the first one, which was not distilled.
        weighting: ``truncated``, ``max(SNR, 1)``, or ``v``, ``SNR + 1``.
        guidance: of the teacher; in the first stage alone, for then the student has learnt it.
        average_decay: see :class:`DenoisingTraining`.
        sampling: see :class:`DenoisingTraining`; that of the student gives N.
        judge: see :class:`DenoisingTraining`.
        objective: further terms.
        options: see :class:`~kdbench.methods.base.Distillation`; the paper's learning rate falls to 0 in a line in every stage.
    """

    def __init__(
        self,
        student: Origin,
        teacher: Origin,
        sampling: dict[str, Sampling],
        weighting: Weighting = "truncated",
        guidance: float = 1.0,
        average_decay: float | None = None,
        judge: Origin | None = None,
        objective: dict[str, Term] | None = None,
        **options: Unpack[LearningOptions],
    ) -> None:
        terms = {"progressive": Term(DenoisingLoss(weighting), student="denoised", teacher="teacher.denoised")}
        super().__init__(student, terms | (objective or {}), {"teacher": teacher}, **options)
        self.draw_by(sampling, judge, average_decay)
        self.guidance = guidance
        how = self.sampling["student"]
        if how.levels is not None or not how.within or how.within % (2 * how.steps):
            raise ValueError(
                f"the teacher takes two steps for each of the student's {how.steps}: sample the student 'within' a grid of a "
                f"multiple of {2 * how.steps}, got {how.levels or how.within}"
            )
        grid = how.grid(2 * how.steps).float()
        self.register_buffer("grid", grid, persistent=False)
        """The teacher's levels ``[2 N + 1]``; every other one is the student's."""

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with noise of one of the student's levels, and the next two levels of the teacher."""
        generator = self.noise_of(batch)
        clean = batch["inputs"]["sample"]
        places = 2 * torch.randint(len(self.grid) // 2, (len(clean),), generator=generator, device=clean.device)
        sigma = self.grid[places]
        view = {**batch["inputs"], "sample": noisy(clean, sigma, generator), "sigma": sigma}
        return {
            **batch,
            "inputs": view,
            "sigma": sigma,
            "after": self.grid[places + 1],
            "landed": self.grid[places + 2],
        }

    @torch.no_grad()
    def teach(self, batch: Batch) -> dict[str, Values]:
        """Return the x0 that takes one step of the student to where two of the teacher's land."""
        x, sigma, after, landed = batch["inputs"]["sample"], batch["sigma"], batch["after"], batch["landed"]
        denoise = Guided(self.network("teacher"), batch["inputs"].get("label"), self.guidance)
        middle = euler_step(x, denoise(x, sigma), sigma, after)
        end = euler_step(middle, denoise(middle, after), after, landed)
        return {"teacher": {"denoised": progressive_target(x, end, sigma, landed)}}


class ConsistencyDistillation(Drawing, Distillation):
    """``d(f(x, sigma_n), f_target(x_hat, sigma_next))`` along the teacher's trajectories (Song et al. 2023, arXiv 2303.01469).

    ``x = x0 + sigma_n n``, and ``x_hat`` is where one step of Heun's method with the teacher leads, to the next smaller level.
    The target follows the student, without gradient. Dropout, if there is any, falls alike on both.

    Args:
        student: the origin of the student: the teacher's own, and then the surgery ``AsConsistencyModel``, whose smallest level
            is that of the grid.
        teacher: the origin of the teacher.
        levels: N of Karras's grid; n is one of the first N - 1.
        largest: the largest level.
        rho: see :func:`~kdbench.models.schedules.karras_grid`.
        target_decay: mu of the target, the moving average of the student that it learns from; 0: its own copy.
        distance: d.
        guidance: of the teacher.
        average_decay: of the moving average that is scored and exported, another one than the target; None: there is none.
        sampling: see :class:`DenoisingTraining`; by default the student denoises once, at the largest level.
        judge: see :class:`DenoisingTraining`.
        objective: further terms.
        options: see :class:`~kdbench.methods.base.Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        teacher: Origin,
        levels: int = 18,
        largest: float = 80.0,
        rho: float = 7.0,
        target_decay: float = 0.0,
        distance: Distance = "l2",
        guidance: float = 1.0,
        average_decay: float | None = None,
        sampling: dict[str, Sampling] | None = None,
        judge: Origin | None = None,
        objective: dict[str, Term] | None = None,
        **options: Unpack[LearningOptions],
    ) -> None:
        if levels < 2:
            raise ValueError(
                f"a step of the teacher goes from one level to the next: levels is 2 or more, got {levels}"
            )
        if not 0 <= target_decay < 1:
            raise ValueError(f"target_decay is a share below 1, got {target_decay}")
        terms = {"consistency": Term(ConsistencyLoss(distance), student="denoised", teacher="teacher.denoised")}
        super().__init__(student, terms | (objective or {}), {"teacher": teacher}, **options)
        one = Sampling("consistency", levels=[largest])
        self.draw_by({"student": one, **(sampling or {})}, judge, average_decay)
        self.levels, self.largest, self.rho = levels, largest, rho
        self.target_decay, self.guidance = target_decay, guidance

    def complete(self) -> None:
        """Begin the target at the student.

        Raises:
            UserError: the student is no consistency model, or its smallest level is not below the largest.
        """
        super().complete()
        smallest = self.student.config.boundary
        if not smallest or smallest >= self.largest:
            raise UserError(
                f"The student is the identity at its smallest level, above 0 and below {self.largest}, not at {smallest}: give "
                "its origin 'then: [{class_path: AsConsistencyModel, init_args: {smallest: 0.002}}]'."
            )
        self.target = MovingAverage(self.student, self.target_decay)
        grid = karras_grid(self.levels, smallest, self.largest, self.rho)[:-1].float()
        self.register_buffer("grid", grid, persistent=False)

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with noise of one of the levels but the smallest, and the next smaller level."""
        generator = self.noise_of(batch)
        clean = batch["inputs"]["sample"]
        places = torch.randint(len(self.grid) - 1, (len(clean),), generator=generator, device=clean.device)
        sigma = self.grid[places]
        view = {**batch["inputs"], "sample": noisy(clean, sigma, generator), "sigma": sigma}
        return {**batch, "inputs": view, "sigma": sigma, "after": self.grid[places + 1]}

    @torch.no_grad()
    def teach(self, batch: Batch) -> dict[str, Values]:
        """Return what the target says one step of the teacher further down."""
        view, after = batch["inputs"], batch["after"]
        label = view.get("label")
        denoise = Guided(self.network("teacher"), label, self.guidance)
        ahead = heun_step(denoise, view["sample"], batch["sigma"], after)
        target = self.target.network.train(self.student.training)
        with torch.random.fork_rng(
            [self.device] if self.device.type == "cuda" else []
        ):  # the student drops the same units
            return {"teacher": {"denoised": target(ahead, after, label).denoised}}

    def follow(self) -> None:
        """Also let the target follow the student."""
        super().follow()
        self.target.update(self.student)


class PairRegression(Drawing, Distillation):
    """``(D_student(sigma z, sigma) - y)^2`` on pairs of noise z and the sample y that the teacher makes of it.

    A baseline of one-step distillation (Luhman and Luhman 2021, arXiv 2101.02388). There is one pair for each training row,
    made once, before the first step, as ``sampling`` says of the teacher.

    Args:
        student: the origin of the student: the teacher's own.
        teacher: the origin of the teacher.
        sampling: see :class:`DenoisingTraining`; the student's first level is sigma.
        average_decay: see :class:`DenoisingTraining`.
        judge: see :class:`DenoisingTraining`.
        options: see :class:`~kdbench.methods.base.Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        teacher: Origin,
        sampling: dict[str, Sampling],
        average_decay: float | None = None,
        judge: Origin | None = None,
        **options: Unpack[LearningOptions],
    ) -> None:
        terms = {"regression": Term(DenoisingLoss("x0"), student="denoised", teacher="teacher.denoised")}
        super().__init__(student, terms, {"teacher": teacher}, **options)
        self.draw_by(sampling, judge, average_decay)
        self.made: Tensor | None = None
        """The samples of all pairs, while the fit lasts."""

    def complete(self) -> None:
        """Draw the noise of all pairs."""
        super().complete()
        shape = (len(self.data.items["train"]), *self.student.config.shape)
        generator = Generator().manual_seed(self.data.seed)
        self.register_buffer("noise", torch.randn(shape, generator=generator), persistent=False)
        self.level = float(self.sampling["student"].grid()[0])

    def on_train_start(self) -> None:
        """Make the samples of all pairs."""
        label = self.data.table("train").get("label")
        self.made = self.solved(self.noise, None if label is None else label.to(self.device))

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with the noise of its pairs in the place of data."""
        noise = self.noise[batch["id"]]
        sigma = torch.full((len(noise),), self.level, device=noise.device)
        return {**batch, "inputs": {**batch["inputs"], "sample": self.level * noise, "sigma": sigma}, "sigma": sigma}

    def teach(self, batch: Batch) -> dict[str, Values]:
        """Return what the teacher made of the noise."""
        if self.made is not None:
            return {"teacher": {"denoised": self.made[batch["id"]]}}
        return {"teacher": {"denoised": self.solved(self.noise[batch["id"]], batch["inputs"].get("label"))}}

    def solved(self, noise: Tensor, label: Tensor | None) -> Tensor:
        """Return the samples that the teacher makes of noise ``[N, ...]``."""
        return sample(self.segments("teacher"), noise, label, batch_size=self.data.eval_batch_size).samples
