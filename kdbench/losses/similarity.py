"""The geometry of vectors: how far apart points lie, and the angles of their triples, in a student's space as in a teacher's.

Throughout: vectors ``[..., N, D]``, a group of N points at each place of the leading dimensions (a text's tokens, a batch's
texts, a token's layers); D may differ between student and teacher; mask ``[..., N]``, true for points that exist, all by
default; errors are averaged over the pairs or triples of existing points of all groups; computed in float32 at least; the
teacher without gradient. Two points in one place have the distance 0, and an angle with such an arm is 0. All raise
ValueError for shapes that do not belong together.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, smooth_l1_loss

from kdbench.losses.base import at_least_float32, check_choice
from kdbench.losses.relations import attention_map_mse, split_heads, sum_in_chunks
from kdbench.losses.rows import select_rows

Error = Literal["l1", "l2", "smooth_l1"]


def distance_relation(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, squared: bool = False, error: Error = "smooth_l1"
) -> Tensor:
    """Error of pairwise distances, each divided by the mean of its group's positive ones; mean over pairs, i = j included.

    RKD's distance-wise loss (Park et al. 2019, arXiv 1904.05068); CKD's pair relation with ``squared`` Euclidean distances
    (Park et al. 2021, arXiv 2109.08359). It does not see translation, rotation or scaling of the student's points.
    """
    check_choice("error", error, get_args(Error))
    student, teacher, mask = _points(student, teacher, mask)
    pairs = mask[:, :, None] & mask[:, None, :]
    ours, theirs = (_relative_distances(each, pairs, squared) for each in (student, teacher))
    return _errors(ours, theirs, pairs, error) / pairs.sum().clamp(min=1)


def angle_relation(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    window: int | None = None,
    error: Error = "smooth_l1",
) -> Tensor:
    """Error of the cosines of the angles at i between the arms to j and k; mean over ordered triples, equal points included.

    RKD's angle-wise loss (arXiv 1904.05068), CKD's triple relation (arXiv 2109.08359), MGSKD's relation of texts (Liu et al.
    2022, arXiv 2204.08986). It does not see translation, rotation or scaling of the student's points.

    Args:
        student: ``[..., N, D_S]``.
        teacher: ``[..., N, D_T]``.
        mask: ``[..., N]``.
        window: the number of neighbouring points, i in their middle, among which j and k are; odd. By default all points:
            N^3 triples.
        error: ``l1``, ``l2`` (squared) or ``smooth_l1``.
    """
    check_choice("error", error, get_args(Error))
    _check_window(window)
    student, teacher, mask = _points(student, teacher, mask)
    size = student.shape[-2]
    reach = None if window is None or window // 2 >= size - 1 else window // 2

    def errors(ours: Tensor, theirs: Tensor, exist: Tensor) -> Tensor:
        near = _near(exist.unsqueeze(-1), reach).squeeze(-1)
        valid = exist[:, :, None, None] & near[..., :, None] & near[..., None, :]
        angles = [_angles(_near(each, reach) - each.unsqueeze(-2)) for each in (ours, theirs)]
        return torch.stack([_errors(*angles, valid, error), valid.sum()])

    around = size if reach is None else 2 * reach + 1
    cells = size * around * max(around, student.shape[-1], teacher.shape[-1])
    total, count = sum_in_chunks(errors, (student, teacher, mask), 0, cells)
    return total / count.detach().clamp(min=1)


def contextual_knowledge(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    mask: Tensor,
    word_distance: float = 1.0,
    word_angle: float = 1.0,
    layer_distance: float = 1.0,
    layer_angle: float = 1.0,
    window: int | None = 21,
    error: Error = "smooth_l1",
) -> Tensor:
    """CKD: the geometry of a text's tokens in each layer, and of each token's states across layers.

    The weighted sum of :func:`distance_relation` (squared) and :func:`angle_relation`, for tokens over all layers and texts,
    for layers over all real tokens. Park et al. 2021, arXiv 2109.08359; its public code also has a windowed form, which
    repeats the tokens at the ends and counts padding: here the window is cut where the text ends.

    Args:
        student: states ``[B, S, H_S]`` of the layers that are matched.
        teacher: states ``[B, S, H_T]`` of as many layers.
        mask: which tokens are real, ``[B, S]``.
        word_distance: weight of the distances between tokens.
        word_angle: weight of the angles between tokens.
        layer_distance: weight of the distances between a token's layers.
        layer_angle: weight of the angles between a token's layers.
        window: the tokens among which a triple of words lies, see :func:`angle_relation`.
        error: of distances and angles.
    """
    _check_layers(student, teacher)
    ours, theirs = torch.stack(list(student), 1), torch.stack(list(teacher), 1)
    words = ours, theirs, mask.bool()[:, None].expand(ours.shape[:-1])
    layers = [select_rows(each.transpose(1, 2), mask) for each in (ours, theirs)]
    total = ours.new_zeros(())
    if word_distance:
        total = total + word_distance * distance_relation(*words, squared=True, error=error)
    if word_angle:
        total = total + word_angle * angle_relation(*words, window=window, error=error)
    if layer_distance:
        total = total + layer_distance * distance_relation(*layers, squared=True, error=error)
    if layer_angle:
        total = total + layer_angle * angle_relation(*layers, error=error)
    return total


def token_relation(
    student: Tensor, teacher: Tensor, mask: Tensor, heads: int, salient: int = 20, neighbours: int = 20
) -> Tensor:
    """MGSKD's relation of tokens: scaled dot products of all pairs, and angles at the salient tokens.

    The first part is the squared difference of ``X X^T / sqrt(d)``, mean over heads and real pairs. For the second,
    ``A = softmax(X X^T / sqrt(d))`` of the teacher, summed over heads, says how salient a token is (the sum of its column)
    and which tokens are its neighbours (the largest entries of its row, itself left out); the smooth L1 error of the angles
    at a salient token between two different neighbours, over the whole width, mean over triples. Liu et al. 2022, arXiv
    2204.08986. (Its public code also leaves out triples whose angle is exactly 0 in the student.)

    Args:
        student: states ``[B, S, H_S]``.
        teacher: states ``[B, S, H_T]``.
        mask: which tokens are real, ``[B, S]``.
        heads: relation heads of both.
        salient: how many tokens of a text are corners.
        neighbours: how many neighbours a corner has.
    """
    pairs = attention_map_mse((student, student), (teacher, teacher), mask, heads, "scores")
    mask = mask.bool()
    student, teacher = (
        at_least_float32(each).masked_fill(~mask[..., None], 0.0) for each in (student, teacher.detach())
    )
    attention = _attention(teacher, mask, heads)
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    columns = attention.sum(1).masked_fill(~mask, -torch.inf)
    rows = attention.masked_fill(~mask[:, None, :] | itself, -torch.inf)
    corner_scores, corners = columns.topk(min(salient, mask.shape[1]), 1)
    rows = rows.gather(1, corners[..., None].expand(-1, -1, rows.shape[-1]))
    neighbour_scores, ends = rows.topk(min(neighbours, mask.shape[1]), 2)
    arms = corner_scores.isfinite()[..., None] & neighbour_scores.isfinite()
    different = ~torch.eye(ends.shape[-1], dtype=torch.bool, device=mask.device)
    valid = arms[..., :, None] & arms[..., None, :] & different
    text = torch.arange(len(mask), device=mask.device)[:, None]
    angles = [_angles(each[text[..., None], ends] - each[text, corners].unsqueeze(2)) for each in (student, teacher)]
    return pairs + _errors(*angles, valid, "smooth_l1") / valid.sum().clamp(min=1)


def sample_relation(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """MGSKD's relation of texts: :func:`angle_relation` of the batch's texts, each the mean of its real tokens, by heads.

    Args:
        student: states ``[B, S, H_S]``.
        teacher: states ``[B, S, H_T]``.
        mask: which tokens are real, ``[B, S]``.
        heads: relation heads of both: an angle is taken within each.
    """
    return angle_relation(*(split_heads(_text_means(each, mask)[None], heads)[0] for each in (student, teacher)))


def multi_granularity(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    mask: Tensor,
    heads: int = 64,
    token_layers: int = 2,
    salient: int = 20,
    neighbours: int = 20,
    sample_weight: float = 4.0,
    token_weight: float = 1.0,
) -> Tensor:
    """MGSKD: relations of tokens in the lower matched layers, of texts in the upper ones; sums over layers.

    ``token_weight * sum of token_relation + sample_weight * sum of sample_relation``; Liu et al. 2022, arXiv 2204.08986,
    without the relation of phrases, for which texts would have to be parsed.

    Args:
        student: states ``[B, S, H_S]`` of the layers that are matched, from the lowest.
        teacher: states ``[B, S, H_T]`` of as many layers.
        mask: which tokens are real, ``[B, S]``.
        heads: relation heads of both.
        token_layers: in how many layers tokens are related; in those above, texts.
        salient: see :func:`token_relation`.
        neighbours: see :func:`token_relation`.
        sample_weight: weight of the relation of texts.
        token_weight: weight of the relation of tokens.
    """
    _check_layers(student, teacher)
    total = at_least_float32(student[0]).new_zeros(())
    for layer, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        if layer < token_layers:
            total = total + token_weight * token_relation(ours, theirs, mask, heads, salient, neighbours)
        else:
            total = total + sample_weight * sample_relation(ours, theirs, mask, heads)
    return total


class ContextualKnowledge(nn.Module):
    """:func:`contextual_knowledge` of the matched layers of a student and a teacher."""

    takes_rows: bool = False
    takes_mask: bool = True
    compares_rows: bool = False

    def __init__(
        self,
        word_distance: float = 1.0,
        word_angle: float = 1.0,
        layer_distance: float = 1.0,
        layer_angle: float = 1.0,
        window: int | None = 21,
        error: Error = "smooth_l1",
    ) -> None:
        super().__init__()
        self.word_distance, self.word_angle = word_distance, word_angle
        self.layer_distance, self.layer_angle = layer_distance, layer_angle
        self.window = _check_window(window)
        self.error = check_choice("error", error, get_args(Error))

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Return the loss of the hidden states ``[B, S, H]`` of matched layers."""
        weights = self.word_distance, self.word_angle, self.layer_distance, self.layer_angle
        return contextual_knowledge(student, teacher, mask, *weights, self.window, self.error)


class MultiGranularity(nn.Module):
    """:func:`multi_granularity` of the matched layers of a student and a teacher; it compares the texts of a batch."""

    takes_rows: bool = False
    takes_mask: bool = True
    compares_rows: bool = True

    def __init__(
        self,
        heads: int = 64,
        token_layers: int = 2,
        salient: int = 20,
        neighbours: int = 20,
        sample_weight: float = 4.0,
        token_weight: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value in (("heads", heads), ("salient", salient), ("neighbours", neighbours)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.heads, self.token_layers, self.salient, self.neighbours = heads, token_layers, salient, neighbours
        self.sample_weight, self.token_weight = sample_weight, token_weight

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Return the loss of the hidden states ``[B, S, H]`` of matched layers, from the lowest."""
        numbers = self.heads, self.token_layers, self.salient, self.neighbours
        return multi_granularity(student, teacher, mask, *numbers, self.sample_weight, self.token_weight)


def _points(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return groups ``[G, N, D]`` of both and their mask ``[G, N]``; points that do not exist lie at 0."""
    if student.dim() < 2 or student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"student and teacher must have the same points, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if mask is None:
        mask = torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device)
    if mask.shape != student.shape[:-1]:
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit points of shape {tuple(student.shape)}")
    mask = mask.bool()
    student, teacher = (
        at_least_float32(each).masked_fill(~mask[..., None], 0.0) for each in (student, teacher.detach())
    )
    size = mask.shape[-1]
    return *(each.reshape(-1, size, each.shape[-1]) for each in (student, teacher)), mask.reshape(-1, size)


def _relative_distances(points: Tensor, pairs: Tensor, squared: bool) -> Tensor:
    # Not by matrix products: what these round is not small beside the distance of two points that are close.
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").masked_fill(~pairs, 0.0)
    distances = distances.square() if squared else distances
    mean = distances.sum((-2, -1), keepdim=True) / (distances > 0).sum((-2, -1), keepdim=True).clamp(min=1)
    return distances / mean.masked_fill(mean == 0, 1.0)


def _near(points: Tensor, reach: int | None) -> Tensor:
    """Return the points around each point, ``[G, N, W, D]`` of ``[G, N, D]``: all of them, or those within ``reach``."""
    if reach is None:
        return points.unsqueeze(1)
    return pad(points, (0, 0, reach, reach)).unfold(1, 2 * reach + 1, 1).mT


def _angles(arms: Tensor) -> Tensor:
    """Return the cosines ``[..., W, W]`` between arms ``[..., W, D]``, 0 for an arm without length."""
    length = torch.linalg.vector_norm(arms, dim=-1, keepdim=True)
    directions = arms / length.masked_fill(length == 0, 1.0)
    return directions @ directions.mT


def _errors(student: Tensor, teacher: Tensor, valid: Tensor, error: Error) -> Tensor:
    """Return the sum of the errors of the valid entries."""
    if error == "smooth_l1":
        values = smooth_l1_loss(student, teacher, reduction="none")
    else:
        values = (student - teacher).abs() if error == "l1" else (student - teacher).square()
    return values.masked_fill(~valid, 0.0).sum()


@torch.no_grad()
def _attention(states: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Return the softmax over real keys of the scaled dot products, summed over heads, 0 for padded queries: ``[B, S, S]``."""

    def attention(x: Tensor) -> Tensor:
        scores = at_least_float32(x @ x.mT) / x.shape[-1] ** 0.5
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        return scores.softmax(-1).sum(1).masked_fill(~mask[:, :, None], 0.0)

    return sum_in_chunks(attention, [split_heads(states, heads)], 1, mask.numel() * mask.shape[1])


def _text_means(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each text's real tokens, ``[B, H]`` of ``[B, S, H]``."""
    mask = mask.bool()
    return at_least_float32(states).masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _check_layers(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    if not student or len(student) != len(teacher):
        raise ValueError(
            f"the layers of student and teacher are matched one by one, got {len(student)} and {len(teacher)}"
        )


def _check_window(window: int | None) -> int | None:
    if window is not None and (window < 1 or window % 2 == 0):
        raise ValueError(f"window is an odd number of points, one in the middle, got {window}")
    return window
