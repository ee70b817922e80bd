"""Packed batches: the real tokens of a padded batch in one row, without the padding."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Stage = Literal["padded", "repad", "packed"]
Plan = TypeVar("Plan")


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Where the real tokens of a batch ``[B, S]`` are, and how they lie in one row ``[T]``.

    The real tokens of a row, in their order, are a *sequence* of length ``l_b``; sequence follows sequence, and
    ``T = sum_b l_b``. Padding may stand to the right, to the left or in between: a sequence closes over its gaps.

    Attributes:
        place: ``[T]`` int64, the place ``b S + s`` of each packed token (the paper's ``word_idx``).
        position_ids: ``[T]`` int64, the number of each token in its sequence, from 0.
        cu_seqlens: ``[B + 1]`` int32, where each sequence begins, and T (the paper's ``batch_idx``).
        lengths: ``l_b``, on the host.
        padded_length: ``S``.

    Source: Zhai et al. 2023, arXiv 2210.03052, the padding-free algorithm.
    """

    place: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    padded_length: int
    _plans: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, mask: Tensor) -> "PackedBatch":
        """Return the packed batch of an attention mask ``[B, S]``, 1 or True at real tokens.

        The lengths are read by the host: on a GPU the call waits for it, so make the batch where the mask is made.

        Raises:
            ValueError: the mask is not ``[B, S]`` of zeros and ones, or a row has no real token.
        """
        real = mask.bool()
        if mask.dim() != 2 or not torch.equal(real.to(mask.dtype), mask):
            raise ValueError(f"an attention mask is [B, S], of zeros and ones; this one is {tuple(mask.shape)}")
        counts = real.sum(dim=1)
        lengths = tuple(counts.tolist())
        if not all(lengths):
            raise ValueError(f"row {lengths.index(0)} of the attention mask has no real token")
        place = real.flatten().nonzero().squeeze(1)
        return cls(
            place=place,
            position_ids=(real.cumsum(dim=1) - 1).flatten()[place],
            cu_seqlens=F.pad(counts.cumsum(dim=0), (1, 0)).int(),
            lengths=lengths,
            padded_length=mask.size(1),
        )

    @property
    def batch_size(self) -> int:
        """The number of sequences, B."""
        return len(self.lengths)

    @cached_property
    def max_length(self) -> int:
        """The length of the longest sequence."""
        return max(self.lengths)

    @cached_property
    def mask(self) -> Tensor:
        """The attention mask, bool ``[B, S]``."""
        return self.unpack(torch.ones_like(self.place, dtype=torch.bool))

    def pack(self, values: Tensor) -> Tensor:
        """Return the values ``[T, ...]`` of the real tokens of ``[B, S, ...]``.

        Raises:
            ValueError: ``values`` are not ``[B, S, ...]``.
        """
        if values.shape[:2] != (self.batch_size, self.padded_length):
            raise ValueError(f"the batch is {[self.batch_size, self.padded_length]}, the values {tuple(values.shape)}")
        return values.flatten(0, 1).index_select(0, self.place)

    def unpack(self, values: Tensor) -> Tensor:
        """Return ``[B, S, ...]`` with the values ``[T, ...]`` at the real tokens and zeros in the padding.

        Raises:
            ValueError: ``values`` are not ``[T, ...]``.
        """
        if len(values) != len(self.place):
            raise ValueError(f"the batch has {len(self.place)} tokens, and the values are {tuple(values.shape)}")
        padded = values.new_zeros(self.batch_size * self.padded_length, *values.shape[1:])
        return padded.index_copy(0, self.place, values).unflatten(0, (self.batch_size, self.padded_length))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedBatch":
        """Return the batch on another device, as ``Tensor.to`` does; what was planned is planned anew there."""
        names = ("place", "position_ids", "cu_seqlens")
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names}
        return self if moved["place"] is self.place else replace(self, **moved)

    def planned(self, plan: Callable[..., Plan], *arguments: Any) -> Plan:
        """Return ``plan(self, *arguments)``, made by the first call with them and kept as long as the batch."""
        key = (plan, *arguments)
        if key not in self._plans:
            self._plans[key] = plan(self, *arguments)
        return self._plans[key]


def multiply_adds(lengths: list[int], max_length: int, hidden: int, feed_forward: int, stage: Stage) -> int:
    """Return the multiply-adds of one encoder layer on a batch, without norms, softmax and biases.

    With h and f the widths, S the padded length and T the sum of the B lengths l_b:

    - ``padded``: ``B S (4 h^2 + 2 h f) + 2 B S^2 h``;
    - ``repad``, packed outside attention: ``T (4 h^2 + 2 h f) + 2 B S^2 h``;
    - ``packed``, packed in attention too: ``T (4 h^2 + 2 h f) + 2 h sum_b l_b^2``.

    Args:
        lengths: the lengths of the sequences.
        max_length: the length that they are padded to, where they are.
        hidden: the width of the states.
        feed_forward: the inner width of the feed-forward.
        stage: one of the above.

    Source: Zhai et al. 2023, arXiv 2210.03052: its two stages, (a) zero padding and (b) fused attention.
    """
    padded = len(lengths) * max_length
    tokens = padded if stage == "padded" else sum(lengths)
    pairs = sum(length**2 for length in lengths) if stage == "packed" else padded * max_length
    return tokens * (4 * hidden**2 + 2 * hidden * feed_forward) + 2 * hidden * pairs
