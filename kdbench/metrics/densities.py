"""How near made samples are to real ones, as distributions, and how different from one another; all in float64.

Rows are ``[N, ...]`` and are flattened. What two sets of real rows say of each other is the floor: smaller values, and
smaller differences between values, mean nothing.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize, pdist
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Distance = Literal["cosine", "euclidean"]
_ROWS_AT_A_TIME = 1024


# ---- two sets of rows ----


def sliced_wasserstein(made: Tensor, real: Tensor, directions: int = 64, seed: int = 0) -> Tensor:
    """Return the mean over fixed random directions of the Wasserstein-1 distance of the projections, in units of the data.

    In one dimension it is ``int |F(t) - G(t)| dt``, for sets of one size the mean absolute difference of the sorted values
    (Bonneel et al. 2015, JMIV 51). The directions are uniform on the sphere and depend on the seed and the dimension alone.
    """
    first, second = _flat(made), _flat(real)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(directions, first.shape[1], generator=generator, dtype=torch.float64)
    unit = normalize(drawn, dim=-1).to(first.device)
    values, order = torch.cat([first @ unit.T, second @ unit.T]).sort(0)
    up, down = values.new_tensor([1 / len(first), -1 / len(second)])
    steps = torch.where(order < len(first), up, down)  # of F - G at each value
    return (steps.cumsum(0)[:-1].abs() * values.diff(dim=0)).sum(0).mean()


def maximum_mean_discrepancy(made: Tensor, real: Tensor, bandwidth: float | None = None) -> Tensor:
    """Return the squared MMD, ``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)`` over pairs of different rows.

    ``k(x, y) = exp(-|x - y|^2 / (2 h^2))`` over all pairs, none drawn; unbiased, so it may be a little below 0 (Gretton et al.
    2012, JMLR 13, eq. 3).

    Args:
        made: rows.
        real: rows.
        bandwidth: h; by default the median distance of the real rows, which is then the same for whatever they are compared
            with.
    """
    first, second = _flat(made), _flat(real)
    width = pdist(second).median() if bandwidth is None else bandwidth
    within = [(_kernel_sum(rows, rows, width) - len(rows)) / (len(rows) * (len(rows) - 1)) for rows in (first, second)]
    return sum(within) - 2 * _kernel_sum(first, second, width) / (len(first) * len(second))


def frechet_distance(means: Sequence[Tensor], covariances: Sequence[Tensor]) -> Tensor:
    """Return ``|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))`` of two Gaussians (Heusel et al. 2017, arXiv 1706.08500).

    The root's trace is taken of ``C_1^(1/2) C_2 C_1^(1/2)``, which is symmetric and has the same eigenvalues.
    """
    first, second = (each.double() for each in covariances)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return (means[0] - means[1]).double().square().sum() + first.trace() + second.trace() - 2 * mixed


# ---- one set of rows ----


def mean_pairwise_distance(features: Tensor, distance: Distance = "cosine") -> Tensor:
    """Return the mean over unordered pairs of rows of ``1 - cos(f_i, f_j)``, or of ``|f_i - f_j|``; NaN under two rows."""
    rows = _flat(features)
    if distance == "euclidean":
        return pdist(rows).mean()
    alike = normalize(rows, dim=-1).sum(0).square().sum() - len(rows)  # the sum of cos over ordered pairs
    return 1 - alike / (len(rows) * (len(rows) - 1))


def vendi_score(features: Tensor) -> Tensor:
    """Return ``exp(-sum l log l)`` over the eigenvalues l of ``F F^T / N``, F with rows of length 1: how many rows differ.

    From 1, all rows alike, to N, all orthogonal (Friedman and Dieng 2023, arXiv 2210.02410).
    """
    unit = normalize(_flat(features), dim=-1)
    few = unit if unit.shape[0] <= unit.shape[1] else unit.T  # both products have the same eigenvalues
    shares = torch.linalg.eigvalsh(few @ few.T / len(unit)).clamp(min=0)
    return torch.special.entr(shares).sum().exp()


# ---- metrics ----


class _GatheredRows(Metric):
    """A metric of all rows of several kinds, each kept as one vector of numbers.

    A process without rows gathers an empty vector of the type of the others, and learns the width of a row from them.
    """

    full_state_update = False
    is_differentiable = False
    kinds: tuple[str, ...]
    width: Tensor

    def __init__(self) -> None:
        super().__init__()
        for kind in self.kinds:
            self.add_state(kind, [], dist_reduce_fx="cat")
        self.add_state("width", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    @property
    def dtype(self) -> torch.dtype:
        """float64, also of an empty state."""
        return torch.float64

    def keep(self, kind: str, rows: Tensor) -> None:
        """Keep rows ``[N, ...]``; raise ValueError where they are of another width than those before."""
        flat = _flat(rows.detach())
        if self.width not in (0, flat.shape[1]):
            raise ValueError(f"rows have {int(self.width)} numbers so far, got {flat.shape[1]}")
        self.width = torch.full_like(self.width, flat.shape[1])
        getattr(self, kind).append(flat.flatten())

    def rows(self, kind: str) -> Tensor:
        """Return all rows of a kind ``[N, D]``; raise ValueError when there are none."""
        kept = getattr(self, kind)
        if len(kept) == 0 or (whole := dim_zero_cat(kept)).numel() == 0:
            raise ValueError(f"there are no {kind} rows to compare")
        return whole.reshape(-1, int(self.width))


class _TwoSets(_GatheredRows):
    """A metric of all made and all real rows."""

    higher_is_better = False
    kinds = ("made", "real")

    def update(self, made: Tensor, real: Tensor) -> None:
        """Add made and real rows, as many as there are of each."""
        self.keep("made", made)
        self.keep("real", real)


class SlicedWasserstein(_TwoSets):
    """:func:`sliced_wasserstein` of made and real rows."""

    def __init__(self, directions: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.directions, self.seed = directions, seed

    def compute(self) -> Tensor:
        """Return the distance."""
        return sliced_wasserstein(self.rows("made"), self.rows("real"), self.directions, self.seed)


class MaximumMeanDiscrepancy(_TwoSets):
    """:func:`maximum_mean_discrepancy` of made and real rows."""

    def __init__(self, bandwidth: float | None = None) -> None:
        super().__init__()
        self.bandwidth = bandwidth

    def compute(self) -> Tensor:
        """Return the squared discrepancy."""
        return maximum_mean_discrepancy(self.rows("made"), self.rows("real"), self.bandwidth)


class FrechetDistance(Metric):
    """:func:`frechet_distance` of the Gaussians with the means and covariances of made and of real features.

    Values compare within one feature network and one number of rows alone.

    Args:
        features: how many a row has.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    counts: Tensor
    sums: Tensor
    products: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.add_state("counts", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(2, features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(2, features, features, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, made: Tensor, real: Tensor) -> None:
        """Add the features of made and of real rows; raise ValueError where there are not as many."""
        rows = [_flat(each.detach()) for each in (made, real)]
        if any(each.shape[1] != self.features for each in rows):
            raise ValueError(f"rows have {self.features} features, got {[each.shape[1] for each in rows]}")
        self.counts = self.counts + torch.tensor([len(each) for each in rows], device=self.counts.device)
        # Not in place: a module cast to another type casts the states too, and the sums must stay float64.
        self.sums = self.sums + torch.stack([each.sum(0) for each in rows])
        self.products = self.products + torch.stack([each.T @ each for each in rows])

    def compute(self) -> Tensor:
        """Return the distance, in squared units of the features; NaN under two rows of either kind."""
        if (self.counts < 2).any():
            return torch.full((), math.nan, dtype=torch.float64)
        count = self.counts[:, None].double()
        means = self.sums / count
        outer = means[:, :, None] * means[:, None]
        covariances = (self.products - count[..., None] * outer) / (count[..., None] - 1)
        return frechet_distance(means, covariances)


class ModeCoverage(Metric):
    """How many modes of a mixture the samples reach, and how many samples lie at one.

    A sample is at its nearest mode if it is within so many standard deviations of the mean. A mode is covered when it has at
    least a share of the samples that its weight promises.

    Args:
        means: of the modes, ``[K][D]``.
        std: of the modes.
        weights: of the modes, summing to 1; equal by default.
        share: of the promised samples.
        within: standard deviations.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    means: Tensor
    promised: Tensor
    counts: Tensor
    total: Tensor

    def __init__(
        self,
        means: Sequence[Sequence[float]],
        std: float,
        weights: Sequence[float] | None = None,
        share: float = 0.25,
        within: float = 4.0,
    ) -> None:
        super().__init__()
        weights = [1 / len(means)] * len(means) if weights is None else weights
        self.register_buffer("means", torch.tensor(means, dtype=torch.float64), persistent=False)
        self.register_buffer("promised", share * torch.tensor(weights, dtype=torch.float64), persistent=False)
        self.radius = within * std
        self.add_state("counts", torch.zeros(len(means), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, made: Tensor) -> None:
        """Count samples ``[N, D]``."""
        distances, nearest = torch.cdist(_flat(made.detach()), self.means.double()).min(1)
        self.counts += torch.bincount(nearest[distances <= self.radius], minlength=len(self.means))
        self.total += len(made)

    def compute(self) -> dict[str, Tensor]:
        """Return ``modes``, the number that is covered, and ``within``, the share of samples at a mode; NaN without samples."""
        shares = self.counts.double() / self.total
        return {"modes": (shares >= self.promised).sum(), "within": shares.sum()}


class SampleDiversity(_GatheredRows):
    """How different the samples of one class, or of one prompt, are from one another: the mean over classes.

    Args:
        distance: of :func:`mean_pairwise_distance`.
    """

    higher_is_better = True
    kinds = ("features", "classes")

    def __init__(self, distance: Distance = "cosine") -> None:
        super().__init__()
        if distance not in get_args(Distance):
            raise ValueError(f"distance is {' or '.join(map(repr, get_args(Distance)))}, got {distance!r}")
        self.distance = distance

    def update(self, features: Tensor, classes: Tensor | None = None) -> None:
        """Add features ``[N, ...]`` of samples and their classes ``[N]``; without classes all are of one."""
        self.keep("features", features)
        classes = torch.zeros(len(features), device=features.device) if classes is None else classes
        self.classes.append(classes.detach().double())

    def compute(self) -> dict[str, Tensor]:
        """Return ``pairwise`` and ``vendi`` (:func:`vendi_score`), over the classes with two samples or more."""
        rows, classes = self.rows("features"), dim_zero_cat(self.classes)
        groups = [rows[classes == each] for each in classes.unique()]
        several = [group for group in groups if len(group) > 1]
        if not several:
            raise ValueError("diversity needs a class with two samples or more")
        return {
            "pairwise": torch.stack([mean_pairwise_distance(group, self.distance) for group in several]).mean(),
            "vendi": torch.stack([vendi_score(group) for group in several]).mean(),
        }


def _flat(rows: Tensor) -> Tensor:
    return rows.double().flatten(1) if rows.dim() > 1 else rows.double()[:, None]


def _kernel_sum(first: Tensor, second: Tensor, width: Tensor | float) -> Tensor:
    """Return the sum of the kernel over all pairs."""
    parts = first.split(_ROWS_AT_A_TIME)
    return sum(torch.exp(-torch.cdist(part, second).square() / (2 * width**2)).sum() for part in parts)
