"""Simulated quantisation of transformers' own networks: values lie on the grid of an integer type and stay real numbers.

It tells what quantisation costs in accuracy. Nothing is smaller or faster for it: the arithmetic is that of float32.

Quantised are the weights of all linear layers, their inputs, and the inputs of both products of attention: query, key, value and
probabilities. Not quantised are norms, softmax, shortcuts, embeddings, and the output embeddings that a language model shares with
them. Activations with a range for each token or group leave the products of attention as they are (Wei et al. 2023, arXiv
2304.09145, its official code).
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.pytorch_utils import Conv1D

from kdbench.compression.calibration import real_tokens
from kdbench.compression.quantisers import Quantiser
from kdbench.errors import UserError
from kdbench.models.folding import attention_modules, matrix

ATTENTION = "kdbench_quantised"
"""An attention implementation of transformers: its own ``eager``, with rounded inputs of both products."""
PRODUCTS = ("query", "key", "value", "probabilities")

Mode = Literal["off", "batch", "fixed"]


class Rounding(nn.Module):
    """A place where an activation is rounded to its grid.

    Args:
        quantiser: the grid. With one range for the whole tensor this is ``low`` .. ``high`` in the mode ``fixed``, and that of
            the real tokens at hand in the mode ``batch``; parts of their own have what is seen in both.

    Attributes:
        mode: ``off``, ``batch`` or ``fixed``.
        mask: ``[B, S]``, the real tokens of the batch at hand.
    """

    low: Tensor
    high: Tensor

    def __init__(self, quantiser: Quantiser) -> None:
        super().__init__()
        self.quantiser = quantiser
        self.mode: Mode = "off"
        self.mask: Tensor | None = None
        if self.static:
            self.register_buffer("low", torch.zeros(()))
            self.register_buffer("high", torch.zeros(()))

    @property
    def static(self) -> bool:
        """Whether there is one range, which is known before."""
        return self.quantiser.part == "tensor"

    def forward(self, values: Tensor) -> Tensor:
        """Return the values on the grid."""
        if self.mode == "off":
            return values
        if not self.static:
            return self.quantiser(values)
        if self.mode == "fixed":
            return self.quantiser.grid.rounded(values, self.low, self.high)
        tokens = real_tokens(values, self.mask)
        return self.quantiser.grid.rounded(values, tokens.min(), tokens.max())


class _Quantised(nn.Module):
    """What a quantised linear layer adds to its class: a rounded input and, in the mode ``batch``, a rounded weight."""

    def take(self, layer: nn.Module, weights: Quantiser, activations: Quantiser) -> None:
        """Take the parameters of a layer, by their names."""
        self.weight, self.bias = layer.weight, layer.bias
        self.quantise_weight, self.rounding = weights, Rounding(activations)

    def forward(self, values: Tensor) -> Tensor:
        """Return ``Q(X) W^T + b``."""
        weight = matrix(self)
        if self.rounding.mode == "batch":
            weight = self.quantise_weight(weight)
        return functional.linear(self.rounding(values), weight, self.bias)

    @torch.no_grad()
    def round_weight(self) -> None:
        """Put the weight on its grid, in its place."""
        matrix(self).copy_(self.quantise_weight(matrix(self)))


class QuantisedLinear(_Quantised, nn.Linear):
    """A linear layer with a rounded input; see :func:`quantise`."""

    def __init__(self, layer: nn.Linear, weights: Quantiser, activations: Quantiser) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.take(layer, weights, activations)


class QuantisedConv1D(_Quantised, Conv1D):
    """GPT-2's linear layer with a rounded input; see :func:`quantise`."""

    def __init__(self, layer: Conv1D, weights: Quantiser, activations: Quantiser) -> None:
        super().__init__(layer.nf, layer.nx)
        self.take(layer, weights, activations)


KINDS = {nn.Linear: QuantisedLinear, Conv1D: QuantisedConv1D}


def quantise(network: PreTrainedModel, weights: Quantiser, activations: Quantiser) -> None:
    """Put a quantised layer in the place of every linear one, and round what attention multiplies; all of it is ``off`` yet.

    Raises:
        UserError: the network is quantised already, or of another kind, or a layer cannot be cut into groups.
    """
    attention = attention_modules(network)
    if roundings(network):
        raise UserError(
            f"This {type(network).__name__} is quantised already: begin with the one that it was made from."
        )
    for path, layer in list(network.named_modules()):
        if type(layer) not in KINDS or layer is network.get_output_embeddings():
            continue
        for quantiser in (weights, activations):
            if quantiser.size is not None and matrix(layer).shape[1] % quantiser.size:
                raise UserError(
                    f"The {matrix(layer).shape[1]} inputs of the layer '{path}' cannot be cut into groups of {quantiser.size}: "
                    "choose another size."
                )
        network.set_submodule(path, KINDS[type(layer)](layer, weights, activations))
    if activations.part != "tensor":
        return
    for path in attention:
        places = {name: Rounding(activations) for name in PRODUCTS}
        network.get_submodule(path).rounding = nn.ModuleDict(places)
    network.set_attn_implementation(ATTENTION)


def roundings(network: nn.Module) -> dict[str, Rounding]:
    """Return every place of a network where an activation is rounded, by its path."""
    return {path: module for path, module in network.named_modules() if isinstance(module, Rounding)}


def set_mode(network: nn.Module, mode: Mode, mask: Tensor | None = None) -> None:
    """Set what all roundings of a network do; ``mask`` are the real tokens of the batch that follows."""
    for each in roundings(network).values():
        each.mode, each.mask = mode, mask


def round_weights(network: nn.Module) -> None:
    """Put the weights of all quantised layers on their grids."""
    for module in network.modules():
        if isinstance(module, _Quantised):
            module.round_weight()


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Return attention ``[B, S, heads, d]`` and its probabilities for ``[B, heads, S, d]``."""
    at, groups = module.rounding, query.shape[1] // key.shape[1]
    query, key, value = at["query"](query), at["key"](key), at["value"](value)
    key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = functional.dropout(scores.softmax(-1), dropout, module.training)
    return (at["probabilities"](probabilities) @ value).transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(ATTENTION, _attention_forward)
AttentionMaskInterface.register(ATTENTION, eager_mask)
