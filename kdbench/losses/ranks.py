"""Rows of all devices together, for losses whose value belongs to the whole batch."""

import torch
from torch import Tensor, distributed


def over_ranks(rows: Tensor) -> Tensor:
    """Return the rows of all ranks in the order of the ranks, as many as each has; only a rank's own carry a gradient."""
    ranks = range(distributed.get_world_size())
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in ranks]
    distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    longest = max(int(count) for count in counts)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in ranks]
    distributed.all_gather(parts, padded)
    own = distributed.get_rank()
    return torch.cat([rows if rank == own else parts[rank][: int(counts[rank])] for rank in ranks])
