"""Logit distillation: the student matches one teacher's softened distribution (Hinton et al. 2015, arXiv 1503.02531)."""

from typing import Any, Unpack

from torch import Tensor, nn

from kdbench.data.mixing import draw_mixup, mix_labels, mixup
from kdbench.errors import UserError
from kdbench.losses.base import check_share
from kdbench.losses.divergences import KLDivergence
from kdbench.losses.language import CrossEntropy
from kdbench.methods.base import Distillation, LearningOptions, TextLearningOptions
from kdbench.methods.objective import Batch, Term
from kdbench.methods.tasks import Classification
from kdbench.models.origins import Origin


class SoftLabelOptions(LearningOptions, total=False):
    """The options of :class:`LogitDistillation` that also make sense where texts are mixed."""

    temperature: float
    soft_weight: float
    objective: dict[str, Term] | None


class LogitDistillation(Distillation):
    """``alpha T^2 KL(p || q) + (1 - alpha) CE(y, q)`` with p, q the softmaxes at temperature T; further terms may join.

    Args:
        student: the origin of the student.
        teacher: the origin of the teacher, named ``teacher`` in further terms.
        temperature: T of the soft targets.
        soft_weight: alpha, the weight of the soft term; the labels get ``1 - alpha``.
        labels: the field of the batch that holds the labels.
        objective: further terms; one named ``soft`` or ``hard`` replaces the term of that name.
        options: see :class:`Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        teacher: Origin,
        temperature: float = 2.0,
        soft_weight: float = 0.9,
        labels: str = "labels",
        objective: dict[str, Term] | None = None,
        **options: Unpack[TextLearningOptions],
    ) -> None:
        if not 0 <= soft_weight <= 1:
            raise ValueError(f"soft_weight is a share in [0, 1], got {soft_weight}")
        terms = {
            "soft": Term(KLDivergence(temperature), soft_weight, teacher="teacher.logits"),
            "hard": Term(CrossEntropy(), 1 - soft_weight, labels=labels),
        }
        terms = {name: term for name, term in (terms | (objective or {})).items() if term.weight}
        super().__init__(student, terms, {"teacher": teacher}, **options)


class MixupDistillation(LogitDistillation):
    """:class:`LogitDistillation` where a share of each batch are mixtures ``l x_i + (1 - l) x_j``, ``l ~ Beta(a, a)``.

    Student and teacher mix their own word embeddings with the same partners and shares (He et al. 2021, arXiv 2109.11105);
    the label of a mixture is ``l y_i + (1 - l) y_j``. Partners are drawn anew in each epoch, by the numbers of the rows.
    What the teacher says belongs to the mixture, so nothing of it is kept.

    Args:
        student: the origin of the student.
        teacher: the origin of the teacher, named ``teacher`` in further terms.
        concentration: a of the Beta distribution.
        rate: the share of rows that are mixed with another.
        labels: the field of the batch that holds the classes ``[B]``.
        options: see :class:`LogitDistillation`.
    """

    def __init__(
        self,
        student: Origin,
        teacher: Origin,
        concentration: float = 0.4,
        rate: float = 0.5,
        labels: str = "labels",
        **options: Unpack[SoftLabelOptions],
    ) -> None:
        check_share("rate", rate)
        super().__init__(student, teacher, labels=labels, **options)
        self.concentration, self.rate, self.field = concentration, rate, labels
        self._mixture: tuple[Tensor, Tensor, Tensor] | None = None

    def check_data(self) -> None:
        """Raise :class:`UserError` unless the data are texts in classes, each with its label."""
        if not isinstance(self.task, Classification) or self.data.tokenizers["inputs"] is None:
            raise UserError("MixupDistillation mixes texts and their classes: it needs TextClassification.")
        if self.data.augment is not None or self.data.transfer is not None:
            raise UserError(
                "MixupDistillation mixes labels: leave out data.augment and data.transfer, whose texts have none."
            )

    def setup(self, stage: str) -> None:
        """Also let both networks mix what their embeddings give, while a batch is trained on."""
        built = self.student is not None
        super().setup(stage)
        self._mixture = None  # of the rehearsal
        if not built:
            for network in (self.student, self.network("teacher")):
                network.get_input_embeddings().register_forward_hook(self._mixed)

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with the mask and the labels of the mixtures."""
        rows = batch["id"].cpu().numpy()
        draws = [self.current_epoch] * len(rows)
        partner, share = draw_mixup(self.data.seed, rows, draws, self.concentration, self.rate)
        partner, share = partner.to(self.device), share.to(self.device)
        view = batch[self.data.views["student"]]
        mask = view["attention_mask"]
        self._mixture = (mask, partner, share)
        _, both = mixup(mask[..., None].float(), mask, partner, share)
        mixed = {self.data.views["student"]: {**view, "attention_mask": both}}
        if self.field in batch:
            mixed[self.field] = mix_labels(batch[self.field], partner, share, len(self.data.labels))
        return {**batch, **mixed}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of the batch and its mixtures; validation and test see the texts as they are."""
        try:
            return super().training_step(batch, batch_idx)
        finally:
            self._mixture = None

    def _mixed(self, module: nn.Module, args: tuple[Any, ...], embeddings: Tensor) -> Tensor:
        return embeddings if self._mixture is None else mixup(embeddings, *self._mixture)[0]
