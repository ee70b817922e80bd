"""Cross-entropy against labels; -100 marks what is not predicted."""

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

from kdbench.losses.base import RowLoss, at_least_float32

IGNORED = -100


def masked_token_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
    divisor: Tensor | float | None = None,
) -> Tensor:
    """Mean of ``-log q(label)`` over the labelled positions; the others are removed before the softmax.

    With a ``divisor`` it is their sum over the divisor: the parts of a larger batch, each divided by the count of the
    whole, add up to the mean over the whole.

    Args:
        logits: ``[..., C]``.
        labels: integers ``[...]``, ``ignore_index`` where nothing is to be predicted.
        ignore_index: the label of what is not predicted.
        label_smoothing: share of the target spread over all classes.
        divisor: a positive number, taken in the place of the number of labelled positions.

    Returns:
        A scalar, float32 at least; 0 with a gradient of 0 when nothing is labelled.

    Raises:
        ValueError: the shapes do not fit, or a label is outside the classes (seen on CPU, where looking costs no
            synchronisation).
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}")
    labelled = labels != ignore_index
    logits, labels = at_least_float32(logits[labelled]), labels[labelled].long()
    if len(labels) == 0:
        return logits.sum() * 0.0
    check_classes(labels, logits.shape[-1])
    if divisor is None:
        return cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum") / divisor


def check_classes(labels: Tensor, classes: int) -> None:
    """Raise ValueError for a label outside the classes; on CPU alone, where looking costs no synchronisation."""
    if labels.device.type == "cpu" and len(labels):
        lowest, highest = (int(each) for each in labels.aminmax())
        if lowest < 0 or highest >= classes:
            raise ValueError(f"the label {lowest if lowest < 0 else highest} is outside the {classes} classes")


class CrossEntropy(nn.Module):
    """:func:`masked_token_cross_entropy`: selects the labelled positions itself.

    Data-parallel training averages the gradients of the ranks. If each rank takes the mean of its own tokens, a token
    counts more on a rank that has fewer, and the result changes with how the rows are dealt to the ranks. With
    ``over_ranks`` all divide by the same number, ``N / R`` for N labelled tokens on R ranks together, and the average,
    of values and of gradients, is that of one process with the whole batch, however the rows are dealt:
    ``1/R sum_r (sum_i loss_ri) / (N/R) = 1/N sum_ri loss_ri``.

    Args:
        label_smoothing: share of the target spread over all classes.
        over_ranks: normalise over the ranks, which must all come here at every step of training. Without
            torch.distributed, and without gradients (evaluation, where a rank may have a batch more), it is the plain
            mean.
    """

    takes_rows: bool = False
    compares_rows: bool = False
    labelled_only: bool = True  # of the student it reads nothing but the labelled positions

    def __init__(self, label_smoothing: float = 0.0, over_ranks: bool = False) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is a share in [0, 1), got {label_smoothing}")
        self.label_smoothing, self.over_ranks = label_smoothing, over_ranks

    def forward(self, student: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over labelled positions; ``over_ranks``: the ranks' values average to the mean over all of theirs.

        Labels that are distributions ``[N, C]`` give ``-sum_c y_c log q_c``, as mixtures of classes have it.
        """
        labels = torch.as_tensor(labels)
        if labels.is_floating_point():
            return cross_entropy(at_least_float32(student), labels, label_smoothing=self.label_smoothing)
        if not (self.over_ranks and distributed.is_initialized() and torch.is_grad_enabled()):
            return masked_token_cross_entropy(student, labels, label_smoothing=self.label_smoothing)
        count = (labels != IGNORED).sum()
        distributed.all_reduce(count)
        part = masked_token_cross_entropy(student, labels, label_smoothing=self.label_smoothing, divisor=count)
        return distributed.get_world_size() * part


class TokenCrossEntropy(RowLoss):
    """``-log q(token)`` of rows ``[N, V]`` that are all labelled, with weights where a token is not to count as each other."""

    def per_row(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of each row."""
        check_classes(target, student.shape[-1])
        return cross_entropy(at_least_float32(student), target, reduction="none")
