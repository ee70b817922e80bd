"""The enhanced target of OFA-KD: soft targets whose labelled class weighs more (Hao et al. 2023, arXiv 2310.19444)."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from kdbench.losses.base import (
    RowLoss,
    at_least_float32,
    check_choice,
    check_same_shape,
    check_temperature,
    reduced,
)
from kdbench.losses.divergences import Reduction
from kdbench.losses.language import IGNORED, check_classes

Form = Literal["code", "paper"]


def enhanced_target(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    exponent: float = 1.0,
    temperature: float = 1.0,
    form: Form = "code",
    reduction: Reduction = "rows",
) -> Tensor:
    """Cross-entropy against a teacher's distribution with the label's class raised: ``-sum_c w_c log q_c``.

    With m the one-hot label, eps the exponent, ``p = softmax(z_t / T)`` and ``q = softmax(z_s / T)``:

    - ``code``: ``w_c = (p_c + m_c)^eps - m_c``, the exponent acting on all classes: ``ofa_loss`` of the official code,
      which gave the published numbers;
    - ``paper``: ``w_c = (1 + p_c)^eps - 1`` at the label and ``p_c`` elsewhere: the paper's formula less the
      cross-entropy of the labels, which is a term of its own here as in the code.

    Both are :func:`~kdbench.losses.divergences.soft_cross_entropy` at eps 1. The weights are not made to sum to 1, and
    there is no ``T^2``.

    Args:
        student: logits ``[N, C]``.
        teacher: logits ``[N, C]``; without gradient.
        labels: classes ``[N]``, -100 for a row without a label (m is 0 there); or soft labels ``[N, C]`` (mixtures, smoothed
            labels), whose largest entry counts.
        exponent: eps, positive; above 1 the label gains the more, the surer of it the teacher is.
        temperature: T.
        form: see above.
        reduction: ``rows`` for the mean, ``none`` for each row ``[N]``.

    Returns:
        A scalar or ``[N]``, float32 at least.

    Raises:
        ValueError: shapes that do not fit, a number or choice out of its range, or a label outside the classes (seen on
            CPU alone).
    """
    check_temperature(temperature)
    check_exponent(exponent)
    check_choice("form", form, get_args(Form))
    check_same_shape(student, teacher)
    classes = labels.argmax(-1) if labels.is_floating_point() else labels
    if classes.shape != student.shape[:1]:
        raise ValueError(f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(student.shape)}")
    check_classes(classes.where(classes != IGNORED, 0), student.shape[-1])
    mark = (classes[:, None] == torch.arange(student.shape[-1], device=classes.device)).to(torch.int8)
    log_q = log_softmax(at_least_float32(student) / temperature, -1)
    p = (at_least_float32(teacher.detach()) / temperature).softmax(-1)
    weights = (p + mark) ** exponent - mark
    if form == "paper":
        weights = weights.where(mark == 1, p)
    return reduced(-(weights * log_q.masked_fill(weights == 0, 0.0)).sum(-1), reduction)


class EnhancedTarget(RowLoss):
    """:func:`enhanced_target` of rows, with the batch's ``labels``."""

    fields = ("labels",)

    def __init__(self, exponent: float = 1.0, temperature: float = 1.0, form: Form = "code") -> None:
        super().__init__()
        self.exponent, self.temperature = check_exponent(exponent), check_temperature(temperature)
        self.form = check_choice("form", form, get_args(Form))

    def per_row(self, student: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of each row."""
        return enhanced_target(student, target, labels, self.exponent, self.temperature, self.form, "none")


def check_exponent(exponent: float) -> float:
    """Return the exponent; raise ValueError unless it is positive."""
    if not exponent > 0:
        raise ValueError(f"the exponent of an enhanced target must be positive, got {exponent}")
    return exponent
