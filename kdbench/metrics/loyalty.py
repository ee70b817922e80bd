"""Loyalty: how closely a student's predictions follow its teacher's. No gold label enters.

Xu et al. 2021 (arXiv 2109.03228) for labels and probabilities, Avram et al. 2022 (arXiv 2112.12650) for regression.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from kdbench.metrics.scores import PairedValues, pearson, spearman

LogBase = Literal["e", "2"]


def label_loyalty(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1 per row where student and teacher predict the same class, else 0; the metric is the mean over rows.

    LL = mean_i [argmax_c student_ic == argmax_c teacher_ic]

    Logits [N, C] (rows: examples or words) -> float64 [N]. Ties go to the lowest class in both. A row with NaN, which
    predicts nothing, is NaN. Raises ValueError on other shapes. Xu et al. 2021, arXiv 2109.03228.
    """
    _check_rows(student_logits, teacher_logits)
    agrees = (student_logits.argmax(-1) == teacher_logits.argmax(-1)).double()
    return agrees.masked_fill((student_logits.isnan() | teacher_logits.isnan()).any(-1), math.nan)


def probability_loyalty(student_logits: Tensor, teacher_logits: Tensor, log_base: LogBase = "e") -> Tensor:
    """1 minus the Jensen-Shannon distance of the class distributions, per row; the metric is the mean over rows.

    PL = mean_i (1 - sqrt(JS(p_i, q_i))),  JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2,  m = (p + q) / 2

    Logits [N, C] (rows: examples or words), softmax at temperature 1 in float64 -> float64 [N], between 1 - sqrt(ln 2)
    = 0.1674 (base e) or 0 (base 2) and 1. Raises ValueError on other shapes or bases. Xu et al. 2021, arXiv 2109.03228,
    whose code takes scipy's `jensenshannon`: natural logarithm, the root already taken.
    """
    _check_rows(student_logits, teacher_logits)
    student, teacher = student_logits.double().softmax(-1), teacher_logits.double().softmax(-1)
    total = student + teacher
    # With d = (p - q) / (p + q): JS = sum m [(1 + d) ln(1 + d) + (1 - d) ln(1 - d)] / 2. Equal rows give exactly 0, and
    # near-equal ones keep their digits, which the root would otherwise lose. Where p = q = 0, 0 ln 0 = 0.
    skew = torch.where(total == 0, 0.0, (student - teacher) / total)
    terms = torch.special.xlog1py(1 + skew, skew) + torch.special.xlog1py(1 - skew, -skew)
    divergence = (total * terms).sum(-1) / 4 / _log_of(log_base)
    return 1 - divergence.clamp_min(0).sqrt()


def _log_of(log_base: LogBase) -> float:
    """ln(base)."""
    if log_base not in ("e", "2"):
        raise ValueError(f'log_base must be "e" or "2", not {log_base!r}.')
    return 1.0 if log_base == "e" else math.log(2)


def _check_rows(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both are [N, C]."""
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(f"Expected two logits [N, C], not {[*student.shape]} and {[*teacher.shape]}.")


class _MeanLoyalty(Metric):
    """The mean over all rows of a loyalty per row; rows are selected by the mask before anything is computed."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def rows(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Loyalty of each row: logits [N, C] -> [N]."""
        raise NotImplementedError

    def update(self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None) -> None:
        """Add rows: both logits [N, C]; or [B, S, C] with a mask [B, S] of the words that count, one piece a word.

        Raises ValueError on other shapes.
        """
        if mask is not None:
            if not student_logits.shape[:-1] == teacher_logits.shape[:-1] == mask.shape:
                shapes = f"{[*student_logits.shape]}, {[*teacher_logits.shape]} and {[*mask.shape]}"
                raise ValueError(f"Expected two logits [B, S, C] and a mask [B, S], not {shapes}.")
            student_logits, teacher_logits = student_logits[mask.bool()], teacher_logits[mask.bool()]
        values = self.rows(student_logits, teacher_logits)
        # Not in place: a module cast to bfloat16 casts this state too, and the sum must stay float64.
        self.total = self.total + values.sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        """Mean over all rows (not over sentences or batches), float64; NaN when there were none."""
        return self.total / self.count


class LabelLoyalty(_MeanLoyalty):
    """Share of rows on which student and teacher predict the same class, 0 to 1; see `label_loyalty`."""

    def rows(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """1 where both predict the same class: logits [N, C] -> [N]."""
        return label_loyalty(student_logits, teacher_logits)


class ProbabilityLoyalty(_MeanLoyalty):
    """Mean over rows of 1 - Jensen-Shannon distance; see `probability_loyalty`. The value depends on `log_base`."""

    def __init__(self, log_base: LogBase = "e") -> None:
        super().__init__()
        _log_of(log_base)
        self.log_base: LogBase = log_base

    def rows(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """1 - Jensen-Shannon distance: logits [N, C] -> [N]."""
        return probability_loyalty(student_logits, teacher_logits, self.log_base)


class RegressionLoyalty(PairedValues):
    """Agreement of two models' real-valued predictions: Pearson, Spearman and 1 - mean |y_s - y_t| / range.

    `range`: width of the scale of the targets, in their units (5 for similarity scores from 0 to 5). Raises ValueError
    unless it is positive. Pearson is the reading of Avram et al. 2022 (arXiv 2112.12650) that kdbench takes as *the*
    regression loyalty; the others are there to compare under another reading.
    """

    higher_is_better = True

    def __init__(self, range: float) -> None:
        super().__init__()
        if not (math.isfinite(range) and range > 0):
            raise ValueError(f"The range of the targets must be a positive number, not {range}.")
        self.range = range

    def update(self, student: Tensor, teacher: Tensor) -> None:
        """Add the predictions of both, [N] and [N]; raises ValueError on other shapes."""
        self.append(student, teacher)

    def compute(self) -> dict[str, Tensor]:
        """`pearson`, `spearman` (NaN with a warning for constant values or under 2 examples) and `one_minus_mae`."""
        student, teacher = self.pair()
        return {
            "pearson": pearson(student, teacher),
            "spearman": spearman(student, teacher),
            "one_minus_mae": 1 - (student - teacher).abs().mean() / self.range,
        }
