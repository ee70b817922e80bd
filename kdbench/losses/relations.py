"""Relations between the tokens of a text: scaled dot products ``X Y^T / sqrt(d)`` of two projections, as attention has them.

Throughout: projections ``[B, S, H]``, cut into ``heads`` contiguous pieces of width ``d = H / heads``; the widths of student
and teacher may differ, each has its own ``sqrt(d)``; mask ``[B, S]``, true for real tokens; natural logarithm; softmax in
float32 at least; the teacher without gradient. Padded keys are masked before the softmax, padded queries dropped after it.
Heads are taken in chunks that are computed again in the backward pass, so that ``[B, heads, S, S]`` never exists whole where
it would be large. All raise ValueError for shapes that do not belong together and for heads that do not divide a width.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from kdbench.losses.base import at_least_float32, check_choice, check_same_shape

Mean = Literal["example", "pooled"]
MapKind = Literal["probabilities", "scores"]
Pair = Sequence[Tensor]

CELLS = 2**22
"""How many cells of a map are held at a time, as long as one head has no more: 16 MB in float32."""


def relation_divergence(student: Pair, teacher: Pair, mask: Tensor, heads: int, mean: Mean = "example") -> Tensor:
    """``KL(R_T || R_S)`` of the relations ``R = softmax(X Y^T / sqrt(d))``, mean over heads and real queries.

    MiniLM's attention transfer is the pair (query, key), its value relation (value, value), with the attention heads of
    both networks (Wang et al. 2020, arXiv 2002.10957); MiniLMv2 relates query, key and value each with itself, with any
    number of relation heads (Wang et al. 2021, arXiv 2012.15828).

    Args:
        student: x and y of the student, ``[B, S, H_S]``.
        teacher: x and y of the teacher, ``[B, S, H_T]``.
        mask: which tokens are real.
        heads: relation heads of both.
        mean: ``example`` divides by the heads and tokens of each example, then averages over examples, as MiniLMv2's public
            code does; ``pooled`` averages over all real queries of the batch.
    """
    check_choice("mean", mean, get_args(Mean))
    mask, parts = _parts(student, teacher, mask, heads)

    def divergence(x_s: Tensor, y_s: Tensor, x_t: Tensor, y_t: Tensor) -> Tensor:
        log_q, log_p = (log_softmax(_keys_only(_products(*each), mask), -1) for each in ((x_s, y_s), (x_t, y_t)))
        return (log_p.exp() * (log_p - log_q)).sum(-1).masked_fill(~mask[:, None], 0.0).sum((1, 2))

    cleaned = [part.masked_fill(~mask[:, None, :, None], 0.0) for part in parts]
    sums, lengths = sum_in_chunks(divergence, cleaned, 1, mask.numel() * mask.shape[1]), mask.sum(1)
    if mean == "pooled":
        return sums.sum() / (heads * lengths.sum()).clamp(min=1)
    return (sums / (heads * lengths).clamp(min=1)).sum() / (lengths > 0).sum().clamp(min=1)


def map_mse(
    student: Tensor, teacher: Tensor, mask: Tensor, kind: MapKind = "probabilities", mask_padding: bool = True
) -> Tensor:
    """Squared difference of two attention maps, mean over heads and over the cells of real queries and keys.

    Args:
        student: scores before the softmax, ``[B, heads, S, S]``, queries by keys.
        teacher: of the same shape.
        mask: which tokens are real.
        kind: whether the maps are ``probabilities``, softmaxes over real keys, or the ``scores`` themselves, which TinyBERT's
            public code compares (Jiao et al. 2020, arXiv 1909.10351).
        mask_padding: false for the mean over all cells, as in that code: the columns of padded keys are 0 in both maps, the
            rows of padded queries count.
    """
    check_choice("kind", kind, get_args(MapKind))
    check_same_shape(student, teacher)
    _check_mask(mask, torch.Size((student.shape[0], student.shape[-1])))
    sums = _squares(student, teacher.detach(), mask.bool(), kind, mask_padding)
    return sums / _cells(mask.bool(), student.shape[1], mask_padding)


def attention_map_mse(
    student: Pair,
    teacher: Pair,
    mask: Tensor,
    heads: int,
    kind: MapKind = "probabilities",
    mask_padding: bool = True,
) -> Tensor:
    """:func:`map_mse` of the attention maps that queries and keys make.

    ERNIE-Tiny compares probabilities (Su et al. 2021, arXiv 2106.02241), TinyBERT scores (arXiv 1909.10351).

    Args:
        student: query and key of the student, ``[B, S, H_S]``.
        teacher: query and key of the teacher, ``[B, S, H_T]``.
        mask: which tokens are real.
        heads: attention heads of both.
        kind: see :func:`map_mse`.
        mask_padding: see :func:`map_mse`.
    """
    check_choice("kind", kind, get_args(MapKind))
    mask, parts = _parts(student, teacher, mask, heads)

    def squares(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor) -> Tensor:
        return _squares(_products(q_s, k_s), _products(q_t, k_t), mask, kind, mask_padding)

    if mask_padding:
        parts = [part.masked_fill(~mask[:, None, :, None], 0.0) for part in parts]
    sums = sum_in_chunks(squares, parts, 1, mask.numel() * mask.shape[1])
    return sums / _cells(mask, heads, mask_padding)


def split_heads(values: Tensor, heads: int) -> Tensor:
    """Return ``[B, heads, S, H / heads]`` of ``[B, S, H]``, each head a contiguous piece of the width."""
    width = values.shape[-1]
    if heads < 1 or width % heads:
        raise ValueError(
            f"heads must divide the widths of student and teacher, got {heads} heads for the width {width}"
        )
    return values.unflatten(-1, (heads, -1)).transpose(1, 2)


def sum_in_chunks(value: Callable[..., Tensor], parts: Sequence[Tensor], dim: int, cells: int) -> Tensor:
    """Return ``value(*parts)``, a sum over the dimension ``dim`` of all parts, taken chunk by chunk.

    Args:
        value: the sum over a chunk; one shape for all chunks.
        parts: tensors of one length along ``dim``.
        dim: the dimension that is cut.
        cells: how many values ``value`` holds for one place of ``dim``. A chunk holds :data:`CELLS` or one place; in the
            backward pass it is computed again, so that what it holds is there for one chunk at a time.
    """
    size = max(1, CELLS // max(1, cells))
    if size >= parts[0].shape[dim]:
        return value(*parts)
    chunks = zip(*(part.split(size, dim) for part in parts), strict=True)
    sums = [checkpoint(value, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.stack(sums).sum(0)


class RelationDivergence(nn.Module):
    """:func:`relation_divergence` of a student's and a teacher's projections of one layer."""

    takes_rows: bool = False
    takes_mask: bool = True
    compares_rows: bool = False

    def __init__(self, heads: int, mean: Mean = "example") -> None:
        super().__init__()
        self.heads = _check_heads(heads)
        self.mean = check_choice("mean", mean, get_args(Mean))

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Return the divergence of ``[x, y]`` of each side, or of ``[x]`` with itself."""
        if len(student) not in (1, 2) or len(teacher) != len(student):
            raise ValueError(
                "a relation is of one or two projections, as many of the teacher as of the student, "
                f"got {len(student)} and {len(teacher)}: give each relation a term of its own"
            )
        ours, theirs = (list(values) * (3 - len(values)) for values in (student, teacher))
        return relation_divergence(ours, theirs, mask, self.heads, self.mean)


class AttentionMapMSE(nn.Module):
    """:func:`attention_map_mse`, summed over matched layers."""

    takes_rows: bool = False
    takes_mask: bool = True
    compares_rows: bool = False

    def __init__(self, heads: int, kind: MapKind = "probabilities", mask_padding: bool = True) -> None:
        super().__init__()
        self.heads = _check_heads(heads)
        self.kind = check_choice("kind", kind, get_args(MapKind))
        self.mask_padding = mask_padding

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Return the sum over layers; each side lists query and key of each layer in turn."""
        if not student or len(student) % 2 or len(teacher) != len(student):
            raise ValueError(
                "attention maps need the query and the key of each layer, as many of the teacher as of the student, "
                f"got {len(student)} and {len(teacher)} projections"
            )
        return sum(
            attention_map_mse(
                student[at : at + 2], teacher[at : at + 2], mask, self.heads, self.kind, self.mask_padding
            )
            for at in range(0, len(student), 2)
        )


def _parts(student: Pair, teacher: Pair, mask: Tensor, heads: int) -> tuple[Tensor, list[Tensor]]:
    """Return the mask as bool, and x and y of student and teacher by heads, float32 at least, the teacher detached."""
    (x_s, y_s), (x_t, y_t) = student, teacher
    check_same_shape(x_s, y_s)
    check_same_shape(x_t, y_t)
    if x_s.shape[:-1] != x_t.shape[:-1]:
        raise ValueError(
            f"student and teacher must have the same tokens, got {tuple(x_s.shape)} and {tuple(x_t.shape)}"
        )
    _check_mask(mask, x_s.shape[:-1])
    values = (x_s, y_s, x_t.detach(), y_t.detach())
    return mask.bool(), [split_heads(at_least_float32(each), heads) for each in values]


def _products(x: Tensor, y: Tensor) -> Tensor:
    return at_least_float32(x @ y.mT) / x.shape[-1] ** 0.5


def _keys_only(scores: Tensor, mask: Tensor) -> Tensor:
    """Mask padded keys by the least finite number: its softmax is exactly 0, and no difference of logarithms is NaN."""
    return scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)


def _squares(student: Tensor, teacher: Tensor, mask: Tensor, kind: MapKind, mask_padding: bool) -> Tensor:
    """Return the sum of the squared differences of two maps, given as scores."""
    counted = mask[:, None, None, :]
    if mask_padding:
        counted = counted & mask[:, None, :, None]
    student, teacher = (
        each.masked_fill(~counted, torch.finfo(each.dtype).min)
        for each in (at_least_float32(student), at_least_float32(teacher))
    )
    if kind == "probabilities":
        student, teacher = student.softmax(-1), teacher.softmax(-1)
    return (student - teacher).masked_fill(~counted, 0.0).square().sum()


def _cells(mask: Tensor, heads: int, mask_padding: bool) -> Tensor | int:
    """Return over how many cells the mean is taken."""
    if mask_padding:
        return (heads * mask.sum(1).square().sum()).clamp(min=1)
    return max(1, heads * mask.numel() * mask.shape[1])


def _check_mask(mask: Tensor, shape: torch.Size) -> None:
    if mask.shape != shape:
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit texts and tokens of shape {tuple(shape)}")


def _check_heads(heads: int) -> int:
    if heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")
    return heads
