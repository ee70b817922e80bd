"""Optimal transport between a student's and a teacher's values: entropy-regularised (Sinkhorn), and exact for layers."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, distributed, nn

from kdbench.losses.base import at_least_float32, check_same_shape, check_temperature
from kdbench.losses.hints import mean_squared_error
from kdbench.losses.projection import Projection
from kdbench.losses.ranks import over_ranks
from kdbench.losses.rows import select_rows

LOG_DOMAIN_BELOW = 0.02  # exp(-2 / epsilon) of the largest distance of two distributions leaves float32 at 0.0194


def sinkhorn(
    cost: Tensor, epsilon: float = 0.1, iterations: int = 20, log_domain: bool = True, mass: Tensor | None = None
) -> Tensor:
    """Transport plan of Sinkhorn's iterations: ``exp(-cost / epsilon)``, rows then columns divided by their sums.

    The marginals are ones, not ``1/N``: the total mass is N. Columns come last, so they sum to 1 exactly and rows only
    as far as the iterations have converged. Gradients flow through all iterations.

    Args:
        cost: ``[..., N, N]``.
        epsilon: strength of the entropy; 0 is approached by the plan of least cost, infinity gives ``1/N`` everywhere.
        iterations: how often rows and columns are divided.
        log_domain: subtract log-sum-exps instead of dividing sums. The result is the same, without underflow of
            ``exp(-cost / epsilon)``, which makes the plain form NaN where a whole row or column underflows.
        mass: positive marginals ``[N]`` of rows and of columns instead of ones. The plan is that of each row and each
            column repeated so many times, the copies summed.

    Returns:
        The plan, with the shape of the cost, float32 at least.

    Raises:
        ValueError: epsilon or iterations are not positive.

    Cuturi 2013, arXiv 1306.0895; in this order, with ones, Cui et al. 2024, arXiv 2402.17110.
    """
    _check_settings(epsilon, iterations)
    scores = -at_least_float32(cost) / epsilon
    mass = scores.new_ones(scores.shape[-1]) if mass is None else mass.to(scores)
    if log_domain:
        columns, rows = mass.log(), mass.log()[:, None]
        scores = scores + rows + columns
        for _ in range(iterations):
            scores = scores - scores.logsumexp(-1, keepdim=True) + rows
            scores = scores - scores.logsumexp(-2, keepdim=True) + columns
        return scores.exp()
    columns, rows = mass, mass[:, None]
    plan = scores.exp() * rows * columns
    for _ in range(iterations):
        plan = plan / plan.sum(-1, keepdim=True) * rows
        plan = plan / plan.sum(-2, keepdim=True) * columns
    return plan


def sinkhorn_distance(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    iterations: int = 20,
    scale: float = 1.0,
    log_domain: bool | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Batch-wise Sinkhorn distance ``scale * sum_ij Pi_ij D_ij`` with ``D_ij = ||p_s[i] - p_t[j]||_1``, ``Pi = sinkhorn(D)``.

    ``p = softmax(z / T)``: every row of the student meets every row of the teacher, not only its own. Three consequences:

    - The value does not see which teacher row belongs to which student row: permuting the teacher's rows alone changes
      nothing. Another term (soft targets, labels) has to carry the pairing.
    - It is a sum over the batch: it grows with N, a weight tuned for 16 rows does not fit 64, and a smaller last batch or
      gradient accumulation changes the method.
    - At ``epsilon > 0`` equal batches of more than one row have a value above 0, the bias of the entropy.

    One row gives ``||p_s - p_t||_1``; one class gives 0, for its softmax is constant; ``epsilon`` to infinity gives N
    times the mean cost. At equal probabilities the L1 distance has a kink; its gradient is taken as 0 there. The
    gradient flows through costs and all iterations to the student; the teacher has none.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``.
        temperature: T of both distributions.
        epsilon: of :func:`sinkhorn`.
        iterations: of :func:`sinkhorn`; 20 have not converged, so that the number is part of the definition.
        scale: factor of the value. The authors' code multiplies by 0.001 beside the weight of the term.
        log_domain: of :func:`sinkhorn`; by default on for ``epsilon < 0.02``, where float32 underflows.
        weights: ``[N]``, at least 0; a row of weight k counts as k such rows of student and teacher.

    Returns:
        A scalar, float32 at least; 0 with a gradient of 0 for no rows.

    Raises:
        ValueError: the shapes are not two equal ``[N, C]``, a setting is not positive, or the weights do not fit (their
            values seen on CPU, where looking costs no synchronisation).

    Cui et al. 2024, arXiv 2402.17110, whose code is followed in the order of the iterations.
    """
    check_temperature(temperature)
    check_same_shape(student_logits, teacher_logits)
    if student_logits.dim() != 2:
        raise ValueError(f"a batch-wise distance compares rows [N, C], got the shape {tuple(student_logits.shape)}")
    if weights is not None:
        _check_weights(weights, len(student_logits))
        counted = weights > 0
        student_logits, teacher_logits, weights = student_logits[counted], teacher_logits[counted], weights[counted]
    if len(student_logits) == 0:
        return at_least_float32(student_logits).sum() * 0.0
    student = (at_least_float32(student_logits) / temperature).softmax(-1)
    teacher = (at_least_float32(teacher_logits.detach()) / temperature).softmax(-1)
    cost = torch.cdist(student, teacher.to(student), p=1)
    in_logs = epsilon < LOG_DOMAIN_BELOW if log_domain is None else log_domain
    return scale * (sinkhorn(cost, epsilon, iterations, in_logs, weights) * cost).sum()


def earth_mover_plan(
    cost: Tensor, teacher_weights: Tensor | None = None, student_weights: Tensor | None = None
) -> Tensor:
    """Plan ``F`` of least ``sum_ij F_ij cost_ij`` whose rows sum to the teacher's and columns to the student's weights.

    It maps layers to layers: ``cost[i, j]`` is the loss between layer i of the teacher and layer j of the student. The
    plan is exact (a linear program), a constant for the gradient, and a matrix of shares that sum to 1.

    Args:
        cost: ``[L_T, L_S]``, finite. It is read on the CPU.
        teacher_weights: ``[L_T]``, at least 0, divided by their sum; equal by default.
        student_weights: ``[L_S]`` likewise.

    Returns:
        ``[L_T, L_S]`` with the dtype and device of the cost, without gradient.

    Raises:
        ValueError: the cost is no finite matrix, or the weights do not fit it.

    Li et al. 2020 (BERT-EMD), arXiv 2010.06133; as a layer mapping He et al. 2021, arXiv 2109.11105.
    """
    values = cost.detach().double().cpu().numpy()
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"the costs of layers are a finite matrix [L_T, L_S], got the shape {values.shape}")
    teachers, students = values.shape
    shares = np.concatenate(
        [_shares("teacher", teacher_weights, teachers), _shares("student", student_weights, students)]
    )
    sums = np.vstack([np.kron(np.eye(teachers), np.ones(students)), np.kron(np.ones(teachers), np.eye(students))])
    scale = np.abs(values).max() or 1.0  # the solver's tolerances are absolute, and losses may be tiny
    solution = linprog(values.ravel() / scale, A_eq=sums, b_eq=shares, method="highs")
    return torch.from_numpy(solution.x.clip(min=0.0)).reshape(values.shape).to(cost)


def earth_mover_distance(
    cost: Tensor, teacher_weights: Tensor | None = None, student_weights: Tensor | None = None
) -> Tensor:
    """``sum_ij F_ij cost_ij`` with the constant ``F`` of :func:`earth_mover_plan`: a scalar.

    Its gradient with respect to the cost is F, which is that of the optimum wherever F is unique.
    """
    return (earth_mover_plan(cost, teacher_weights, student_weights) * cost).sum()


class EarthMoverLayers(nn.Module):
    """Mean squared errors between *all* layers of student and teacher, each weighed by the plan that moves least.

    ``sum_ij F_ij mse(T_i, S_j W)`` with :func:`earth_mover_plan`'s ``F`` of the batch: which layer of the student learns from
    which of the teacher is found, not chosen (Li et al. 2020, arXiv 2010.06133). Give it all hidden states of both, as
    many as each has.

    Args:
        project: map the student's states by one learnt W to the teacher's width.
    """

    takes_rows: bool = False
    takes_mask: bool = True
    compares_rows: bool = False
    all_pairs: bool = True
    """The lists of student and teacher are not matched one by one, and need not be equally long."""

    def __init__(self, project: bool = False) -> None:
        super().__init__()
        self.projection = Projection() if project else None

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Return the distance of the layers ``[B, S, H_S]`` and ``[B, S, H_T]``, mean over real tokens and elements."""
        theirs = [select_rows(each, mask) for each in teacher]
        ours = [select_rows(each, mask) for each in student]
        if self.projection is not None:
            ours = [self.projection(each, theirs[0].shape[-1]) for each in ours]
        cost = torch.stack([torch.stack([mean_squared_error(s, t) for s in ours]) for t in theirs])
        return earth_mover_distance(cost)


class SinkhornDistance(nn.Module):
    """:func:`sinkhorn_distance` of the rows of a batch: classes only, as one output has no distribution.

    Under data-parallel training each device compares its own rows: the value belongs to the batch of *one device*, and a
    weight holds for that size. With ``over_ranks`` the rows of student and teacher of all ranks are put together first:
    every rank has the value of one process with the whole batch, and the average of the ranks' gradients is that of the
    whole batch, however the rows are dealt. Each rank differentiates with respect to its own rows alone, R times (R
    ranks): ``1/R sum_r R dL/dx_r dx_r/dw = dL/dw``.

    Args:
        temperature: of both distributions.
        epsilon: strength of the entropy.
        iterations: of Sinkhorn's algorithm.
        scale: factor of the value; 0.001 in the authors' code.
        log_domain: by default on for ``epsilon < 0.02``.
        over_ranks: compare the rows of all ranks, which must all come here at every step of training. Without
            torch.distributed, and without gradients (evaluation, where a rank may have a batch more), it changes nothing.
    """

    takes_rows: bool = True
    compares_rows: bool = True

    def __init__(
        self,
        temperature: float = 2.0,
        epsilon: float = 0.1,
        iterations: int = 20,
        scale: float = 1.0,
        log_domain: bool | None = None,
        over_ranks: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.epsilon, self.iterations, self.scale, self.log_domain = epsilon, iterations, scale, log_domain
        self.over_ranks = over_ranks
        _check_settings(epsilon, iterations)

    def forward(self, student: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the distance of the batches ``[N, C]``; raise ValueError for one output, which is regression."""
        if student.shape[-1] == 1:
            raise ValueError(
                "the Sinkhorn distance is undefined for regression: the softmax of one output is always 1; leave the term out"
            )
        check_same_shape(student, target)
        if weights is not None:
            _check_weights(weights, len(student))
        together = self.over_ranks and distributed.is_initialized() and torch.is_grad_enabled()
        if together:
            student, target = over_ranks(student), over_ranks(target.detach())
            weights = None if weights is None else over_ranks(weights)
        value = sinkhorn_distance(
            student, target, self.temperature, self.epsilon, self.iterations, self.scale, self.log_domain, weights
        )
        if together:
            value = value.detach() + distributed.get_world_size() * (value - value.detach())
        return value


def _check_settings(epsilon: float, iterations: int) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
    if iterations < 1:
        raise ValueError(f"Sinkhorn's algorithm needs at least 1 iteration, got {iterations}")


def _check_weights(weights: Tensor, rows: int) -> None:
    if weights.shape != (rows,):
        raise ValueError(f"{rows} rows need as many weights, got the shape {tuple(weights.shape)}")
    if weights.device.type == "cpu" and rows and not (weights.min() >= 0 and weights.sum() > 0):
        raise ValueError("the weights of the rows must be at least 0 and sum to more than nothing")


def _shares(whose: str, weights: Tensor | None, layers: int) -> np.ndarray:
    """Return the weights of layers divided by their sum."""
    values = np.ones(layers) if weights is None else weights.detach().double().cpu().numpy()
    if values.shape != (layers,) or not ((values >= 0).all() and 0 < values.sum() < np.inf):
        raise ValueError(f"{layers} layers of the {whose} need as many weights >= 0 with a positive sum, got {values}")
    return values / values.sum()
