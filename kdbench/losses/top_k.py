"""The k largest logits of a teacher, and everything else as one class: what is kept of a distribution that is too wide to keep.

With K the kept classes, the others become one class whose mass is theirs together: ``p_K+1 = sum over v outside K of p_v``.
Any divergence of this module's rows is exact on the kept classes. A forward KL is too small by ``gap = p_tail KL(p~ || q~)``,
p~ and q~ being the two distributions within the tail, and never too large (the log-sum inequality).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.losses.base import at_least_float32, check_temperature


class TopK(NamedTuple):
    """A teacher's logits in short: ``logits`` ``[..., k + 1]``, the tail last, and the ``classes`` ``[..., k]`` of the others."""

    logits: Tensor
    classes: Tensor


def top_k(logits: Tensor, k: int, temperature: float = 1.0) -> TopK:
    """Keep the k largest of ``[..., V]`` logits, and ``T logsumexp(z / T)`` of the rest as the last one.

    ``softmax(out.logits / T)`` is exactly the teacher's softened distribution with its tail taken together; at another
    temperature the tail would have another mass.

    Raises:
        ValueError: k is not between 1 and V - 1, or the temperature is not positive.
    """
    check_temperature(temperature)
    if not 1 <= k < logits.shape[-1]:
        raise ValueError(f"top_k keeps between 1 and {logits.shape[-1] - 1} of {logits.shape[-1]} classes, not {k}")
    logits = at_least_float32(logits)
    kept, classes = logits.topk(k, dim=-1)
    return TopK(torch.cat([kept, _rest(logits, classes, temperature)], dim=-1), classes)


def lump_logits(logits: Tensor, classes: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``[..., k + 1]`` logits of the kept ``classes`` ``[..., k]`` and, last, of all others of ``[..., V]`` as one class."""
    check_temperature(temperature)
    logits, classes = at_least_float32(logits), classes.long()
    return torch.cat([logits.gather(-1, classes), _rest(logits, classes, temperature)], dim=-1)


def tail_mass(kept: TopK, temperature: float = 1.0) -> Tensor:
    """Return the teacher's probability of all classes that were not kept, ``[...]``."""
    return (at_least_float32(kept.logits) / temperature).softmax(-1)[..., -1]


def tail_error_bound(student: Tensor, kept: TopK, temperature: float = 1.0) -> Tensor:
    """Return what the forward KL of kept logits can be too small by at most, ``[...]``: ``p_tail (log q_tail - min log q_v)``.

    ``KL(p~ || q~) <= -min log q~_v`` because p~ has an entropy of at least 0; the minimum is over the tail.
    ``student`` are its whole logits ``[..., V]``; multiply by ``T^2`` where the loss does.
    """
    scaled = at_least_float32(student) / temperature
    outside = torch.ones_like(scaled, dtype=torch.bool).scatter(-1, kept.classes.long(), False)
    log_tail = scaled.masked_fill(~outside, -torch.inf).logsumexp(-1)
    least = scaled.masked_fill(~outside, torch.inf).amin(-1)
    return tail_mass(kept, temperature) * (log_tail - least)


def _rest(logits: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """Return ``T logsumexp(z / T)`` over the classes that are not named, ``[..., 1]``."""
    others = logits.scatter(-1, classes, -torch.inf)
    return temperature * (others / temperature).logsumexp(-1, keepdim=True)
