"""Feature distillation: a student's hidden states match a teacher's (hints: Romero et al. 2015, arXiv 1412.6550)."""

import copy
from collections.abc import Sized
from typing import Literal, Unpack

from torch import nn

from kdbench.losses.hints import MeanSquaredError
from kdbench.methods.base import Distillation, TextLearningOptions
from kdbench.methods.objective import Term
from kdbench.models.origins import Origin


class FeatureDistillation(Distillation):
    """``sum or mean over pairs (i, j) of loss(student's hidden state i, teacher's hidden state j)``; further terms may join.

    Args:
        student: the origin of the student.
        teacher: the origin of the teacher, named ``teacher`` in further terms.
        layers: pairs of a student's and a teacher's hidden state: 0 is the embedding output, i the output of block i,
            negative numbers count from the end. TinyBERT's map of 4 layers onto 12 is
            ``[[0, 0], [1, 3], [2, 6], [3, 9], [4, 12]]``.
        loss: of one pair: the mean over the pairs, each with a copy of the loss, as terms ``hint_1``, ``hint_2`` ... (one
            alone: ``hint``); or of all pairs at once (``LayersMSE``), as the term ``hint``. By default the mean squared error
            through a projection to the teacher's width.
        weight: of the hints.
        pool: one vector a text in the place of all its tokens: ``first``, the first token, or ``mean``.
        objective: further terms.
        options: see :class:`Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        teacher: Origin,
        layers: list[list[int]],
        loss: nn.Module | None = None,
        weight: float = 1.0,
        pool: Literal["first", "mean"] | None = None,
        objective: dict[str, Term] | None = None,
        **options: Unpack[TextLearningOptions],
    ) -> None:
        loss = loss or MeanSquaredError(project=True)
        suffix = f".{pool}" if pool else ""
        pairs = [(f"hidden_states.{i}{suffix}", f"teacher.hidden_states.{j}{suffix}") for i, j in checked_pairs(layers)]
        if getattr(loss, "takes_mask", False):
            if pool:
                raise ValueError(f"{type(loss).__name__} compares all tokens of a text: leave 'pool' out")
            ours, theirs = zip(*pairs, strict=True)
            hints = {"hint": Term(loss, weight, list(ours), list(theirs))}
        else:
            hints = {
                numbered("hint", place, pairs): Term(copy.deepcopy(loss), weight / len(pairs), ours, theirs)
                for place, (ours, theirs) in enumerate(pairs, 1)
            }
        terms = hints | (objective or {})
        super().__init__(student, terms, {"teacher": teacher}, **options)


def numbered(name: str, place: int, among: Sized) -> str:
    """Return the name of one of several terms, with its place from 1; the only one keeps the bare name."""
    return f"{name}_{place}" if len(among) > 1 else name


def checked_pairs(layers: list[list[int]]) -> list[tuple[int, int]]:
    """Return pairs of layers; raise ValueError where there are none, or where one is no pair."""
    if not layers or any(len(pair) != 2 for pair in layers):
        raise ValueError(f"layers are pairs [student's, teacher's], such as [[1, 2], [2, 4]], got {layers}")
    return [(ours, theirs) for ours, theirs in layers]
