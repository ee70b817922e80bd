"""Contrast with memories: a student's example against the teacher's memory of the whole training set, and the reverse."""

import math

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import normalize

from kdbench.losses.base import at_least_float32, check_share, check_temperature
from kdbench.losses.ranks import over_ranks


def noise_contrastive(scores: Tensor, rows: int) -> Tensor:
    """Cross-entropy of telling the right one from K drawn out of n: mean over the batch, sum over the K + 1.

    ``-log(x_0 / (x_0 + K/n)) - sum_k log((K/n) / (x_k + K/n))``, with 1e-7 added to the denominators.

    Args:
        scores: ``[B, 1 + K]``, positive; column 0 is that of the right one.
        rows: n, from which the others are drawn alike.

    Tian, Krishnan, Isola 2020, arXiv 1910.10699, eq. 10 and 18; the constant is that of the authors' code.
    """
    noise = (scores.shape[1] - 1) / rows
    right = scores[:, 0] / (scores[:, 0] + noise + 1e-7)
    wrong = noise / (scores[:, 1:] + noise + 1e-7)
    return -(right.log() + wrong.log().sum(1)).mean()


class ContrastiveMemory(nn.Module):
    """Contrastive representation distillation (CRD) of pooled vectors; its weight is 0.8.

    Both sides are mapped to one width by a linear map each and brought to length 1, ``g_s`` and ``g_t``; each has a memory
    of the last ones of every training row, ``v_s`` and ``v_t`` ``[n, width]``. For a row i with negatives ``k_1 .. k_K``
    and ``idx = [i, k_1, .., k_K]``: ``x_s = exp(v_t[idx] . g_s / T) / Z_s`` and ``x_t = exp(v_s[idx] . g_t / T) / Z_t``, and
    the loss is :func:`noise_contrastive` of both. The normalisers ``Z = n mean(exp(..))`` are those of the first training
    batch for good. Then ``v[i] = normalise(m v[i] + (1 - m) g)``. Tian, Krishnan, Isola 2020, arXiv 1910.10699.

    The maps are trained with the student and not exported. Memories and normalisers are buffers: a resumed fit goes on with
    them. Without gradients, as in the rehearsal before a fit and in evaluation, they stay as they are. Under data-parallel
    training every device remembers the rows of all devices, and the normalisers are the means over all of them.

    Args:
        rows: n, the number of training rows; their ids are 0 .. n - 1.
        width: of the common space.
        temperature: T, of the scores.
        momentum: m, the share of what is remembered already.
    """

    takes_rows: bool = False
    compares_rows: bool = False
    fields: tuple[str, ...] = ("id", "negatives")

    def __init__(self, rows: int, width: int = 128, temperature: float = 0.07, momentum: float = 0.5) -> None:
        super().__init__()
        if rows < 2 or width < 1:
            raise ValueError(f"a memory needs at least 2 rows and a width of at least 1, got {rows} and {width}")
        self.temperature, self.momentum = check_temperature(temperature), check_share("momentum", momentum)
        self.student_side, self.teacher_side = nn.LazyLinear(width), nn.LazyLinear(width)
        # From numbers of their own: a student that is made after them starts as it does without them.
        drawn = torch.rand(2, rows, width, generator=torch.Generator().manual_seed(torch.initial_seed()))
        student_memory, teacher_memory = math.sqrt(3 / width) * (2 * drawn - 1)
        self.register_buffer("student_memory", student_memory)
        self.register_buffer("teacher_memory", teacher_memory)
        self.register_buffer("normalisers", torch.zeros(2))  # Z_s and Z_t; 0 before the first training batch

    def forward(self, student: Tensor, teacher: Tensor, id: Tensor, negatives: Tensor) -> Tensor:
        """Return the loss of a batch, and remember it when it is learnt from.

        Args:
            student: ``[B, D_S]``.
            teacher: ``[B, D_T]``.
            id: the number of each row in the training set, int64 ``[B]``.
            negatives: rows that are to be unlike it, int64 ``[B, K]``.

        Raises:
            ValueError: the shapes do not fit, or a row is outside the memory (seen on CPU, where looking costs no
                synchronisation).
        """
        rows = len(self.student_memory)
        asked = torch.cat([id[:, None], negatives], 1)
        if not len(student) == len(teacher) == len(asked):
            raise ValueError(f"{len(asked)} ids need as many vectors of both, got {len(student)} and {len(teacher)}")
        if asked.device.type == "cpu" and not (asked.min() >= 0 and asked.max() < rows):
            raise ValueError(f"the ids must lie in 0 .. {rows - 1}: 'rows' is the number of training rows")
        ours, theirs = _directions(self.student_side, student), _directions(self.teacher_side, teacher.detach())
        with torch.autocast(ours.device.type, enabled=False):  # an exponential of 14 times a cosine needs its digits
            sides = ((self.teacher_memory, ours), (self.student_memory, theirs))
            cosines = [(memory[asked] @ mine[..., None]).squeeze(-1) for memory, mine in sides]
            scores = (torch.stack(cosines) / self.temperature).exp()
        learns = self.training and torch.is_grad_enabled()
        normalisers = self._normalisers(rows * scores.detach().mean((1, 2)), learns)
        if learns:
            self._remember(id, ours.detach(), theirs.detach(), normalisers)
        return sum(noise_contrastive(each, rows) for each in scores / normalisers[:, None, None])

    def _normalisers(self, drawn: Tensor, learns: bool) -> Tensor:
        """Return those of the first training batch, in which they are drawn, without reading whether it is the first."""
        if learns and distributed.is_initialized():
            distributed.all_reduce(drawn)
            drawn = drawn / distributed.get_world_size()
        return torch.where(self.normalisers > 0, self.normalisers, drawn)

    @torch.no_grad()
    def _remember(self, id: Tensor, ours: Tensor, theirs: Tensor, normalisers: Tensor) -> None:
        self.normalisers.copy_(normalisers)
        if distributed.is_initialized():
            id, ours, theirs = (over_ranks(each) for each in (id, ours, theirs))
        for memory, new in ((self.student_memory, ours), (self.teacher_memory, theirs)):
            memory[id] = normalize(self.momentum * memory[id] + (1 - self.momentum) * new, dim=-1)


def _directions(side: nn.Linear, rows: Tensor) -> Tensor:
    return normalize(at_least_float32(side(rows.flatten(1).to(side.weight.dtype))), dim=-1)
