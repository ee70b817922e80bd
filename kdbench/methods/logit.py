"""Logit distillation: the student matches one teacher's softened distribution (Hinton et al. 2015, arXiv 1503.02531)."""

from kdbench.losses.divergences import KLDivergence
from kdbench.losses.language import CrossEntropy
from kdbench.methods.base import Distillation, Optimizer
from kdbench.methods.objective import Term
from kdbench.methods.optimizers import Schedule
from kdbench.models.origins import Origin


class LogitDistillation(Distillation):
    """``alpha T^2 KL(p || q) + (1 - alpha) CE(y, q)`` with p, q the softmaxes at temperature T; further terms may join.

    Args:
        student: the origin of the student.
        teacher: the origin of the teacher, named ``teacher`` in further terms.
        temperature: T of the soft targets.
        soft_weight: alpha, the weight of the soft term; the labels get ``1 - alpha``.
        labels: the field of the batch that holds the labels.
        objective: further terms; one named ``soft`` or ``hard`` replaces the term of that name.
        references: see :class:`Distillation`.
        optimizer: see :class:`Distillation`.
        schedule: see :class:`Distillation`.
        weight_decay: see :class:`Distillation`.
        unpad: see :class:`Distillation`.
        train: see :class:`Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        teacher: Origin,
        temperature: float = 2.0,
        soft_weight: float = 0.9,
        labels: str = "labels",
        objective: dict[str, Term] | None = None,
        references: dict[str, Origin | str] | None = None,
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        weight_decay: float = 0.0,
        unpad: bool = False,
        train: list[str] | None = None,
    ) -> None:
        if not 0 <= soft_weight <= 1:
            raise ValueError(f"soft_weight is a share in [0, 1], got {soft_weight}")
        terms = {
            "soft": Term(KLDivergence(temperature), soft_weight, teacher="teacher.logits"),
            "hard": Term(CrossEntropy(), 1 - soft_weight, labels=labels),
        }
        terms = {name: term for name, term in (terms | (objective or {})).items() if term.weight}
        super().__init__(
            student, terms, {"teacher": teacher}, references, optimizer, schedule, weight_decay, unpad, train
        )
