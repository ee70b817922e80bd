"""Contrastive losses: each row of the student against its own row of the teacher and against the others of the batch."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy, normalize

from kdbench.losses.base import at_least_float32, check_choice, check_share, check_temperature, reduced
from kdbench.losses.divergences import Reduction
from kdbench.losses.ranks import over_ranks

Variant = Literal["leave_one_out", "all_pairs"]
Baseline = Literal["constant", "learnt"]


def mutual_information_bound(
    critic: Tensor,
    alpha: float,
    log_q: Tensor | float = 0.0,
    variant: Variant = "leave_one_out",
    same: Tensor | None = None,
    reduction: Reduction = "rows",
) -> Tensor:
    """Interpolated bound on the mutual information of student and teacher, in nats, from K pairs; to be maximised.

    With ``f_ij = critic[i, j]``, a base ``q`` and ``mix(m) = alpha m + (1 - alpha) q``:

    - ``leave_one_out``: ``I = 1 + J - G``, for every alpha a true lower bound in expectation. ``m_j`` is the mean of
      ``exp f_ij`` over ``i != j``, ``m_(j,i')`` over all ``i != i'``; ``G = mean_j m_j / mix(m_j)`` and ``J = mean_j
      mean_(i' != j) [f_jj - log mix(m_(j,i'))]``. It needs memory for K^3 numbers.
    - ``all_pairs``: ``I = 1 + mean_j [f_jj - log mix(m_j) - m_j / mix(m_j)]`` with ``m_j`` over all i. At alpha 1 it is
      InfoNCE, ``log K`` minus the cross-entropy over the student's rows; below, no bound, for the positive pair is also
      in the marginal term.

    Alpha 1 has low variance and is at most ``log(K - 1)`` (``log K`` for all pairs); alpha 0 is the NWJ bound, unbiased
    for the optimal critic ``log p(t|s) - log p(t) + log q`` and of high variance; between, at most
    ``1 + log((K - 1) / alpha)``. Means and softmax run over the *student's* rows for a fixed row of the teacher; the
    transposed critic gives another bound (the same at alpha 0). Adding a number to a column changes nothing at alpha 1 only.

    Args:
        critic: ``[K, K]``, row = the student's, column = the teacher's.
        alpha: in [0, 1].
        log_q: logarithm of the base, a number or one a column ``[K]``. NWJ's own constant e is ``log_q = 1``.
        variant: see above.
        same: bool ``[K, K]``, true for pairs that must not be negatives of each other, as copies of one sentence are;
            they are left out of every mean. The diagonal does not matter.
        reduction: ``none`` gives the part of each column ``[K]``.

    Returns:
        The mean over columns, float32 at least, computed in log space. A column without any negative says nothing: 0,
        with a gradient of 0, in ``leave_one_out``.

    Raises:
        ValueError: the shapes do not fit, or a setting is none of the choices.

    Poole et al. 2019, arXiv 1905.06922; for distillation He et al. 2021, arXiv 2109.11105.
    """
    check_share("alpha", alpha)
    check_choice("variant", variant, get_args(Variant))
    if critic.dim() != 2 or critic.shape[0] != critic.shape[1]:
        raise ValueError(f"a critic compares all pairs, [K, K], got the shape {tuple(critic.shape)}")
    if same is not None and same.shape != critic.shape:
        raise ValueError(
            f"the pairs that are the same have the critic's shape {tuple(critic.shape)}, not {tuple(same.shape)}"
        )
    critic, size = at_least_float32(critic), len(critic)
    log_q = torch.as_tensor(log_q, dtype=critic.dtype, device=critic.device).expand(size)
    nothing = critic.diagonal() * 0.0
    if size == 0:
        return reduced(nothing, reduction)
    own = torch.eye(size, dtype=torch.bool, device=critic.device)
    negative = ~own if same is None else ~(own | same.bool())
    if variant == "all_pairs":
        log_m = _log_mean_exp(critic, own | negative)
        log_mix = _log_mix(log_m, log_q, alpha)
        return reduced(1 + critic.diagonal() - log_mix - (log_m - log_mix).exp(), reduction)
    columns = torch.arange(size if size > 1 else 0, device=critic.device)
    if same is not None:
        columns = negative.any(0).nonzero().squeeze(1)
    values = _leave_one_out(critic, negative, log_q, alpha, columns)
    return reduced(nothing.index_copy(0, columns, values), reduction)


class MutualInformation(nn.Module):
    """Minus :func:`mutual_information_bound`, with a critic that is trained with the student.

    The critic is ``f_ij = cos(u(s_i), v(t_j)) / temperature`` with a two-layer network on either side, ``u`` and ``v``,
    whose input widths are taken from the first rows that come. The teacher's rows have no gradient, but ``v`` is trained
    on them. The negatives are the other rows of the batch of one device; their number caps what the bound can show
    (``log(K - 1)`` nats at alpha 1), so that values of different batch sizes do not compare.

    Args:
        alpha: from 0 (unbiased, high variance) to 1 (InfoNCE).
        variant: which estimate of the bound.
        dim: width of the common space.
        hidden: width of the hidden layer on both sides.
        temperature: divides the cosine.
        baseline: ``learnt`` trains the logarithm of the base q, which a cosine critic needs to be unbiased at small
            alpha; ``constant`` is q = 1. At alpha 1 there is no base.
    """

    takes_rows: bool = True
    compares_rows: bool = True

    def __init__(
        self,
        alpha: float = 0.5,
        variant: Variant = "leave_one_out",
        dim: int = 128,
        hidden: int = 256,
        temperature: float = 0.1,
        baseline: Baseline = "constant",
    ) -> None:
        super().__init__()
        self.alpha, self.variant = check_share("alpha", alpha), check_choice("variant", variant, get_args(Variant))
        self.temperature = check_temperature(temperature)
        if check_choice("baseline", baseline, get_args(Baseline)) == "learnt" and alpha == 1:
            raise ValueError("at alpha 1 the bound has no base to learn: set baseline to 'constant'")
        self.student_side, self.teacher_side = _projection(hidden, dim), _projection(hidden, dim)
        self.log_q = nn.Parameter(torch.zeros(())) if baseline == "learnt" else 0.0

    def critic(self, student: Tensor, target: Tensor) -> Tensor:
        """Return ``f`` ``[K, K]`` of rows ``[K, H_s]`` of the student and ``[K, H_t]`` of the teacher."""
        if student.dim() != 2 or target.dim() != 2 or len(student) != len(target):
            shapes = f"{tuple(student.shape)} and {tuple(target.shape)}"
            raise ValueError(f"mutual information needs pairs of rows, [K, H] and [K, H'], got {shapes}")
        ours, theirs = _directions(self.student_side, student), _directions(self.teacher_side, target.detach())
        with torch.autocast(ours.device.type, enabled=False):  # half precision of a cosine, times ten, is no softmax
            return ours @ theirs.T / self.temperature

    def forward(
        self, student: Tensor, target: Tensor, weights: Tensor | None = None, groups: Tensor | None = None
    ) -> Tensor:
        """Return minus the bound, the mean over pairs or ``sum(w v) / sum(w)``.

        Args:
            student: rows ``[K, H]``, one a sentence.
            target: the teacher's rows ``[K, H']`` of the same sentences.
            weights: ``[K]``, of the pairs; as negatives all count alike.
            groups: ``[K]``; rows with equal numbers come from one sentence and are no negatives of each other.

        Raises:
            ValueError: the rows are not as many on both sides, or weights or groups do not fit.
        """
        critic = self.critic(student, target)
        for name, values in (("weights", weights), ("groups", groups)):
            if values is not None and values.shape != (len(student),):
                raise ValueError(f"{len(student)} rows need as many {name}, got the shape {tuple(values.shape)}")
        same = None if groups is None else groups[:, None] == groups
        values = -mutual_information_bound(critic, self.alpha, self.log_q, self.variant, same, "none")
        if weights is None or len(values) == 0:
            return reduced(values, "rows")
        if weights.device.type == "cpu" and not weights.sum() > 0:
            raise ValueError("the weights of the rows sum to nothing")
        return (weights * values).sum() / weights.sum()


def info_nce(queries: Tensor, candidates: Tensor, scale: float, both_ways: bool = True) -> Tensor:
    """Cross-entropy of each query's own candidate among all of them: ``mean_i -log softmax_j(scale q_i . c_j)_i``, in nats.

    ``both_ways`` is CLIP's loss: the mean of that and of each candidate's own query among all of them (Radford et al. 2021,
    arXiv 2103.00020); one way is InfoNCE (van den Oord et al. 2018, arXiv 1807.03748).

    Args:
        queries: ``[N, D]``, taken as they are: at length 1 the products are cosines.
        candidates: ``[M, D]``, M >= N: row i belongs to query i, what is beyond N to none.
        scale: multiplies the products; one over what other papers call the temperature.
        both_ways: see above; candidates beyond N have no query of their own.

    Raises:
        ValueError: the shapes do not fit, or the scale is not positive and finite.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    fits = queries.dim() == 2 and candidates.dim() == 2 and queries.shape[1] == candidates.shape[1]
    if not fits or not 0 < len(queries) <= len(candidates):
        shapes = f"{tuple(queries.shape)} and {tuple(candidates.shape)}"
        raise ValueError(f"every query [N, D] needs a candidate of its own among [M, D], got {shapes}")
    with torch.autocast(queries.device.type, enabled=False):
        scores = scale * at_least_float32(queries) @ at_least_float32(candidates).T
    own = torch.arange(len(queries), device=scores.device)
    found = cross_entropy(scores, own)
    return (found + cross_entropy(scores[:, : len(own)].T, own)) / 2 if both_ways else found


class InfoNCE(nn.Module):
    """:func:`info_nce` of two vectors that the student makes of each example: no teacher, no labels.

    Under data-parallel training the others are those of one device; ``over_ranks`` takes those of all devices, as
    :class:`~kdbench.losses.transport.SinkhornDistance` does: every rank has the value of the whole batch, and the average of
    the ranks' gradients is that of the whole batch.

    Args:
        scale: multiplies the cosines.
        both_ways: also look for the first vector from the second.
        over_ranks: compare the rows of all ranks, which must all come here at every step of training.
    """

    takes_rows: bool = False
    compares_rows: bool = True
    student_only: bool = True

    def __init__(self, scale: float = 20.0, both_ways: bool = True, over_ranks: bool = False) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale}")
        self.scale, self.both_ways, self.over_ranks = scale, both_ways, over_ranks

    def forward(self, student: Sequence[Tensor]) -> Tensor:
        """Return the loss of the vectors ``[N, D]`` of the first texts and of the second ones, brought to length 1."""
        first, second = (normalize(at_least_float32(each), dim=-1) for each in student)
        if not (self.over_ranks and distributed.is_initialized() and torch.is_grad_enabled()):
            return info_nce(first, second, self.scale, self.both_ways)
        value = info_nce(over_ranks(first), over_ranks(second), self.scale, self.both_ways)
        return value.detach() + distributed.get_world_size() * (value - value.detach())


def _leave_one_out(critic: Tensor, negative: Tensor, log_q: Tensor, alpha: float, columns: Tensor) -> Tensor:
    """Return ``1 + J - G`` of the columns ``[k]`` of a critic ``[K, K]``; each of them has a negative."""
    own = torch.eye(len(critic), dtype=torch.bool, device=critic.device)
    counted, positive = (own | negative)[:, columns], critic.diagonal()[columns]
    critic, negative, log_q = critic[:, columns], negative[:, columns], log_q[columns]
    log_m = _log_mean_exp(critic, negative)
    marginal = (log_m - _log_mix(log_m, log_q, alpha)).exp()
    # [i, i', j]: the student's rows i that count for the column j when i' is left out
    log_left = _log_mean_exp(critic[:, None, :], counted[:, None, :] & ~own[:, :, None])
    log_mix = _log_mix(log_left, log_q, alpha).masked_fill(~negative, 0.0).sum(0) / negative.sum(0)
    return 1 + positive - log_mix - marginal


def _log_mean_exp(values: Tensor, counted: Tensor) -> Tensor:
    """Return ``log mean exp`` over the counted entries of the first dimension."""
    return values.masked_fill(~counted, -torch.inf).logsumexp(0) - counted.sum(0).to(values.dtype).log()


def _log_mix(log_m: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    """Return ``log(alpha m + (1 - alpha) q)``."""
    if alpha in (0, 1):
        return log_m if alpha == 1 else log_q.expand_as(log_m)
    return torch.logaddexp(log_m + math.log(alpha), log_q + math.log1p(-alpha))


def _projection(hidden: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LazyLinear(hidden), nn.ReLU(), nn.Linear(hidden, dim))


def _directions(side: nn.Sequential, rows: Tensor) -> Tensor:
    """Return the projected rows at length 1; rows may be stored in a narrower dtype than the weights have."""
    return normalize(at_least_float32(side(rows.to(side[-1].weight.dtype))), dim=-1)
