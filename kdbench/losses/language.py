"""Cross-entropy against labels; -100 marks what is not predicted."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdbench.losses.base import at_least_float32

IGNORED = -100


def masked_token_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean of ``-log q(label)`` over the labelled positions; the others are removed before the softmax.

    Args:
        logits: ``[..., C]``.
        labels: ``[...]``, -100 where nothing is to be predicted.
        label_smoothing: share of the target spread over all classes.

    Returns:
        A scalar; 0 with a gradient of 0 when nothing is labelled.

    Raises:
        ValueError: for a label outside the classes (checked on CPU, where it costs no synchronisation).
    """
    chosen = labels != IGNORED
    logits, labels = logits[chosen], labels[chosen]
    if len(labels) == 0:
        return logits.sum() * 0.0
    if labels.device.type == "cpu" and not (int(labels.min()) >= 0 and int(labels.max()) < logits.shape[-1]):
        worst = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise ValueError(f"the label {worst} is outside the {logits.shape[-1]} classes")
    return cross_entropy(at_least_float32(logits), labels, label_smoothing=label_smoothing)


class CrossEntropy(nn.Module):
    """:func:`masked_token_cross_entropy`: selects the labelled positions itself."""

    takes_rows = False
    compares_rows = False

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is a share in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(self, student: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over labelled positions."""
        return masked_token_cross_entropy(student, torch.as_tensor(labels), self.label_smoothing)
