"""A learnt linear map from a student's width to a teacher's."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.parameter import UninitializedParameter, is_lazy


class Projection(nn.Module):
    """``h W^T (+ b)``, the regressor of hints (Romero et al. 2015, arXiv 1412.6550); trained with the student, not exported.

    The weight ``[H_T, H_S]`` is made at the first call, when both widths are known, from torch's global random numbers:
    uniform in ``+- 1 / sqrt(H_S)``, as ``nn.Linear``. Optimisers, copies and devices may come before that call. A state that
    is saved before it has no weight; one with a weight makes the weight of a projection that has none.

    Args:
        bias: whether a bias of 0 at first is learnt too.
    """

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.weight = UninitializedParameter()
        self.register_parameter("bias", UninitializedParameter() if bias else None)

    def forward(self, student: Tensor, teacher_width: int) -> Tensor:
        """Return ``[..., H_T]`` of the student's states ``[..., H_S]``.

        Raises:
            ValueError: the widths are others than at the first call.
        """
        if is_lazy(self.weight):
            self._make(student, teacher_width)
        made = tuple(self.weight.shape)
        if made != (teacher_width, student.shape[-1]):
            raise ValueError(
                f"the projection maps the width {made[1]} to {made[0]}, "
                f"got states of {student.shape[-1]} for a teacher of {teacher_width}: give each pair of widths its own"
            )
        return linear(student.to(self.weight.dtype), self.weight, self.bias)

    def _make(self, student: Tensor, teacher_width: int) -> None:
        width = student.shape[-1]
        dtype = student.dtype if student.dtype == torch.float64 else torch.float32
        # Drawn on the CPU, so that every device starts from the same numbers.
        drawn = nn.init.kaiming_uniform_(torch.empty(teacher_width, width, dtype=dtype), a=math.sqrt(5))
        self._take("weight", drawn.to(student.device))
        if self.bias is not None:
            self._take("bias", torch.zeros(teacher_width, dtype=dtype, device=student.device))

    def _take(self, name: str, value: Tensor) -> None:
        parameter = getattr(self, name)
        parameter.materialize(value.shape, value.device, value.dtype)
        with torch.no_grad():
            parameter.copy_(value)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if not is_lazy(self.weight):
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        empty = {name: each for name, each in self.named_parameters() if is_lazy(each)}
        for name, parameter in empty.items():
            if (value := state_dict.get(prefix + name)) is not None:
                parameter.materialize(value.shape, dtype=value.dtype)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if is_lazy(self.weight):  # saved before the first call: there is nothing to miss
            for name in empty:
                if prefix + name in missing_keys:
                    missing_keys.remove(prefix + name)
