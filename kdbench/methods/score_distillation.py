"""Score distillation: a generator of few steps follows the difference of two scores, the teacher's and that of what it makes."""

import copy
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from kdbench.data.noise import uniform
from kdbench.errors import UserError
from kdbench.losses.denoising import Scaling, denoising_loss, distribution_matching_loss
from kdbench.methods.alternating import Alternating, Update
from kdbench.methods.base import Optimizer
from kdbench.methods.diffusion import DenoisingTraining
from kdbench.methods.drawing import Drawing, Sampling, noisy
from kdbench.methods.noise_levels import KarrasLevels, LogNormalLevels, NoiseLevels
from kdbench.methods.objective import Batch
from kdbench.methods.optimizers import Constant, Schedule
from kdbench.models.denoiser import Guided
from kdbench.models.origins import FromRun, Origin
from kdbench.models.samplers import consistency, seeded
from kdbench.models.weight_path import WeightPath

PATH = "path"
"""The folder of a run that holds the path of a degraded teacher."""


class ScoreDistillation(Drawing, Alternating):
    """A generator that learns ``w (D_fake(y, sigma) - D_real(y, sigma))`` of its own samples with new noise, y.

    The *generator* is the student, a denoiser called at one noise level or at a few; the *real* score is the teacher's, and the
    *fake* one is a denoiser that learns what the generator makes, one update or more for each of the generator's.

    - Diff-Instruct (Luo et al. 2023, arXiv 2305.18455): ``scaling: diff_instruct``, the fake first, on samples of its own.
    - DMD2 (Yin et al. 2024, arXiv 2405.14867) without its discriminator: ``scaling: dmd``, the generator first, every
      ``fake_updates``-th step, and the fake on the same samples.
    - DisBack (Zhang et al. 2024, arXiv 2408.15991): either of them with ``path``, the way on which a :class:`DegradationRecording`
      brought the teacher to the generator's samples, ``s_0 = teacher, ..., s_N``. It is gone backwards: the fake begins at s_N,
      the real score is ``s_(N - k)`` with ``k = min(1 + i // interval, N)`` at the generator's update i, in the end the teacher.

    Args:
        student: the origin of the generator: the teacher's own.
        teacher: the origin of the teacher.
        sigmas: the generator's noise levels, descending. One makes a one-step generator ``G(z) = D_G(sigma z, sigma)``; of several
            each step is drawn alike, and its input is what the generator itself makes of noise in the steps before.
        scaling: of the gradient, ``diff_instruct`` or ``dmd``; see :func:`~kdbench.losses.denoising.distribution_matching`.
        order: ``fake_first``, or ``generator_first``, where the fake learns from the samples that the generator has just made.
        fake_updates: of the fake score for each of the generator.
        levels: of the noise that is scored; by default log-normal for ``diff_instruct``, the indices 20 to 980 of Karras's
            1,000 levels for ``dmd``.
        fake_levels: of the noise that the fake score learns; by default the same, for ``dmd`` all 1,000 levels.
        guidance: of the real score alone.
        fake: the origin of the fake score at the start; by default the end of the path, without a path the teacher.
        path: what a :class:`DegradationRecording` left: ``FromRun {experiment: .., file: path}``.
        interval: updates of the generator for each place of the path.
        average_decay: of the generator's moving average, which is what is scored and exported; None: there is none.
        sampling: how networks draw; by default the student denoises at its own levels, with fresh noise between them.
        judge: see :class:`~kdbench.methods.diffusion.DenoisingTraining`.
        references: see :class:`~kdbench.methods.base.Distillation`.
        optimizer: of the generator; by default Adam with betas 0 and 0.99 and a learning rate of 1e-4.
        fake_optimizer: of the fake score; by default the same.
        schedule: of both learning rates; by default they are constant.
        weight_decay: of weights; biases and norms have none.
        clip: the largest norm of each update's gradient; None: any.
    """

    def __init__(
        self,
        student: Origin,
        teacher: Origin,
        sigmas: list[float],
        scaling: Scaling = "diff_instruct",
        order: Literal["fake_first", "generator_first"] = "fake_first",
        fake_updates: int = 1,
        levels: NoiseLevels | None = None,
        fake_levels: NoiseLevels | None = None,
        guidance: float = 1.0,
        fake: Origin | None = None,
        path: FromRun | None = None,
        interval: int = 100,
        average_decay: float | None = None,
        sampling: dict[str, Sampling] | None = None,
        judge: Origin | None = None,
        references: dict[str, Origin | str] | None = None,
        optimizer: Optimizer | None = None,
        fake_optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        weight_decay: float = 0.0,
        clip: float | None = None,
    ) -> None:
        super().__init__(student, {"teacher": teacher}, references)
        own = Sampling(sampler="consistency", levels=sigmas)
        self.draw_by({"student": own, **(sampling or {})}, judge, average_decay)
        if interval < 1:
            raise ValueError(f"the target changes after 1 update or more, got interval {interval}")
        self.sigmas, self.scaling, self.guidance = sigmas, scaling, guidance
        self.fake_origin, self.path, self.interval = fake, path, interval
        dmd = scaling == "dmd"
        self.levels = levels or (KarrasLevels(first=20, last=980) if dmd else LogNormalLevels())
        self.fake_levels = fake_levels or (KarrasLevels() if dmd else self.levels)
        optimizer = optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=1e-4, betas=(0.0, 0.99)))
        schedule = schedule or Constant()
        updates = {
            "fake": Update(["fake"], fake_optimizer or optimizer, schedule, 1, weight_decay, clip),
            "generator": Update(["student"], optimizer, schedule, fake_updates, weight_decay, clip),
        }
        self.updates = updates if order == "fake_first" else dict(reversed(updates.items()))
        self.shares = order == "generator_first"
        self._made: Tensor | None = None
        self._place: int | None = None

    def complete(self) -> None:
        """Build the fake score, at the end of the path, or else at the teacher."""
        super().complete()
        if self.path is not None:
            self._path = WeightPath(self.path.path())
            self._last = len(self._path) - 1
            if self._last < 0:
                raise UserError(f"'{self._path.folder}' holds no path: name what a DegradationRecording left.")
        if self.fake_origin is not None:
            self.fake_origin.check()
            self.fake = self.fake_origin.build()
        else:
            self.fake = copy.deepcopy(self.network("teacher")).requires_grad_(True).train()
            if self.path is not None:
                self._path.load(self._last, self.fake)

    # ---- the updates ----

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch; what was made for the one before is forgotten."""
        self._made = None
        return batch

    def terms(self, update: str, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the fake score, or that of the generator, on samples with noise of levels that are drawn."""
        fake = update == "fake"
        generator, label = self.noise_of(batch, int(fake)), batch["inputs"].get("label")
        if fake and self._made is not None:
            made = self._made
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not fake):
                made = generated(self.student, self.sigmas, batch, generator)
            self._made = made.detach() if self.shares else None
        sigma = (self.fake_levels if fake else self.levels).draw(len(made), generator)
        noised = noisy(made.detach(), sigma, generator)
        return {update: (self.fake_loss if fake else self.generator_loss)(made, noised, sigma, label)}

    def after_update(self, update: str) -> None:
        """Let the moving average follow the generator."""
        if update == "generator":
            self.follow()

    def fake_loss(self, made: Tensor, noised: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """Return ``lambda(sigma) (D_fake(y, sigma) - x)^2``, x what was made and y the same with noise."""
        denoised = self.fake.train()(noised, sigma, label).denoised
        elements = "sum" if self.scaling == "diff_instruct" else "mean"
        return denoising_loss(denoised, made, sigma, "edm", self.fake.config.sigma_data, elements)

    def generator_loss(self, made: Tensor, noised: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """Return the loss whose gradient on x leads towards the real score and away from the fake one."""
        with torch.no_grad():
            fake = self.fake.eval()(noised, sigma, label).denoised
            real = Guided(self.target(), label, self.guidance)(noised, sigma)
        return distribution_matching_loss(made, fake, real, self.scaling)

    # ---- the target ----

    def target(self) -> nn.Module:
        """Return the denoiser that is the real score now."""
        teacher = self.network("teacher")
        if self.path is None:
            return teacher
        updates = self.global_step // self.updates["generator"].every
        place = self._last - target_place(updates, self._last, self.interval)
        if place != self._place:
            target = self._frozen.setdefault("target", copy.deepcopy(teacher))
            self._path.load(place, target)
            self._place = place
        return self._frozen["target"]


class DegradationRecording(DenoisingTraining):
    """The teacher, brought by the denoising loss to what a generator makes that does not learn yet: DisBack's first stage.

    ``s_0 = teacher, s_1, ..., s_N``, the raw weights every ``every`` steps, are left in the folder ``path`` of the run. Zhang et
    al. 2024, arXiv 2408.15991.

    Args:
        student: the origin of the score network: the teacher.
        generator: the origin of the generator, which stays as it is: the teacher too.
        sigmas: the generator's noise levels, as those of :class:`ScoreDistillation`.
        every: steps between two places of the path; the fit has a multiple of them.
        levels: of the noise that the score learns; by default log-normal.
        sampling: see :class:`~kdbench.methods.diffusion.DenoisingTraining`; the generator draws at its own levels.
        references: see :class:`~kdbench.methods.base.Distillation`.
        optimizer: see :class:`~kdbench.methods.base.Distillation`.
        schedule: see :class:`~kdbench.methods.base.Distillation`; by default constant.
        weight_decay: see :class:`~kdbench.methods.base.Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        generator: Origin,
        sigmas: list[float],
        every: int = 50,
        levels: NoiseLevels | None = None,
        sampling: dict[str, Sampling] | None = None,
        references: dict[str, Origin | str] | None = None,
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        if every < 1:
            raise ValueError(f"every is a step or more, got {every}")
        super().__init__(
            student,
            levels,
            average_decay=None,
            sampling={"generator": Sampling(sampler="consistency", levels=sigmas), **(sampling or {})},
            references={"generator": generator, **(references or {})},
            optimizer=optimizer,
            schedule=schedule or Constant(),
            weight_decay=weight_decay,
        )
        self.sigmas, self.every = sigmas, every

    @torch.no_grad()
    def clean(self, batch: Batch, generator: Generator) -> Tensor:
        """Return x0: what the generator makes."""
        return generated(self.network("generator"), self.sigmas, batch, generator)

    def on_train_start(self) -> None:
        """Keep the teacher.

        Raises:
            UserError: the path would not end with the last step.
        """
        if self.trainer.max_steps % self.every:
            raise UserError(
                f"The path has a place every {self.every} steps and one at the last: trainer.max_steps is a multiple of "
                f"{self.every}, not {self.trainer.max_steps}."
            )
        if self.global_step == 0:
            self._keep(0)

    def follow(self) -> None:
        """Also keep the weights where the path has a place: before a checkpoint goes on from there."""
        super().follow()
        place, rest = divmod(self.global_step + 1, self.every)
        if not rest:
            self._keep(place)

    def _keep(self, place: int) -> None:
        if self.trainer.is_global_zero:
            WeightPath(Path(self.trainer.default_root_dir) / PATH).save(place, self.student)


def generated(network: nn.Module, sigmas: list[float], batch: Batch, generator: Generator) -> Tensor:
    """Return samples of a generator for the rows of a batch, from one of its levels: the last step keeps its graph.

    The level is drawn for the whole batch. What is denoised there is noise for the first one, and for the others what the
    generator makes in the steps before, without a graph and noised anew: DMD2's backward simulation (arXiv 2405.14867).
    """
    view = batch["inputs"]
    label, noise = view.get("label"), seeded(generator)
    step = int(uniform(generator.initial_seed()) * len(sigmas)) if len(sigmas) > 1 else 0
    x = consistency(Guided(network, label), sigmas[0] * noise(view["sample"]), sigmas[: step + 1], noise)
    return network(x, sigmas[step], label).denoised


def target_place(update: int, last: int, interval: int) -> int:
    """Return the index of the target at a generator's update, from 0: ``min(1 + update // interval, last)``.

    On the path gone backwards 0 is where the fake score starts, never a target but of a path of one place, and ``last`` is the
    teacher (Zhang et al. 2024, arXiv 2408.15991, algorithm 2).
    """
    return min(1 + update // interval, last)
