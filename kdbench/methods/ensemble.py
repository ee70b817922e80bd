"""Several teachers, also with vocabularies of their own (Avram et al. 2022, arXiv 2112.12650)."""

from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from kdbench.data.alignment import fold_vocabulary, same_vocabulary, shared_forms
from kdbench.errors import UserError, nearest
from kdbench.losses.divergences import fold_logits
from kdbench.losses.language import IGNORED
from kdbench.losses.rows import select_rows
from kdbench.methods.base import Distillation, TextLearningOptions
from kdbench.methods.objective import Batch, Match, Term, same_rows
from kdbench.methods.tasks import MaskedLanguage
from kdbench.models.origins import Origin

Align = Literal["same_vocabulary", "fold_vocabulary", "shared_words", "hidden_only"]


class EnsembleDistillation(Distillation):
    """A student learns from several teachers at once.

    A teacher with another vocabulary needs an alignment:

    - ``same_vocabulary``: equal tokenizers (the default, checked);
    - ``fold_vocabulary``: the same pieces but for case: the student's distribution is summed onto the teacher's pieces,
      ``q_c(u) = sum over v with fold(v) = u of q(v)``, before the divergence;
    - ``shared_words``: only words that are one piece in both, both distributions renormalised over the shared forms;
      hidden states are compared by words (the mean of a word's pieces);
    - ``hidden_only``: word-level hidden states; its logits may not be read.

    Teachers of one vocabulary combine as the term says; a teacher of another vocabulary adds its loss with its weight,
    which has the same gradient as the mean of probabilities would.

    Args:
        student: the origin of the student.
        teachers: the origins of the teachers by name.
        objective: the terms.
        align: the alignment of each teacher whose vocabulary is not the student's.
        options: see :class:`Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        teachers: dict[str, Origin],
        objective: dict[str, Term],
        align: dict[str, Align] | None = None,
        **options: Unpack[TextLearningOptions],
    ) -> None:
        super().__init__(student, objective, teachers, **options)
        self.align = align or {}
        for name in self.align:
            if name not in teachers:
                raise ValueError(f"align names '{name}', which is no teacher.{nearest(name, teachers)}")
        for name, tap in self._teachers_read():
            if self.align.get(name) == "hidden_only" and tap == "logits":
                raise ValueError(f"the teacher '{name}' is aligned by hidden_only, so no term may read '{name}.logits'")

    def matches(self) -> dict[str, Match]:
        """Return how each aligned teacher's values meet the student's."""
        tokenizers, views = self.data.tokenizers, self.data.views
        if tokenizers[views["student"]] is None:
            return super().matches()
        ours = tokenizers[views["student"]]
        found: dict[str, Match] = {}
        for name in self.teacher_names:
            kind = self.align.get(name, "same_vocabulary")
            theirs = tokenizers[views[name]]
            if kind == "same_vocabulary" and not same_vocabulary(ours, theirs):
                raise UserError(
                    f"The teacher '{name}' has another vocabulary than the student ({len(theirs)} and {len(ours)} pieces): "
                    f"say how they meet, for example 'align: {{{name}: shared_words}}'."
                )
            if kind == "fold_vocabulary":
                found[name] = FoldVocabulary(fold_vocabulary(ours, theirs))
            elif kind in ("shared_words", "hidden_only"):
                student_forms, teacher_forms, forms = shared_forms(ours, theirs)
                if not forms:
                    raise UserError(f"The vocabularies of the student and of the teacher '{name}' share no word.")
                found[name] = SharedWords(views[name], student_forms, teacher_forms, len(forms))
        self.alignments = nn.ModuleDict(found)
        return found

    def compared(
        self, name: str, student: dict[str, Tensor], other: dict[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Return the logits at masked positions; over the shared forms where the vocabularies differ."""
        match = self.objective.matches.get(name, same_rows)
        if match is same_rows or not isinstance(self.task, MaskedLanguage):
            return super().compared(name, student, other, batch)
        ours = self.task.in_place(student, batch, self.data.views["student"])
        theirs = self.task.in_place(other, batch, self.data.views[name])
        return match(ours, theirs, "logits", 1.0, batch, batch["masked_labels"] != IGNORED)


class FoldVocabulary(nn.Module):
    """Equal segmentation, a many-to-one map of the student's pieces to the teacher's.

    A teacher's piece that no piece of the student folds onto is left out of the teacher's distribution too: there the
    student has no mass, and the divergence would be infinite.

    Args:
        groups: the teacher's piece of each of the student's ``[V_s]``.
    """

    def __init__(self, groups: Tensor) -> None:
        super().__init__()
        reached, forms = groups.unique(return_inverse=True)
        self.register_buffer("reached", reached, persistent=False)
        self.register_buffer("forms", forms, persistent=False)

    def forward(
        self, student: Tensor, teacher: Tensor, tap: str, temperature: float, batch: Batch, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the rows of both; the student's logits are those of the folded distribution."""
        if student.shape[:2] != teacher.shape[:2]:
            raise UserError(
                "fold_vocabulary needs texts that both tokenizers cut alike, and these are not: use shared_words."
            )
        ours, theirs = same_rows(student, teacher, tap, temperature, batch, mask)
        if tap != "logits":
            return ours, theirs
        return fold_logits(ours, self.forms, len(self.reached), temperature), theirs[:, self.reached]


class SharedWords(nn.Module):
    """Different segmentations: words that are one piece in both, distributions over the forms that both know.

    Args:
        view: the teacher's view of the batch.
        student_forms: the form of each of the student's pieces ``[V_s]``, -1 for none.
        teacher_forms: the form of each of the teacher's pieces ``[V_t]``, -1 for none.
        size: the number of forms.
    """

    def __init__(self, view: str, student_forms: Tensor, teacher_forms: Tensor, size: int) -> None:
        super().__init__()
        self.view, self.size = view, size
        self.register_buffer("student_forms", student_forms, persistent=False)
        self.register_buffer("teacher_forms", teacher_forms, persistent=False)

    def forward(
        self, student: Tensor, teacher: Tensor, tap: str, temperature: float, batch: Batch, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the rows of the aligned words: logits over the shared forms, or the mean state of each word."""
        if tap != "logits":
            return self._words(student, teacher, batch)
        rows, ours, theirs = batch[f"aligned.{self.view}"]
        if mask is not None:
            kept = mask[rows, ours]
            rows, ours, theirs = rows[kept], ours[kept], theirs[kept]
        left = fold_logits(student[rows, ours], self.student_forms, self.size, temperature)
        return left, fold_logits(teacher[rows, theirs], self.teacher_forms, self.size, temperature)

    def _words(self, student: Tensor, teacher: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        ours, theirs = batch["word_index.inputs"], batch[f"word_index.{self.view}"]
        words = int(max(ours.shape[1], theirs.shape[1]))  # a text of S pieces has at most S words
        left, seen_left = _word_means(student, ours, words)
        right, seen_right = _word_means(teacher, theirs, words)
        both = seen_left & seen_right
        return select_rows(left, both), select_rows(right, both)


def _word_means(states: Tensor, word_index: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Return the mean state of each word ``[B, words, H]`` and which words exist ``[B, words]``."""
    batch, _, width = states.shape
    place = torch.where(word_index < 0, words, word_index)  # specials and padding go to a place of their own
    totals = states.new_zeros(batch, words + 1, width).scatter_add(1, place[..., None].expand(-1, -1, width), states)
    counts = states.new_zeros(batch, words + 1).scatter_add(1, place, torch.ones_like(place, dtype=states.dtype))
    return (totals / counts.clamp(min=1)[..., None])[:, :words], counts[:, :words] > 0
