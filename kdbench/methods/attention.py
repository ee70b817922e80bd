"""Self-attention distillation: a student relates its tokens as its teacher does (Wang et al. 2020, arXiv 2002.10957)."""

import copy
from typing import Unpack

from torch import nn

from kdbench.errors import UserError, nearest
from kdbench.losses.relations import RelationDivergence
from kdbench.methods.base import Distillation, TextLearningOptions
from kdbench.methods.feature import checked_pairs, numbered
from kdbench.methods.objective import Term
from kdbench.models.origins import Origin

PROJECTIONS = ("query", "key", "value")


class AttentionDistillation(Distillation):
    """``sum over relations X-Y and pairs of layers of weight * loss(X_s, Y_s, X_t, Y_t)``; further terms may join.

    A relation is the softmax of scaled dot products of two projections of a layer: ``query-key`` is its attention,
    ``value-value`` how its values relate. The projections are read where they are made, so the networks keep their fast
    attention, and the widths of student and teacher may differ.

    Args:
        student: the origin of the student.
        teacher: the origin of the teacher, named ``teacher`` in further terms.
        heads: relation heads, into which the projections of both are cut; a divisor of both widths. For attention maps
            (``query-key``) the attention heads of both networks.
        relations: the weight of each, as terms ``query_key`` ... (``query_key_1`` ... of several layers). By default MiniLM's
            ``{query-key: 1, value-value: 1}``; MiniLMv2 has ``{query-query: 1, key-key: 1, value-value: 1}``.
        layers: pairs of a student's and a teacher's attention layer, from 0, negative numbers from the end; by default the
            last ones.
        loss: of two projections of a layer of each, made with ``heads``; by default
            :class:`~kdbench.losses.relations.RelationDivergence`.
        objective: further terms.
        options: see :class:`Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        teacher: Origin,
        heads: int,
        relations: dict[str, float] | None = None,
        layers: list[list[int]] | None = None,
        loss: nn.Module | None = None,
        objective: dict[str, Term] | None = None,
        **options: Unpack[TextLearningOptions],
    ) -> None:
        pairs = checked_pairs(layers if layers is not None else [[-1, -1]])
        loss = loss or RelationDivergence(heads)
        relations = relations or {"query-key": 1.0, "value-value": 1.0}
        terms = {}
        for relation, weight in relations.items():
            both = _projections(relation)
            for place, (ours, theirs) in enumerate(pairs, 1):
                name = numbered(relation.replace("-", "_"), place, pairs)
                taps = [f"{each}.{ours}" for each in both]
                terms[name] = Term(copy.deepcopy(loss), weight, taps, [f"teacher.{each}.{theirs}" for each in both])
        terms |= objective or {}
        super().__init__(student, terms, {"teacher": teacher}, **options)
        self.heads = heads
        self.maps = next((each for each in relations if len(set(_projections(each))) == 2), None)

    def setup(self, stage: str) -> None:
        """Also check that attention maps are compared head by head: both networks have ``heads`` attention heads.

        Raises:
            UserError: one of them has another number.
        """
        super().setup(stage)
        for name, network in {"student": self.student, **self._frozen}.items():
            own = getattr(network.config, "num_attention_heads", None)
            if name in ("student", "teacher") and self.maps and own not in (None, self.heads):
                raise UserError(
                    f"'{self.maps}' compares attention maps head by head with heads: {self.heads}, and the {name} has {own} "
                    "attention heads: give networks of equal heads, or relations of one projection with itself "
                    "(query-query, key-key, value-value), whose heads are free."
                )


def _projections(relation: str) -> list[str]:
    both = relation.split("-")
    if len(both) != 2:
        raise ValueError(f"a relation is two projections, such as query-key, got '{relation}'")
    for each in both:
        if each not in PROJECTIONS:
            raise ValueError(
                f"a relation has no projection '{each}', only {', '.join(PROJECTIONS)}.{nearest(each, PROJECTIONS)}"
            )
    return both
