"""Task scores over a whole corpus, never a mean of batch scores: classification, masked tokens, regression."""

import math
import warnings

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation of two vectors [N], in float64.

    r = sum (x - mean x)(y - mean y) / (||x - mean x|| ||y - mean y||)

    NaN with a warning when a vector is constant or shorter than 2: no correlation is defined there, and 0 would be a
    claim. A NaN in either vector gives NaN.
    """
    if not _varies(first, second):
        return torch.full((), math.nan, dtype=torch.float64, device=first.device)
    return (_unit(first) * _unit(second)).sum().clamp(-1.0, 1.0)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of two vectors [N]: the Pearson correlation of their ranks, ties at the average rank.

    NaN with a warning when a vector is constant or shorter than 2; a NaN in either vector gives NaN.
    """
    return pearson(average_ranks(first), average_ranks(second))


def average_ranks(values: Tensor) -> Tensor:
    """Ranks 1..N of a vector [N], float64; equal values share the mean of the ranks that they occupy, NaN stays NaN."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    ranks = (last - (counts - 1) / 2).double()
    return ranks[place].masked_fill(values.isnan(), math.nan)


def macro_f1(correct: Tensor, predicted: Tensor, gold: Tensor) -> Tensor:
    """Unweighted mean of F1 = 2 correct / (predicted + gold) over the classes that occur; NaN when none does.

    `correct`, `predicted`, `gold`: counts [C]. A class occurs when it was predicted or is in the gold labels
    (scikit-learn's and seqeval's default).
    """
    total = predicted + gold
    occurs = total > 0
    return (2 * correct[occurs].double() / total[occurs]).mean()


def _varies(first: Tensor, second: Tensor) -> bool:
    """Whether a correlation is defined; warns when it is not."""
    if len(first) < 2:
        warnings.warn(f"The correlation of {len(first)} example(s) is undefined: NaN.", stacklevel=3)
        return False
    if bool((first == first[0]).all()) or bool((second == second[0]).all()):
        warnings.warn("The correlation with constant values is undefined: NaN.", stacklevel=3)
        return False
    return True


def _unit(values: Tensor) -> Tensor:
    """Centre a vector and scale it to length 1; by its largest entry first, so that no square overflows."""
    centred = values.double() - values.double().mean()
    centred = centred / centred.abs().max()
    return centred / torch.linalg.vector_norm(centred)


def _check_rows(logits: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless logits are [N, C] without NaN and labels are [N] with values in 0..C-1."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"Expected logits [N, C] and labels [N], not {[*logits.shape]} and {[*labels.shape]}.")
    if logits.isnan().any():
        raise ValueError("The logits contain NaN, which has no largest class.")
    if ((labels < 0) | (labels >= logits.shape[1])).any():
        raise ValueError(f"Labels must lie in 0..{logits.shape[1] - 1}; leave out the padded and the unlabelled rows.")


class ClassificationScore(Metric):
    """Accuracy and macro-F1 of classes or of word tags, from one confusion matrix of the whole corpus.

    F1_c = 2 M_cc / (sum_j M_cj + sum_i M_ic), macro = mean over the classes that occur in labels or predictions.
    Equal to scikit-learn's `accuracy_score` and `f1_score(average="macro")`. NaN when there are no rows.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    confusion: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"A classification needs at least one class, not {classes}.")
        self.classes = classes
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count rows: logits [N, C], labels [N] in 0..C-1. Ties go to the lowest class. Raises ValueError."""
        _check_rows(logits, labels)
        if logits.shape[1] != self.classes:
            raise ValueError(f"Expected logits of {self.classes} classes, not {logits.shape[1]}.")
        pairs = labels.long() * self.classes + logits.argmax(-1)
        self.confusion += torch.bincount(pairs, minlength=self.classes**2).reshape_as(self.confusion)

    def compute(self) -> dict[str, Tensor]:
        """`accuracy` and `macro_f1`, 0 to 1."""
        correct = self.confusion.diagonal()
        return {
            "accuracy": correct.sum().double() / self.confusion.sum(),
            "macro_f1": macro_f1(correct, predicted=self.confusion.sum(0), gold=self.confusion.sum(1)),
        }


class MaskedTokenScore(Metric):
    """Accuracy, cross-entropy (nats a token) and perplexity = exp(cross-entropy) over the masked tokens of a corpus."""

    full_state_update = False
    is_differentiable = False
    correct: Tensor
    count: Tensor
    negative_log_likelihood: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("negative_log_likelihood", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add the masked tokens alone: logits [N, V], labels [N] in 0..V-1. Raises ValueError."""
        _check_rows(logits, labels)
        # Half precision would lose the digits of the softmax; float64 of a whole vocabulary would double the memory.
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = functional.cross_entropy(exact, labels.long(), reduction="none")
        self.correct += (logits.argmax(-1) == labels).sum()
        self.count += labels.numel()
        # Not in place: a module cast to bfloat16 casts this state too, and the sum must stay float64.
        self.negative_log_likelihood = self.negative_log_likelihood + losses.double().sum()

    def compute(self) -> dict[str, Tensor]:
        """`accuracy`, `cross_entropy` and `perplexity`; NaN when there were no tokens."""
        cross_entropy = self.negative_log_likelihood / self.count
        return {
            "accuracy": self.correct.double() / self.count,
            "cross_entropy": cross_entropy,
            "perplexity": cross_entropy.exp(),
        }


class PairedValues(Metric):
    """Two vectors gathered over the whole corpus, for scores that are not sums: correlations and their kin."""

    full_state_update = False
    is_differentiable = False
    first: list[Tensor]
    second: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("first", [], dist_reduce_fx="cat")
        self.add_state("second", [], dist_reduce_fx="cat")

    @property
    def dtype(self) -> torch.dtype:
        """float64. A process without rows gathers an empty tensor of this type, which must be that of the others."""
        return torch.float64

    def append(self, first: Tensor, second: Tensor) -> None:
        """Keep two vectors [N] in float64; raises ValueError on other shapes."""
        if first.ndim != 1 or first.shape != second.shape:
            raise ValueError(f"Expected two vectors of one length, not {[*first.shape]} and {[*second.shape]}.")
        self.first.append(first.detach().to(torch.float64, copy=True))
        self.second.append(second.detach().to(torch.float64, copy=True))

    def pair(self) -> tuple[Tensor, Tensor]:
        """Both vectors [N], also when nothing was added."""
        if len(self.first) == 0:
            return torch.empty(2, 0, dtype=torch.float64, device=self.device).unbind()
        return dim_zero_cat(self.first), dim_zero_cat(self.second)


class RegressionScore(PairedValues):
    """Pearson and Spearman correlation with the targets, and the mean squared error (in squared target units)."""

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add predictions [N] and targets [N]; raises ValueError on other shapes."""
        self.append(predictions, targets)

    def compute(self) -> dict[str, Tensor]:
        """`pearson`, `spearman` (NaN with a warning for constant values or under 2 examples) and `mse`."""
        predictions, targets = self.pair()
        return {
            "pearson": pearson(predictions, targets),
            "spearman": spearman(predictions, targets),
            "mse": (predictions - targets).square().mean(),
        }
