"""What the outputs of a network mean in each task: which rows are scored, by what, and how loyalty is measured."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from kdbench.data.generators.density_mixtures import DensityMixture
from kdbench.errors import UserError
from kdbench.losses.contrastive import InfoNCE
from kdbench.losses.language import IGNORED, CrossEntropy
from kdbench.losses.regression import CosineRegression
from kdbench.methods.objective import Batch, Term
from kdbench.metrics.densities import FrechetDistance, ModeCoverage, SampleDiversity, SlicedWasserstein
from kdbench.metrics.loyalty import LabelLoyalty, ProbabilityLoyalty, RegressionLoyalty
from kdbench.metrics.retrieval import RetrievalScore
from kdbench.metrics.scores import ClassificationScore, MaskedTokenScore, RegressionScore
from kdbench.metrics.spans import SpanF1


class Task:
    """How a data module's labels are met by a network's outputs.

    Args:
        labels: the names of the classes, in the order of their numbers.
    """

    taps: ClassVar[tuple[str, ...]] = ("logits",)
    """What evaluation reads of a network, view included where there are several roles."""
    keeps: ClassVar[bool] = True
    """Whether what a frozen network says of a row is kept for the next test: not numbers for every word of a vocabulary."""
    chosen_by: ClassVar[tuple[str, str]] = ("accuracy", "highest")
    """The validation score that chooses the best checkpoint, and whether the highest or the lowest is best."""

    def __init__(self, labels: list[str] | None = None) -> None:
        self.labels = labels or []

    def objective(self) -> dict[str, Term]:
        """Return the task's own loss on its labels."""
        return {"task": Term(CrossEntropy(), labels="labels")}

    def views(self, view: str) -> dict[str, str]:
        """Return ``{role: view}`` of a network whose tokenizer makes ``view``."""
        return {"inputs": view}

    def labelled(self, view: str) -> str | None:
        """Return the field of the labels when evaluation reads the logits of labelled positions alone."""
        return None

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch, view: str) -> Tensor:
        """Return one row of predictions for each thing that is scored."""
        raise NotImplementedError

    def targets(self, batch: Batch, view: str) -> tuple[Tensor, ...]:
        """Return what the scores compare the predictions with."""
        return (batch["labels"],)

    def scores(self) -> dict[str, Metric]:
        """Return the metrics of the task."""
        raise NotImplementedError

    def items(self, predictions: Tensor, targets: tuple[Tensor, ...], rows: int) -> dict[str, Tensor]:
        """Return values ``[rows]`` of each row of the batch, for claims that pair by rows; by default there are none."""
        return {}

    def loyalties(self) -> dict[str, Metric]:
        """Return the metrics that compare a student's predictions with a teacher's; no label enters."""
        return {
            "label_loyalty": LabelLoyalty(),
            "probability_loyalty": ProbabilityLoyalty(log_base="e"),
            "probability_loyalty_base2": ProbabilityLoyalty(log_base="2"),
        }


class Unlabelled(Task):
    """Texts without labels, for a student that copies a teacher's inner states: the objective's terms on rows held out."""

    taps = ()
    chosen_by = ("objective", "lowest")

    def objective(self) -> dict[str, Term]:
        """Raise ValueError: without labels there is no loss of the task's own."""
        raise ValueError("the data have no labels, so the objective has to be given")

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch, view: str) -> Tensor:
        """Raise :class:`UserError`: there is nothing to predict."""
        raise UserError("These data have no labels, so there is nothing to predict: name a task's experiment.")

    def scores(self) -> dict[str, Metric]:
        """Return nothing: there is nothing to predict."""
        return {}

    def loyalties(self) -> dict[str, Metric]:
        """Return nothing: there are no predictions to compare."""
        return {}


class MaskedLanguage(Task):
    """Masked tokens: accuracy and perplexity over the masked positions of each network's own view."""

    chosen_by = ("cross_entropy", "lowest")
    keeps = False

    def objective(self) -> dict[str, Term]:
        """Return the cross-entropy of the masked tokens."""
        return {"masked": Term(CrossEntropy(), labels="masked_labels")}

    def labelled(self, view: str) -> str:
        """Return the field of the masked tokens' own ids."""
        return "masked_labels" if view == "inputs" else f"masked_labels.{view}"

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch, view: str) -> Tensor:
        """Return the logits at the masked positions ``[N, V]``."""
        logits = outputs["logits"]
        return logits if logits.dim() == 2 else logits[batch[self.labelled(view)] != IGNORED]

    def targets(self, batch: Batch, view: str) -> tuple[Tensor, ...]:
        """Return the masked tokens' own ids ``[N]``."""
        labels = batch[self.labelled(view)]
        return (labels[labels != IGNORED],)

    def in_place(self, outputs: Mapping[str, Tensor], batch: Batch, view: str) -> Tensor:
        """Return logits ``[B, S, V]`` that are right at the masked positions, whatever form they came in."""
        logits, masked = outputs["logits"], batch[self.labelled(view)] != IGNORED
        if logits.dim() == 3:
            return logits
        return logits.new_zeros(*masked.shape, logits.shape[-1]).masked_scatter(masked[..., None], logits)

    def scores(self) -> dict[str, Metric]:
        """Return accuracy, cross-entropy and perplexity."""
        return {"": MaskedTokenScore()}


class Language(Task):
    """The next token of a response: accuracy, cross-entropy and perplexity of a network that writes from left to right."""

    chosen_by = ("cross_entropy", "lowest")
    keeps = False

    def objective(self) -> dict[str, Term]:
        """Return the cross-entropy of the next tokens."""
        return {"language": Term(CrossEntropy(), labels="labels")}

    def views(self, view: str) -> dict[str, str]:
        """Return the text that is learnt from and, for terms that read ``plain``, the row's own text."""
        return {"inputs": view, "plain": "plain"}

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch, view: str) -> Tensor:
        """Return the logits ``[N, V]`` where the next token is one of the response."""
        return outputs["logits"][batch["predicts"]]

    def targets(self, batch: Batch, view: str) -> tuple[Tensor, ...]:
        """Return the next tokens ``[N]``."""
        return (batch["labels"][batch["predicts"]],)

    def scores(self) -> dict[str, Metric]:
        """Return accuracy, cross-entropy and perplexity."""
        return {"": MaskedTokenScore()}


class Classification(Task):
    """One class an example: corpus-level accuracy and macro-F1."""

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch, view: str) -> Tensor:
        """Return the logits ``[B, C]``."""
        return outputs["logits"]

    def items(self, predictions: Tensor, targets: tuple[Tensor, ...], rows: int) -> dict[str, Tensor]:
        """Return whether each row is right, and its cross-entropy."""
        (labels,) = targets
        cross_entropy = torch.nn.functional.cross_entropy(predictions.double(), labels, reduction="none")
        return {"correct": (predictions.argmax(-1) == labels).double(), "cross_entropy": cross_entropy}

    def scores(self) -> dict[str, Metric]:
        """Return accuracy and macro-F1."""
        return {"": ClassificationScore(len(self.labels))}


class Tagging(Task):
    """One class a word, read at its first piece: corpus-level accuracy and macro-F1; entity F1 for BIO tags."""

    chosen_by = ("macro_f1", "highest")

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch, view: str) -> Tensor:
        """Return the logits at the first piece of every word ``[N, C]``, in the order of the text."""
        first = batch["first_piece" if view == "inputs" else f"first_piece.{view}"]
        rows, words = torch.nonzero(batch["word_labels"] != IGNORED, as_tuple=True)
        return outputs["logits"][rows, first[rows, words]]

    def targets(self, batch: Batch, view: str) -> tuple[Tensor, ...]:
        """Return the words' classes ``[N]`` and the sentence of each word."""
        labels = batch["word_labels"]
        rows, words = torch.nonzero(labels != IGNORED, as_tuple=True)
        return labels[rows, words], rows

    def items(self, predictions: Tensor, targets: tuple[Tensor, ...], rows: int) -> dict[str, Tensor]:
        """Return the share of right words of each sentence, NaN for one without words."""
        labels, sentence = targets
        right = torch.zeros(rows, dtype=torch.float64, device=labels.device)
        right.index_add_(0, sentence, (predictions.argmax(-1) == labels).double())
        return {"accuracy": right / torch.bincount(sentence, minlength=rows)}

    def scores(self) -> dict[str, Metric]:
        """Return word accuracy and macro-F1, and entity scores when the classes are BIO tags."""
        found: dict[str, Metric] = {"": WordScore(len(self.labels))}
        if any(label.startswith("B-") for label in self.labels):
            found["entity"] = EntityScore(self.labels)
        return found


class WordScore(ClassificationScore):
    """:class:`ClassificationScore` over words; the sentence of a word does not matter here."""

    def update(self, logits: Tensor, labels: Tensor, sentence: Tensor) -> None:
        """Count the words ``[N]``."""
        super().update(logits, labels)


class EntityScore(SpanF1):
    """:class:`SpanF1` of the most probable tag of each word."""

    def update(self, logits: Tensor, labels: Tensor, sentence: Tensor) -> None:
        """Count the entities of whole sentences."""
        super().update(logits.argmax(-1), labels, sentence)


class Pairs(Task):
    """Two texts a row, each encoded alone."""

    taps = ("first.embedding", "second.embedding")

    def views(self, view: str) -> dict[str, str]:
        """Return the two texts' views."""
        suffix = "" if view == "inputs" else f".{view}"
        return {"first": f"first{suffix}", "second": f"second{suffix}"}


class Similarity(Pairs):
    """A real-valued score of a pair, the scaled cosine of two sentence vectors: Pearson, Spearman."""

    chosen_by = ("pearson", "highest")
    scale = 5.0

    def objective(self) -> dict[str, Term]:
        """Return ``(cos(u, v) - score / scale)^2``."""
        return {"task": Term(CosineRegression(self.scale), student=list(self.taps), labels="labels")}

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch, view: str) -> Tensor:
        """Return scores ``[B]`` between -scale and scale."""
        left, right = outputs["first.embedding"], outputs["second.embedding"]
        return self.scale * torch.cosine_similarity(left.float(), right.float())

    def items(self, predictions: Tensor, targets: tuple[Tensor, ...], rows: int) -> dict[str, Tensor]:
        """Return each row's score and its squared error."""
        (labels,) = targets
        return {"prediction": predictions.double(), "squared_error": (predictions.double() - labels).square()}

    def scores(self) -> dict[str, Metric]:
        """Return Pearson, Spearman and the squared error."""
        return {"": RegressionScore()}

    def loyalties(self) -> dict[str, Metric]:
        """Return the agreement of the two models' scores."""
        return {"regression_loyalty": RegressionLoyalty(range=self.scale)}


class Retrieval(Pairs):
    """Each first text seeks the second text of its row among those of all rows, by the cosine: MRR, nDCG, recall."""

    chosen_by = ("mrr", "highest")

    def objective(self) -> dict[str, Term]:
        """Return the cross-entropy of each text's own partner among those of the batch, both ways."""
        return {"task": Term(InfoNCE(), student=list(self.taps))}

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch, view: str) -> Tensor:
        """Return the vectors of both texts ``[B, 2, D]``."""
        return torch.stack([outputs[tap] for tap in self.taps], 1)

    def targets(self, batch: Batch, view: str) -> tuple[Tensor, ...]:
        """Return nothing: a text's partner is in its own row."""
        return ()

    def scores(self) -> dict[str, Metric]:
        """Return MRR, nDCG and recall."""
        return {"": RetrievalScore()}

    def loyalties(self) -> dict[str, Metric]:
        """Return nothing: the vectors of two networks lie in two spaces."""
        return {}


class Density(Task):
    """Samples of a density: what a network draws, against real rows; of a known mixture also the modes that it reaches."""

    taps = ()
    chosen_by = ("sliced_wasserstein", "lowest")
    mixture: DensityMixture | None = None
    reads: ClassVar[dict[str, tuple[tuple[str, str], ...]]] = {
        "sliced_wasserstein": (("made", "samples"), ("real", "samples")),
        "scores": (("made", "samples"),),
    }
    """What each metric is given, in order: of ``made`` or ``real`` rows the ``samples``, ``features``, ``logits`` or ``label``."""

    def objective(self) -> dict[str, Term]:
        """Raise :class:`UserError`: the data have nothing to predict."""
        raise UserError("Samples of a density have no labels to learn: DenoisingTraining learns to draw such samples.")

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch, view: str) -> Tensor:
        """Return the samples that were drawn."""
        return outputs["samples"]

    def targets(self, batch: Batch, view: str) -> tuple[Tensor, ...]:
        """Return nothing: no sample belongs to a row."""
        return ()

    def scores(self) -> dict[str, Metric]:
        """Return the sliced Wasserstein distance and, where the mixture is known, modes and the share of samples at one."""
        found: dict[str, Metric] = {"sliced_wasserstein": SlicedWasserstein()}
        if self.mixture is not None:
            found[""] = ModeCoverage(self.mixture.means.tolist(), self.mixture.std, self.mixture.weights.tolist())
        return found

    def loyalties(self) -> dict[str, Metric]:
        """Return nothing: no sample of one network belongs to a sample of another."""
        return {}


MOST_PIXELS = 1024
"""Samples with more values than these have no Frechet distance of their pixels: their covariances are too large."""


class JudgedDensity(Density):
    """Samples in classes, compared in the features of a classifier, the judge.

    Args:
        labels: the names of the classes.
        features: how many the judge has.
        values: how many a sample has.
    """

    chosen_by = ("frechet", "lowest")
    reads = {  # noqa: RUF012 - see Density
        "sliced_wasserstein": Density.reads["sliced_wasserstein"],
        "frechet": (("made", "features"), ("real", "features")),
        "diversity": (("made", "features"), ("made", "label")),
        "pixel_frechet": (("made", "samples"), ("real", "samples")),
        "pixel_diversity": (("made", "samples"), ("made", "label")),
        "scores": (("made", "logits"), ("made", "label")),
    }

    def __init__(self, labels: list[str], features: int, values: int) -> None:
        super().__init__(labels)
        self.features, self.values = features, values

    def scores(self) -> dict[str, Metric]:
        """Return distances and diversity inside the classes, of features and of pixels, and the accuracy of the class meant."""
        found: dict[str, Metric] = {
            "sliced_wasserstein": SlicedWasserstein(),
            "frechet": FrechetDistance(self.features),
            "diversity": SampleDiversity("euclidean"),
            "pixel_diversity": SampleDiversity("euclidean"),
            "": ClassificationScore(len(self.labels)),
        }
        if self.values <= MOST_PIXELS:
            found["pixel_frechet"] = FrechetDistance(self.values)
        return found


TASKS: dict[str, type[Task]] = {
    "unlabelled": Unlabelled,
    "masked_language": MaskedLanguage,
    "language": Language,
    "classification": Classification,
    "tagging": Tagging,
    "similarity": Similarity,
    "retrieval": Retrieval,
    "density": Density,
}
"""The task of a data module by the name that it gives."""
