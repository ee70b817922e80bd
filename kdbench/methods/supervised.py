"""No teacher: pre-training and fine-tuning, the baselines and the teachers themselves."""

from typing import Unpack

from kdbench.methods.base import Distillation, TextLearningOptions
from kdbench.methods.objective import Term
from kdbench.models.origins import Origin


class Supervised(Distillation):
    """A network that learns the labels of its data by the task's own loss.

    - masked language: the cross-entropy of the masked tokens;
    - classification, tagging (first piece of each word): the cross-entropy of the classes;
    - similarity: ``(cos(u, v) - score / 5)^2`` of the two sentence vectors.

    Args:
        student: the origin of the network; the surgery ``AddHead`` gives it a task head.
        objective: other terms in the place of the task's own loss.
        options: see :class:`Distillation`.
    """

    def __init__(
        self, student: Origin, objective: dict[str, Term] | None = None, **options: Unpack[TextLearningOptions]
    ) -> None:
        super().__init__(student, objective, **options)
