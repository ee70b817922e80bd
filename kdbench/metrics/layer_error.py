"""How far the layers of a changed network are from those of the original."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class LayerError(Metric):
    """The mean over layers of ``sum (y' - y)^2 / sum y^2``: 0 where nothing changed, 1 for outputs of nothing but zeros.

    Args:
        layers: how many there are.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    lost: Tensor
    whole: Tensor

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.add_state("lost", torch.zeros(layers, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("whole", torch.zeros(layers, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, changed: Sequence[Tensor], original: Sequence[Tensor]) -> None:
        """Count the outputs of each layer, of one shape in both."""
        errors = zip(changed, original, strict=True)
        self.lost += torch.stack([(ours - theirs).double().square().sum() for ours, theirs in errors])
        self.whole += torch.stack([values.double().square().sum() for values in original])

    def compute(self) -> Tensor:
        """Return the mean; NaN when nothing was counted."""
        return (self.lost / self.whole).mean()
