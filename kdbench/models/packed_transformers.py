"""Packed batches for transformers' own encoders, which stay as they are and give the same outputs, without the padding."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import ModelOutput

from kdbench.errors import UserError
from kdbench.models.packed import PackedBatch
from kdbench.models.packed_attention import packed_attention

ATTENTION = "kdbench_packed"
"""An attention implementation of transformers: its own ``sdpa``, except in calls with a packed batch."""

FAMILIES = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
"""Encoders in which only attention joins tokens, by ``softmax(q k / sqrt(d))`` and with positions in the embeddings alone."""

TOKEN_HEADS = ("ForMaskedLM", "ForTokenClassification", "ElectraForPreTraining")


def run_packed(network: nn.Module, view: Mapping[str, Tensor]) -> ModelOutput:
    """Call an encoder of transformers on the real tokens of a view; return its output in the padded layout.

    On real tokens the output is that of ``network(**view)``, and so are the gradients; in the padding it is zero. A
    ``loss`` is the mean over what is labelled, as ever, for padding has no labels. Dropout draws other masks.

    Args:
        network: one that :func:`check_packable` accepts.
        view: ``input_ids`` ``[B, S]``, ``attention_mask`` and what else there is for each token.

    Returns:
        The network's output object; every tensor in it that has a value a token is ``[B, S, ...]``.

    Raises:
        UserError: the network cannot be packed, or its layers are recomputed in the backward pass, after the call.
        ValueError: the mask has a row without real tokens, or an input is not ``[B, S, ...]``.
    """
    output, packed = call_packed(network, view)
    return type(output)(**{name: unpacked(value, packed) for name, value in output.items()})


def call_packed(network: nn.Module, view: Mapping[str, Tensor]) -> tuple[ModelOutput, PackedBatch]:
    """Call an encoder as :func:`run_packed` does; return its output as it comes, one row, and where its tokens belong."""
    check_packable(network)
    packed, inputs = pack_view(network, view)
    with _attention(network):
        return network(**inputs), packed


def unpacked(value: Any, packed: PackedBatch) -> Any:
    """Return ``[B, S, ...]`` for a value a token ``[1, T, ...]``, also inside of tuples; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(unpacked(each, packed) for each in value)
    if isinstance(value, Tensor) and value.shape[:2] == (1, len(packed.place)):
        return packed.unpack(value.squeeze(0))
    return value


def pack_view(network: nn.Module, view: Mapping[str, Tensor]) -> tuple[PackedBatch, dict[str, Any]]:
    """Return the packed batch of a view, and what a network is called with in its place: one row, ``[1, T, ...]``.

    The network has to compute attention by ``kdbench_packed`` (``network.set_attn_implementation``), to which it hands
    the packed batch. Each token keeps the position that the network would give it in the padded view.

    Raises:
        UserError: the view has no ``input_ids``.
        ValueError: the mask has a row without real tokens, or an input is not ``[B, S, ...]``.
    """
    if "input_ids" not in view:
        raise UserError(f"A view can be packed if it has 'input_ids'; this one has: {', '.join(view)}.")
    ids, mask = view["input_ids"], view.get("attention_mask")
    packed = PackedBatch.of(torch.ones_like(ids) if mask is None else mask)
    values = {"position_ids": _position_ids(network, ids)} | dict(view)
    row = {name: packed.pack(value).unsqueeze(0) for name, value in values.items() if name != "attention_mask"}
    return packed, row | {"packed": packed}


def check_packable(network: nn.Module) -> None:
    """Check that a network gives the same outputs for packed batches.

    It does if attention is the only place where tokens meet, has no mask of its own and goes through transformers'
    interface, and if the head looks at each token alone.

    Raises:
        UserError: one sentence on what is in the way.
    """
    name, config = type(network).__name__, getattr(network, "config", None)
    if not isinstance(network, PreTrainedModel) or config.model_type not in FAMILIES:
        raise UserError(
            f"{name} cannot be packed: in other encoders than {', '.join(FAMILIES)} tokens may meet outside of "
            "attention, or attention may read positions from the row (relative positions, windows); call it padded."
        )
    if getattr(config, "is_decoder", False):
        raise UserError(f"{name} cannot be packed as a decoder: its attention is causal; call it padded.")
    if network is not network.base_model and not name.endswith(TOKEN_HEADS):
        raise UserError(
            f"{name} cannot be packed: its head is not one for each token, and a row holds many sequences; pack its "
            f"encoder, '{network.base_model_prefix}', alone."
        )
    if getattr(network.base_model, "pooler", None) is not None:
        raise UserError(
            f"{name} cannot be packed with its pooler, which reads the first token of a row, and a row holds many "
            "sequences: set 'pooler' to None."
        )


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    packed: PackedBatch | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return attention ``[1, T, heads, d]`` for ``[1, heads, T, d]``; without a packed batch, transformers' own."""
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, **kwargs)
    tokens = (each.squeeze(0).transpose(0, 1) for each in (query, key, value))
    return packed_attention(*tokens, packed, dropout=dropout).unsqueeze(0), None


def _position_ids(network: nn.Module, ids: Tensor) -> Tensor:
    """Return the positions that the network gives the tokens of a padded batch, ``[B, S]``."""
    embeddings = network.base_model.embeddings
    if hasattr(embeddings, "create_position_ids_from_input_ids"):  # RoBERTa counts from the id of its padding
        return embeddings.create_position_ids_from_input_ids(ids, embeddings.padding_idx)
    return torch.arange(ids.size(1), device=ids.device).expand_as(ids)


@contextlib.contextmanager
def _attention(network: PreTrainedModel) -> Iterator[None]:
    """Let the network attend by ``kdbench_packed`` inside."""
    before = network.config._attn_implementation
    if before == ATTENTION:
        yield
        return
    recomputed = any(getattr(module, "gradient_checkpointing", False) for module in network.modules())
    if recomputed and network.training and torch.is_grad_enabled():
        raise UserError(
            f"{type(network).__name__} recomputes its layers in the backward pass, after the packed call: call "
            f"network.set_attn_implementation('{ATTENTION}') before."
        )
    network.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        network.set_attn_implementation(before)


AttentionInterface.register(ATTENTION, _attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
