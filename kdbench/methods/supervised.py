"""No teacher: pre-training and fine-tuning, the baselines and the teachers themselves."""

from kdbench.methods.base import Distillation, Optimizer
from kdbench.methods.optimizers import Schedule
from kdbench.models.origins import Origin


class Supervised(Distillation):
    """A network that learns the labels of its data by the task's own loss.

    - masked language: the cross-entropy of the masked tokens;
    - classification, tagging (first piece of each word): the cross-entropy of the classes;
    - similarity: ``(cos(u, v) - score / 5)^2`` of the two sentence vectors.

    Args:
        student: the origin of the network; the surgery ``AddHead`` gives it a task head.
        references: frozen networks, or folders of runs, that the test compares the student with: loyalty.
        optimizer: see :class:`Distillation`.
        schedule: see :class:`Distillation`.
        weight_decay: see :class:`Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        references: dict[str, Origin | str] | None = None,
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(student, None, None, references, optimizer, schedule, weight_decay)
