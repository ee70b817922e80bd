"""Hybrid sampling: a base model draws the layout of a sample and its distilled student the rest; nothing is trained."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from kdbench.methods.base import Distillation
from kdbench.methods.drawing import Drawing, Sampling
from kdbench.methods.objective import Batch, Objective
from kdbench.methods.routes import Route
from kdbench.metrics.densities import SampleDiversity
from kdbench.metrics.pictures import Images, Picture
from kdbench.models.origins import Origin
from kdbench.models.samplers import SAMPLERS, Noise, Sampled, Segment, Step, sample


class Thoughts(nn.Module):
    """What a model takes its samples for on the way: ``D(x, sigma)`` of every step, in features.

    Args:
        levels: of the steps.
    """

    def __init__(self, levels: list[float]) -> None:
        super().__init__()
        self.levels = levels
        self.distances = nn.ModuleList(MeanMetric() for _ in levels)
        self.diversities = nn.ModuleList(SampleDiversity("euclidean") for _ in levels)
        self.shown: Tensor | None = None
        """Thoughts of a few samples, and in the end these ``[rows, steps + 1, ...]``."""

    def update(self, steps: Sequence[Tensor], samples: Tensor, label: Tensor | None) -> None:
        """Add the features of every step and of the samples, ``[B, D]`` each, and the classes of the samples ``[B]``."""
        for features, distance, diversity in zip(steps, self.distances, self.diversities, strict=True):
            distance.update((features - samples).flatten(1).norm(dim=1))
            diversity.update(features, label)

    def reset(self) -> None:
        """Forget everything."""
        for metric in (*self.distances, *self.diversities):
            metric.reset()
        self.shown = None

    def compute(self) -> dict[str, list[float]]:
        """Return ``thought_distance`` from the sample and ``thought_diversity`` inside a class, a number for each step."""
        return {
            "thought_distance": [float(metric.compute()) for metric in self.distances],
            "thought_diversity": [float(metric.compute()["pairwise"]) for metric in self.diversities],
        }


class HybridSampling(Drawing, Distillation):
    """Samples that a base model and its distilled student draw together; there is nothing to fit.

    What is scored as ``student`` are the samples of the route; as ``base``, those of the base alone, drawn as ``sampling`` says.

    With ``thoughts`` the test also looks at what the model takes each sample for on the way, ``D(x, sigma)`` at every step: how
    far that is from the sample in the end and how diverse inside a class (Euclidean, in the judge's features where there is a
    judge), and one of each class as an image (Gandikota and Bau 2025, arXiv 2503.10637, DT-Visualization).

    Args:
        student: the origin of the distilled network.
        base: the origin of the network that it was distilled from.
        route: which of them goes which part of the way.
        thoughts: see above.
        sampling: how ``base`` draws alone, and how many samples a row ``student`` draws.
        judge: see :class:`~kdbench.methods.drawing.Drawing`.
    """

    def __init__(
        self,
        student: Origin,
        base: Origin,
        route: Route,
        thoughts: bool = False,
        sampling: dict[str, Sampling] | None = None,
        judge: Origin | None = None,
    ) -> None:
        super().__init__(student, None, {"base": base})
        self.objective, self.route, self.legs = Objective({}), route, route.legs()
        for leg in self.legs:
            if leg.network not in self.origins:
                raise ValueError(f"a stretch is gone by 'base' or by 'student', not by '{leg.network}'")
        self.draw_by(sampling, judge)
        self.listens = thoughts

    # ---- drawing ----

    def segments(self, name: str) -> list[Segment]:
        """Return the parts of the route for ``student``; the base alone goes all the way."""
        if name != "student":
            return super().segments(name)
        return [Segment(self.network(leg.network), leg.grid, leg.guidance, SAMPLERS[leg.sampler]) for leg in self.legs]

    def draw(self, name: str, start: Tensor, label: Tensor | None, noise: Noise) -> Sampled:
        """Return samples; count what each of the two networks costs on the route, and listen to the thoughts."""
        steps: list[Step] = []
        watch = steps.append if self.listens else None
        drawn = sample(self.segments(name), start, label, noise, watch, self.route.form)
        if name == "student":
            for leg, evaluations, seconds in zip(self.legs, drawn.evaluations, drawn.seconds, strict=True):
                self.shares[f"nfe_of_{leg.network}"] += evaluations * len(start)
                self.shares[f"seconds_of_{leg.network}"] += seconds
            self.drawn += len(start)
        if steps and self.trainer.testing:
            self._listen(name, [step.denoised for step in steps], drawn.samples, label)
        return drawn

    def _listen(self, name: str, steps: list[Tensor], samples: Tensor, label: Tensor | None) -> None:
        features = [self.judged(each)["features"] if self.judge else each for each in (*steps, samples)]
        thoughts = self.thoughts[name]
        thoughts.update(features[:-1], features[-1], label)
        if thoughts.shown is None and samples.dim() == 4:
            places = [0] if label is None else [int((label == each).int().argmax()) for each in label.unique()]
            thoughts.shown = torch.stack([each[places].mean(1) for each in (*steps, samples)], 1)

    # ---- the test ----

    def prepare_scores(self, compared: list[str]) -> None:
        """Also make the metrics of the thoughts."""
        super().prepare_scores(compared)
        self.thoughts = nn.ModuleDict()
        for name in compared if self.listens else ():
            grids = [torch.as_tensor(segment.grid)[:-1] for segment in self.segments(name)]
            self.thoughts[name] = Thoughts(torch.cat(grids).tolist())

    def rehearse(self, batch: Batch) -> None:
        """Draw for two rows."""
        self.begin()
        self.answer("student", batch)

    def on_test_epoch_start(self) -> None:
        """Also begin to count what each network costs on the route, and to listen."""
        super().on_test_epoch_start()
        self.begin()

    def begin(self) -> None:
        """Forget what was counted and heard."""
        for thoughts in self.thoughts.values():
            thoughts.reset()
        names = dict.fromkeys(leg.network for leg in self.legs)
        self.shares = {f"{what}_of_{name}": 0.0 for what in ("nfe", "seconds") for name in names}
        self.drawn = 0

    def on_test_epoch_end(self) -> None:
        """Also log the costs of each network on the route for a sample, and the thoughts."""
        super().on_test_epoch_end()
        self.log_dict({f"test/{name}@student": total / self.drawn for name, total in self.shares.items()})
        for name, thoughts in self.thoughts.items():
            found, steps = thoughts.compute(), list(range(1, len(thoughts.levels) + 1))
            for key, values in found.items():
                self.log_dict({f"test/{key}_{step}@{name}": value for step, value in zip(steps, values, strict=True)})
            lines = {key.removeprefix("thought_"): values for key, values in found.items()}
            self.pictures[f"thoughts_{name}"] = Picture("Thoughts on the way", "step", "Euclidean", steps, lines)
            if thoughts.shown is not None:
                self.pictures[f"images_{name}"] = self._images(thoughts)

    def _images(self, thoughts: Thoughts) -> Images:
        shown = thoughts.shown
        columns = [*(f"{level:.2g}" for level in thoughts.levels), "sample"]
        rows = (self.data.labels or [""])[: len(shown)]
        title = "What the model takes samples for"
        return Images(
            title, "level of noise", "class", columns, rows, shown.shape[2:], Images.encoded(shown.cpu().numpy())
        )
