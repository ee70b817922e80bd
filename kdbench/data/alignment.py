"""What two tokenizers with different vocabularies have in common: pieces, surface forms, positions."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from kdbench.errors import UserError


def same_vocabulary(first: PreTrainedTokenizerFast, second: PreTrainedTokenizerFast) -> bool:
    """Tell whether the same ids mean the same pieces."""
    return first.get_vocab() == second.get_vocab()


def shared_forms(
    student_tokenizer: PreTrainedTokenizerFast, teacher_tokenizer: PreTrainedTokenizerFast, fold: bool = True
) -> tuple[Tensor, Tensor, list[str]]:
    """Find the surface forms that are one whole-word piece in both vocabularies.

    A piece is a whole word if its tokenizer cuts it into itself alone. The forms are whole-word pieces of the teacher,
    in the order of its ids; a student's whole-word piece belongs to the form that the teacher's tokenizer makes of it.

    Args:
        student_tokenizer: ``V_s`` pieces.
        teacher_tokenizer: ``V_t`` pieces.
        fold: several pieces of the student may share a form (``Casa`` and ``casa`` of an uncased teacher); otherwise
            only equal strings do.

    Returns:
        the form of each piece of the student ``[V_s]`` and of the teacher ``[V_t]``, int64, -1 for none; the forms.

    Source: the ``shared_words`` alignment for teachers with other vocabularies (after Avram et al. 2022,
    arXiv 2112.12650, which leaves the alignment open).
    """
    teacher_words = _whole_words(teacher_tokenizer)
    student_words = _whole_words(student_tokenizer)
    seen = _cut(teacher_tokenizer, list(student_words))
    form_of = {
        piece: cut[0]
        for piece, cut in zip(student_words, seen, strict=True)
        if len(cut) == 1 and cut[0] in teacher_words and (fold or cut[0] == piece)
    }
    forms = sorted(set(form_of.values()), key=teacher_words.__getitem__)
    number = {form: index for index, form in enumerate(forms)}
    student_groups = torch.full((len(student_tokenizer),), -1)
    teacher_groups = torch.full((len(teacher_tokenizer),), -1)
    for piece, form in form_of.items():
        student_groups[student_words[piece]] = number[form]
    for form in forms:
        teacher_groups[teacher_words[form]] = number[form]
    return student_groups, teacher_groups, forms


def fold_vocabulary(student_tokenizer: PreTrainedTokenizerFast, teacher_tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Map every piece of the student to the teacher's piece that its normaliser makes of it.

    For vocabularies that differ only by folding (``Casa``, ``##SA`` and ``casa``, ``##sa``), cut alike. A special
    token maps to the teacher's special token of the same role.

    Returns:
        the teacher's id of each piece of the student, int64 ``[V_s]``; many to one.

    Raises:
        UserError: a piece of the student has no counterpart.
    """
    known = teacher_tokenizer.get_vocab()
    roles = {
        token: getattr(teacher_tokenizer, role)
        for role, token in student_tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
    groups = torch.empty(len(student_tokenizer), dtype=torch.long)
    for piece, number in student_tokenizer.get_vocab().items():
        prefix = "##" if piece.startswith("##") and piece != "##" else ""
        counterpart = (
            roles.get(piece) if piece in roles else prefix + _normalised(piece[len(prefix) :], teacher_tokenizer)
        )
        if counterpart not in known:
            raise UserError(
                f"The student's piece {piece!r} has no counterpart in the teacher's vocabulary: fold_vocab needs one"
                " for every piece; use shared_words."
            )
        groups[number] = known[counterpart]
    return groups


def aligned_positions(
    student_word_index: Tensor, teacher_word_index: Tensor, keep: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the words that are one single piece in both views.

    Args:
        student_word_index: the word of each piece, -1 at special tokens and padding, int64 ``[B, S]``.
        teacher_word_index: the same words in the teacher's pieces, int64 ``[B, S']``.
        keep: only words whose piece in the student's view is True here, bool ``[B, S]``, e.g.
            ``student_groups[ids] >= 0``; None: all.

    Returns:
        rows, positions in the student's view and positions in the teacher's view, int64 ``[N]`` each, ordered by row
        and word.
    """
    words = int(max(student_word_index.max(), teacher_word_index.max())) + 1
    student_count, student_position = _pieces_of_words(student_word_index, words)
    teacher_count, teacher_position = _pieces_of_words(teacher_word_index, words)
    rows, word = ((student_count == 1) & (teacher_count == 1)).nonzero(as_tuple=True)
    student, teacher = student_position[rows, word], teacher_position[rows, word]
    if keep is not None:
        kept = keep[rows, student]
        rows, student, teacher = rows[kept], student[kept], teacher[kept]
    return rows, student, teacher


def _pieces_of_words(word_index: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Count the pieces of each word, and sum their positions (the position, where there is one): ``[B, words]``."""
    slot = torch.where(word_index >= 0, word_index, words)  # one slot more for what belongs to no word
    zeros = slot.new_zeros((len(slot), words + 1))
    position = torch.arange(slot.shape[1], device=slot.device).expand_as(slot)
    count = zeros.scatter_add(1, slot, torch.ones_like(slot))
    return count[:, :words], zeros.scatter_add(1, slot, position)[:, :words]


def _whole_words(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    special = set(tokenizer.all_special_tokens)
    pieces = [piece for piece in tokenizer.get_vocab() if piece not in special]
    whole = [piece for piece, cut in zip(pieces, _cut(tokenizer, pieces), strict=True) if cut == [piece]]
    return {piece: tokenizer.convert_tokens_to_ids(piece) for piece in whole}


def _cut(tokenizer: PreTrainedTokenizerFast, words: list[str]) -> list[list[str]]:
    return [each.tokens for each in tokenizer(words, add_special_tokens=False).encodings] if words else []


def _normalised(piece: str, tokenizer: PreTrainedTokenizerFast) -> str:
    normalizer = tokenizer.backend_tokenizer.normalizer
    return piece if normalizer is None else normalizer.normalize_str(piece).strip()
