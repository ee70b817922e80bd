"""Calibration: what the modules of a network are given on a few batches, seen through hooks; padding is left out.

A network is any module that is called with the tensors of a view by name.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import Cache

from kdbench.errors import UserError

View = Mapping[str, Tensor]


def real_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the values of real tokens ``[N, ..]``, one row a token.

    Args:
        values: ``[B, S, C]``, ``[B S, C]``, or of heads ``[B, H, S, d]``, whose tokens have ``H d`` values; of anything else
            (a vector a text) all rows count.
        mask: ``[B, S]``, not 0 where a token is real; None: all are.
    """
    if values.dim() == 4:
        values = values.transpose(1, 2).flatten(2)
    if mask is None:
        return values.flatten(0, -2)
    if values.dim() == 3 and values.shape[:2] == mask.shape:
        return values[mask.bool()]
    if values.dim() == 2 and len(values) == mask.numel():
        return values[mask.flatten().bool()]
    return values.flatten(0, -2)


def spread_tokens(tokens: Tensor, like: Tensor, mask: Tensor | None) -> Tensor:
    """Return the values of real tokens ``[N, C]`` in their places, the shape of ``like`` ``[B, S, C]``; zeros in the padding."""
    if mask is None:
        return tokens.view_as(like)
    spread = torch.zeros_like(like)
    spread[mask.bool()] = tokens
    return spread


class RunningRange:
    """The range of an activation: the mean over batches of each batch's lowest and highest value.

    With a quantile p below 1 a batch's highest value is the p-quantile of the highest values of its tokens, and its lowest that
    of the lowest ones, from the other side: token-wise clipping (Wei et al. 2022, arXiv 2209.13325). The official code calls
    both ``AvgMinMax`` and ``AvgTokenQuantile``.

    Args:
        quantile: p, above 0.
    """

    def __init__(self, quantile: float = 1.0) -> None:
        if not 0 < quantile <= 1:
            raise ValueError(f"a quantile of tokens lies in (0, 1], not at {quantile}")
        self.quantile = quantile
        self.lows: list[Tensor] = []
        self.highs: list[Tensor] = []

    def update(self, tokens: Tensor) -> None:
        """See the tokens of a batch ``[N, C]``."""
        self.lows.append(-torch.quantile(-tokens.amin(1), self.quantile))
        self.highs.append(torch.quantile(tokens.amax(1), self.quantile))

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest value; raise ValueError when no batch was seen."""
        if not self.lows:
            raise ValueError("no batch was seen: there is no range")
        return torch.stack(self.lows).mean(), torch.stack(self.highs).mean()


@torch.no_grad()
def observed_ranges(
    network: nn.Module, modules: Mapping[str, nn.Module], views: Iterable[View], quantile: float = 1.0
) -> dict[str, tuple[Tensor, Tensor]]:
    """Run a network on views and return the range of the first input of each module (:class:`RunningRange`).

    Raises:
        UserError: there is no view, or a module was never called.
    """
    ranges = {name: RunningRange(quantile) for name in modules}
    mask: Tensor | None = None

    def seen(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: ranges[name].update(real_tokens(inputs[0], mask))

    handles = [module.register_forward_pre_hook(seen(name)) for name, module in modules.items()]
    try:
        for view in views:
            mask = view.get("attention_mask")
            network(**view)
    finally:
        for handle in handles:
            handle.remove()
    for name, each in ranges.items():
        if not each.lows:
            raise UserError(f"Calibration has shown nothing to '{name}': give it a batch that goes through all layers.")
    return {name: each.ends() for name, each in ranges.items()}


class Call(NamedTuple):
    """What a module was called with."""

    positional: tuple[Any, ...]
    named: dict[str, Any]

    @property
    def states(self) -> Tensor:
        """The hidden states that it was given."""
        return self.named["hidden_states"] if "hidden_states" in self.named else self.positional[0]

    def repeat(
        self, module: nn.Module, states: Tensor, parameters: dict[str, Tensor], result: nn.Module | None = None
    ) -> Tensor:
        """Return what the module makes of other states and parameters, the rest being as it was, but for a cache.

        Args:
            module: the one that was called.
            states: in the place of those that it was given.
            parameters: by their names, in the place of its own.
            result: a module inside, whose input is returned; by default the first output of the module itself.
        """
        named = {name: None if isinstance(value, Cache) else value for name, value in self.named.items()}
        positional = self.positional
        if "hidden_states" in named:
            named["hidden_states"] = states
        else:
            positional = (states, *positional[1:])
        read: list[Tensor] = []
        handle = result.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0])) if result else None
        try:
            output = functional_call(module, parameters, positional, named)
        finally:
            if handle is not None:
                handle.remove()
        if result is not None:
            return read[0]
        return output if isinstance(output, Tensor) else output[0]


class _Reached(Exception):
    """Ends a forward that has gone far enough."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


@torch.no_grad()
def reached(network: nn.Module, module: nn.Module, view: View) -> Call:
    """Run a network on a view until it calls a module, and return with what.

    Raises:
        ValueError: it never does.
    """

    def stop(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _Reached(Call(positional, named))

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        network(**view)
    except _Reached as end:
        return end.call
    finally:
        handle.remove()
    raise ValueError(f"{type(network).__name__} never calls this {type(module).__name__}")
