"""No teacher: pre-training and fine-tuning, the baselines and the teachers themselves."""

from kdbench.methods.base import Distillation, Optimizer
from kdbench.methods.objective import Term
from kdbench.methods.optimizers import Schedule
from kdbench.models.origins import Origin


class Supervised(Distillation):
    """A network that learns the labels of its data by the task's own loss.

    - masked language: the cross-entropy of the masked tokens;
    - classification, tagging (first piece of each word): the cross-entropy of the classes;
    - similarity: ``(cos(u, v) - score / 5)^2`` of the two sentence vectors.

    Args:
        student: the origin of the network; the surgery ``AddHead`` gives it a task head.
        objective: other terms in the place of the task's own loss.
        references: frozen networks, or folders of runs, that the test compares the student with: loyalty.
        optimizer: see :class:`Distillation`.
        schedule: see :class:`Distillation`.
        weight_decay: see :class:`Distillation`.
        unpad: see :class:`Distillation`.
        train: see :class:`Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        objective: dict[str, Term] | None = None,
        references: dict[str, Origin | str] | None = None,
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        weight_decay: float = 0.0,
        unpad: bool = False,
        train: list[str] | None = None,
    ) -> None:
        super().__init__(student, objective, None, references, optimizer, schedule, weight_decay, unpad, train)
