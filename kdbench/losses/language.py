"""Cross-entropy against labels; -100 marks what is not predicted."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdbench.losses.base import at_least_float32

IGNORED = -100


def masked_token_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORED, label_smoothing: float = 0.0
) -> Tensor:
    """Mean of ``-log q(label)`` over the labelled positions; the others are removed before the softmax.

    Args:
        logits: ``[..., C]``.
        labels: integers ``[...]``, ``ignore_index`` where nothing is to be predicted.
        ignore_index: the label of what is not predicted.
        label_smoothing: share of the target spread over all classes.

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
    if labels.device.type == "cpu":
        wrong = labels[(labels < 0) | (labels >= logits.shape[-1])]
        if len(wrong):
            raise ValueError(f"the label {int(wrong[0])} is outside the {logits.shape[-1]} classes")
    return cross_entropy(logits, labels, label_smoothing=label_smoothing)


class CrossEntropy(nn.Module):
    """:func:`masked_token_cross_entropy`: selects the labelled positions itself."""

    takes_rows: bool = False
    compares_rows: bool = False

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is a share in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(self, student: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over labelled positions."""
        return masked_token_cross_entropy(student, torch.as_tensor(labels), label_smoothing=self.label_smoothing)
