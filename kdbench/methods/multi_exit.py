"""Distillation at several depths of a student: what each exit says is compared, not the last one's alone."""

import copy
import dataclasses
from typing import Literal, Unpack

from torch import Tensor, nn

from kdbench.losses.base import check_choice
from kdbench.losses.enhanced_target import EnhancedTarget, Form
from kdbench.losses.language import CrossEntropy
from kdbench.methods.base import Distillation, LearningOptions
from kdbench.methods.evaluation import named, results
from kdbench.methods.objective import Batch, Term
from kdbench.methods.reader import Reader
from kdbench.models.exits import STAGES, exit_branch, feature_width
from kdbench.models.multi_exit import check_exits, exits_alone
from kdbench.models.origins import Origin


class BranchDistillation(Distillation):
    """OFA-KD: the teacher's logits teach the student's, and those that a branch makes of each of its stages.

    ``L = w_hard CE(z_s, y) + w_soft E(z_s, z_t; eps_last) + w_branch sum_k E(branch_k(f_k), z_t; eps_k)`` with the enhanced
    target E (:func:`~kdbench.losses.enhanced_target.enhanced_target`). No feature of the teacher is compared, so that student
    and teacher may be networks of any two kinds. The branches (:mod:`~kdbench.models.exits`) are of the kind and size that the
    student's features ask for; they are trained with it and not exported. Hao et al. 2023, arXiv 2310.19444.

    Args:
        student: the origin of the student, a network of four stages (:mod:`~kdbench.models.stages`), read by the taps
            ``stages.1`` to ``stages.4``, before any final norm.
        teacher: the origin of the teacher, named ``teacher`` in further terms.
        stages: which have a branch, of 1 to 4; by default all. None at all: ``[]``.
        exponent: eps, one for all; or a list, one for each stage that has a branch and at last that of the student's logits.
        form: on which classes the exponent acts: ``code`` or ``paper``.
        temperature: T, without ``T^2``.
        hard_weight: of the labels.
        soft_weight: of the student's own logits against the teacher's.
        branch_weight: of each branch.
        objective: further terms; one named ``hard``, ``soft`` or ``branch_<stage>`` replaces the term of that name.
        options: see :class:`Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        teacher: Origin,
        stages: list[int] | None = None,
        exponent: float | list[float] = 1.0,
        form: Form = "code",
        temperature: float = 1.0,
        hard_weight: float = 1.0,
        soft_weight: float = 1.0,
        branch_weight: float = 1.0,
        objective: dict[str, Term] | None = None,
        **options: Unpack[LearningOptions],
    ) -> None:
        stages = list(range(1, STAGES + 1)) if stages is None else stages
        if len(set(stages)) < len(stages) or not set(stages) <= set(range(1, STAGES + 1)):
            raise ValueError(f"stages are different numbers from 1 to {STAGES}, got {stages}")
        exponents = exponent if isinstance(exponent, list) else [exponent] * (len(stages) + 1)
        if len(exponents) != len(stages) + 1:
            raise ValueError(
                f"exponent is one number, or one for each of {len(stages)} branches and one for the student's logits: "
                f"{len(stages) + 1} numbers, got {len(exponents)}"
            )
        losses = [EnhancedTarget(each, temperature, form) for each in exponents]
        terms = {
            "hard": Term(CrossEntropy(), hard_weight, labels="labels"),
            "soft": Term(losses[-1], soft_weight, teacher="teacher.logits"),
        }
        for stage, loss in zip(stages, losses, strict=False):
            terms[f"branch_{stage}"] = Term(BranchLoss(loss, stage), branch_weight, f"stages.{stage}", "teacher.logits")
        terms = {name: term for name, term in (terms | (objective or {})).items() if term.weight}
        super().__init__(student, terms, {"teacher": teacher}, **options)

    def rehearse(self, batch: Batch) -> None:
        """Make the branches for what they read of the batch, then compute once what training computes."""
        branches = [term for term in self.objective.terms.values() if isinstance(term.loss, BranchLoss)]
        if branches:
            teacher = self.teach(batch)
            student, classes = self.learn(batch, teacher), teacher["teacher"]["logits"].shape[-1]
            networks = [self.network(name) for name in ("student", "teacher") if name in self.compared_names]
            widths = [feature_width(network) for network in networks]  # a file of targets has none
            for term in branches:
                features, stage = student[term.students[0]], term.loss.stage
                term.loss.branch = exit_branch(features, stage, widths[0], widths[-1], classes)
        super().rehearse(batch)


class MultiExit(Distillation):
    """Self-distillation of a network with exits: the same loss at every exit, from one forward and with no teacher.

    ``L = sum over exits i of alpha_i L_i``, ``alpha_i = i / n`` for ``depth``, n the last exit, and 1 for ``uniform``. Nothing is
    detached between exits: what the deeper ones ask for also trains the layers below, and this is all the distillation that
    there is. The weights are not brought to a sum of 1. Gurioli et al. 2025, arXiv 2503.03008.

    The student says for exit i what it says at its end, in a field with the exit's number behind it: ``embedding_4`` beside
    ``embedding`` (:mod:`~kdbench.models.multi_exit`). Every exit is scored as the student is: ``mrr_4@student`` beside
    ``mrr@student``; every exit before the last is also measured alone, as far as it goes, as ``exit_4``: size and seconds.

    Args:
        student: the origin of the network.
        exits: after how many layers, ascending.
        each: the terms of one exit, whose names get its number; ``{exit}`` in a tap stands for it.
        weights: of the exits.
        readings: further values that are scored as the student is, by name: the tap in the place of the field that the task
            reads, such as ``hidden_states.4.mean`` of an exit that is not trained.
        objective: further terms.
        options: see :class:`Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        exits: list[int],
        each: dict[str, Term],
        weights: Literal["depth", "uniform"] = "depth",
        readings: dict[str, str] | None = None,
        objective: dict[str, Term] | None = None,
        **options: Unpack[LearningOptions],
    ) -> None:
        check_exits(exits, exits[-1] if exits else 0)
        check_choice("weights", weights, ("depth", "uniform"))
        terms = {
            f"{name}_{exit}": _at_exit(term, exit, exit / exits[-1] if weights == "depth" else 1.0)
            for exit in exits
            for name, term in each.items()
        }
        super().__init__(student, terms | (objective or {}), **options)
        self.exits, self.readings = exits, readings or {}

    def prepare_scores(self, compared: list[str]) -> None:
        """Also make the metrics of every exit and of the further readings."""
        super().prepare_scores(compared)
        templates = {str(exit): f"{{field}}_{exit}" for exit in self.exits} | self.readings
        self._taps = {
            name: {tap: _beside(tap, template) for tap in self.task.taps} for name, template in templates.items()
        }
        self.exit_scores = nn.ModuleDict({name: nn.ModuleDict(named(self.task.scores())) for name in self._taps})
        read = dict.fromkeys([*self.task.taps, *(tap for taps in self._taps.values() for tap in taps.values())])
        self._score_readers["student"] = Reader(self.student, read, self._views("student"))

    def networks(self) -> dict[str, nn.Module]:
        """Return also every exit before the last alone, a network of its own that ends there."""
        alone = exits_alone(self.student)
        self.data.views |= dict.fromkeys(alone, self.data.views["student"])
        return super().networks() | alone

    def _score(self, name: str, outputs: dict[str, Tensor], batch: Batch) -> None:
        """Also score the student at every exit."""
        super()._score(name, outputs, batch)
        if name == "student":
            for reading, metrics in self.exit_scores.items():
                told = {field: outputs[tap] for field, tap in self._taps[reading].items()}
                self.update(metrics, told, batch, self.data.views[name])

    def _computed(self, split: str, names: list[str]) -> dict[str, Tensor]:
        found = super()._computed(split, names)
        for reading, metrics in self.exit_scores.items():
            found |= {f"{split}/{key}_{reading}@student": value for key, value in results(metrics).items()}
        return found


def _beside(tap: str, template: str) -> str:
    """Return the tap ``[view.]value`` of the same view as ``[view.]field``; ``{field}`` in the template stands for the field."""
    view, dot, field = tap.rpartition(".")
    return f"{view}{dot}{template.replace('{field}', field)}"


def _at_exit(term: Term, exit: int, weight: float) -> Term:
    """Return a term with a loss of its own for one exit, whose number stands in its taps."""
    if "weight" in (term.ramps or {}):
        raise ValueError("a ramp of the weight would take the place of the exit's: leave it out")
    taps = [tap.replace("{exit}", str(exit)) for tap in term.students]
    student = taps[0] if isinstance(term.student, str) else taps
    return dataclasses.replace(term, loss=copy.deepcopy(term.loss), weight=weight * term.weight, student=student)


class BranchLoss(nn.Module):
    """A loss of the logits that a branch makes of a student's features: ``loss(branch(f), z_t)``.

    Args:
        loss: of two logits ``[B, C]``, and the fields of the batch that it names.
        stage: of the student.
    """

    takes_rows: bool = False
    compares_rows: bool = True  # by the batch normalisation of a convolutional branch

    def __init__(self, loss: nn.Module, stage: int) -> None:
        super().__init__()
        self.loss, self.stage = loss, stage
        self.fields: tuple[str, ...] = getattr(loss, "fields", ())
        self.branch: nn.Module | None = None

    def forward(self, student: Tensor, teacher: Tensor, **fields: Tensor) -> Tensor:
        """Return the loss of features ``[B, ...]`` and a teacher's logits ``[B, C]``."""
        return self.loss(self.branch(student), teacher, **fields)
