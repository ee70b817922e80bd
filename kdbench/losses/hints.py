"""Hints: a student's inner states against a teacher's, rows ``[N, H]`` (padding already removed).

Mean over rows (``reduction="none"``: each row, ``[N]``); in float32 at least; the teacher without gradient. All raise
ValueError for shapes that differ: states of another width need a projection first, which the modules bring with ``project``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from kdbench.losses.base import RowLoss, at_least_float32, check_same_shape, reduced
from kdbench.losses.divergences import Reduction
from kdbench.losses.projection import Projection
from kdbench.losses.rows import select_rows


def cosine_distance(student: Tensor, teacher: Tensor, reduction: Reduction = "rows") -> Tensor:
    """``1 - cos(h_s, h_t)``, in [0, 2] (Sanh et al. 2019, arXiv 1910.01108)."""
    check_same_shape(student, teacher)
    teacher = at_least_float32(teacher.detach())
    return reduced(1 - cosine_similarity(at_least_float32(student), teacher, dim=-1), reduction)


def mean_squared_error(student: Tensor, teacher: Tensor, half: bool = False, reduction: Reduction = "rows") -> Tensor:
    """Squared difference, mean over the elements of a row; ``half`` gives FitNets' ``1/2 ||v_t - r(v_s)||^2`` so.

    Rows may have any shape ``[N, ...]``. Romero et al. 2015, arXiv 1412.6550 (which sums over elements instead).
    """
    check_same_shape(student, teacher)
    squares = (at_least_float32(student) - at_least_float32(teacher.detach())).square()
    return reduced(squares.unsqueeze(-1).flatten(1).mean(1) * (0.5 if half else 1.0), reduction)


def masked_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """:func:`mean_squared_error` of the positions of ``[B, S, H]`` where the mask ``[B, S]`` is true; 0 for none."""
    return mean_squared_error(select_rows(student, mask), select_rows(teacher, mask))


def normalised_mse(student: Tensor, teacher: Tensor, reduction: Reduction = "rows") -> Tensor:
    """PKD's patient loss ``mean (h_s / |h_s| - h_t / |h_t|)^2`` over rows and elements.

    The paper sums over layers and examples; its code takes the mean over everything, as here, and its large weights
    (10 to 1000) belong to the mean. Sun et al. 2019, arXiv 1908.09355.
    """
    ours, theirs = normalize(at_least_float32(student), dim=-1), normalize(at_least_float32(teacher.detach()), dim=-1)
    return mean_squared_error(ours, theirs, reduction=reduction)


class _Hint(RowLoss):
    """A loss of rows that can bring a student's states to the teacher's width.

    Args:
        project: put a learnt projection in front of the student's states where the widths differ.
    """

    def __init__(self, project: bool = False) -> None:
        super().__init__()
        self.projection = Projection() if project else None

    def fitted(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the student's rows in the teacher's width; raise ValueError for shapes that differ in any other way."""
        if student.shape == teacher.shape:
            self.projection = None  # states of one width need none, and an optimiser or DDP no parameter without a use
            return student
        if student.dim() < 2 or student.shape[:-1] != teacher.shape[:-1]:
            check_same_shape(student, teacher)
        return _projected(self.projection, student, teacher)


class CosineDistance(_Hint):
    """:func:`cosine_distance` of rows; ``project``: through a learnt projection where the widths differ."""

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each row."""
        return cosine_distance(self.fitted(student, target), target, "none")


class MeanSquaredError(_Hint):
    """:func:`mean_squared_error` of rows; ``project``: through a learnt projection where the widths differ."""

    def __init__(self, half: bool = False, project: bool = False) -> None:
        super().__init__(project)
        self.half = half

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the squared difference of each row."""
        return mean_squared_error(self.fitted(student, target), target, self.half, "none")


class NormalisedMSE(_Hint):
    """:func:`normalised_mse` of rows; ``project``: through a learnt projection where the widths differ."""

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the squared difference of the normalised rows."""
        return normalised_mse(self.fitted(student, target), target, "none")


class LayersMSE(nn.Module):
    """``sum over layers of mean (h_s W - h_t)^2`` over real tokens and elements: the hidden states of matched layers.

    TinyBERT has one W for all layers, also where the widths are equal (Jiao et al. 2020, arXiv 1909.10351).

    Args:
        project: map the student's states by a learnt W (:class:`~kdbench.losses.projection.Projection`).
        shared: one W for all layers, or one each.
        mask_padding: false for the mean over all tokens, padding included, as in TinyBERT's public code.
    """

    takes_rows: bool = False
    takes_mask: bool = True
    compares_rows: bool = False

    def __init__(self, project: bool = False, shared: bool = True, mask_padding: bool = True) -> None:
        super().__init__()
        self.shared, self.mask_padding = shared, mask_padding
        self.projections = nn.ModuleList([Projection()]) if project else None

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Return the sum over the layers ``[B, S, H]`` of both.

        Raises:
            ValueError: there are no layers or not as many of the teacher, or shapes that do not fit.
        """
        if not student or len(student) != len(teacher):
            raise ValueError(
                f"the layers of student and teacher are matched one by one, got {len(student)} and {len(teacher)}"
            )
        if self.projections is not None and not self.shared:
            self._grow(len(student))
        return sum(self._layer(at, *states, mask) for at, states in enumerate(zip(student, teacher, strict=True)))

    def _layer(self, at: int, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        if student.shape[:-1] != teacher.shape[:-1]:
            check_same_shape(student, teacher)
        if self.mask_padding:
            student, teacher = select_rows(student, mask), select_rows(teacher, mask)
        else:
            student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
        if self.projections is not None:
            student = self.projections[0 if self.shared else at](student, teacher.shape[-1])
        elif student.shape != teacher.shape:
            student = _projected(None, student, teacher)
        return mean_squared_error(student, teacher)

    def _grow(self, layers: int) -> None:
        self.projections.extend(Projection() for _ in range(layers - len(self.projections)))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        weights = [key for key in state_dict if key.startswith(f"{prefix}projections.") and key.endswith(".weight")]
        if self.projections is not None and not self.shared:
            self._grow(len(weights))  # before torch loads the children
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _projected(projection: Projection | None, student: Tensor, teacher: Tensor) -> Tensor:
    """Return the student's states in the teacher's width; raise ValueError where there is no projection."""
    if projection is None:
        raise ValueError(
            f"student and teacher must have the same shape, got {tuple(student.shape)} and {tuple(teacher.shape)}: "
            "for states of different widths give the loss 'project: true'"
        )
    return projection(student, teacher.shape[-1])
