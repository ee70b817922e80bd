"""Surgeries: a network in, a network out; any origin may carry a list of them."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
import transformers
from torch import nn

from kdbench.errors import UserError
from kdbench.models.layers import Kind, layer_map
from kdbench.models.sentence import SentenceEncoder
from kdbench.models.taps import transformer_blocks

if TYPE_CHECKING:
    from kdbench.models.origins import Facts


class Surgery:
    """A change of a network after it was made or loaded."""

    def __call__(self, network: nn.Module, facts: "Facts") -> nn.Module:
        """Return the changed network; ``facts`` are what the data know."""
        raise NotImplementedError


class CopyLayers(Surgery):
    """A shallower network with chosen layers of a BERT; embeddings and masked-LM head are copied too.

    The layout ``distilbert`` follows DistilBERT's extraction script: token-type embeddings and pooler are dropped.

    Args:
        layers: which layers, from 0; or
        count: how many, chosen by ``kind``.
        kind: see :func:`kdbench.models.layers.layer_map`.
        layout: the same architecture, or DistilBERT's.
    """

    def __init__(
        self,
        layers: list[int] | None = None,
        count: int | None = None,
        kind: Kind = "even",
        layout: Literal["same", "distilbert"] = "same",
    ) -> None:
        if (layers is None) == (count is None):
            raise ValueError("CopyLayers takes either 'layers' or 'count'")
        self.layers, self.count, self.kind, self.layout = layers, count, kind, layout

    def __call__(self, network: nn.Module, facts: "Facts") -> nn.Module:
        """Return the network of the chosen layers."""
        depth = len(transformer_blocks(network))
        layers = self.layers if self.layers is not None else layer_map(depth, self.count, self.kind)
        if not layers or not all(0 <= layer < depth for layer in layers):
            raise UserError(f"CopyLayers takes layers 0 to {depth - 1} of this network, not {layers}.")
        if self.layout == "distilbert":
            return _as_distilbert(network, layers)
        config = type(network.config)(**{**network.config.to_dict(), "num_hidden_layers": len(layers)})
        with _meta():
            made = type(network)(config)
        source = network.state_dict()
        prefix = _blocks_prefix(network)
        state = {}
        for name in made.state_dict():
            if name.startswith(prefix):
                place, _, rest = name.removeprefix(prefix).partition(".")
                state[name] = source[f"{prefix}{layers[int(place)]}.{rest}"]
            else:
                state[name] = source[name]
        return _filled(made, state)


class RandomWeights(Surgery):
    """The same architecture with fresh weights: the arm without a teacher's initialisation."""

    def __call__(self, network: nn.Module, facts: "Facts") -> nn.Module:
        """Return a network of the same config, initialised anew from the global seed."""
        return type(network)(network.config)


class AddHead(Surgery):
    """A task head on the encoder: transformers' own classification heads, or a sentence encoder for similarity.

    Args:
        task: what the head is for.
        dropout: before the head; default: the architecture's.
        pool_padding: for similarity: average over padding too.
    """

    def __init__(
        self,
        task: Literal["classification", "tagging", "similarity"],
        dropout: float | None = None,
        pool_padding: bool = False,
    ) -> None:
        self.task, self.dropout, self.pool_padding = task, dropout, pool_padding

    def __call__(self, network: nn.Module, facts: "Facts") -> nn.Module:
        """Return the encoder with a fresh head."""
        encoder = network.base_model
        if self.task == "similarity":
            bare = transformers.AutoModel.from_config(encoder.config)
            bare.load_state_dict(encoder.state_dict(), strict=False)
            return SentenceEncoder.of(bare, self.pool_padding)
        if not facts.labels:
            raise UserError(f"AddHead for {self.task} needs data with class names.")
        config = type(encoder.config)(**encoder.config.to_dict())
        config.id2label = dict(enumerate(facts.labels))
        config.label2id = {label: number for number, label in enumerate(facts.labels)}
        if self.dropout is not None:
            config.classifier_dropout = config.seq_classif_dropout = self.dropout
        kind = "AutoModelForTokenClassification" if self.task == "tagging" else "AutoModelForSequenceClassification"
        made = getattr(transformers, kind).from_config(config)
        missing, unexpected = made.base_model.load_state_dict(encoder.state_dict(), strict=False)
        foreign = [name for name in missing if "pooler" not in name] + [n for n in unexpected if "pooler" not in n]
        if foreign:
            raise UserError(f"The encoder does not fit {type(made).__name__}: {', '.join(foreign[:3])}.")
        return made


_TO_DISTILBERT = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
_HEAD_TO_DISTILBERT = {
    "cls.predictions.transform.dense": "vocab_transform",
    "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
}


def _as_distilbert(network: nn.Module, layers: list[int]) -> nn.Module:
    if not isinstance(network, transformers.BertForMaskedLM):
        raise UserError(f"The layout 'distilbert' is made from BertForMaskedLM, not from {type(network).__name__}.")
    bert = network.config
    config = transformers.DistilBertConfig(
        vocab_size=bert.vocab_size,
        max_position_embeddings=bert.max_position_embeddings,
        dim=bert.hidden_size,
        n_layers=len(layers),
        n_heads=bert.num_attention_heads,
        hidden_dim=bert.intermediate_size,
        dropout=bert.hidden_dropout_prob,
        attention_dropout=bert.attention_probs_dropout_prob,
        activation=bert.hidden_act,
        initializer_range=bert.initializer_range,
        pad_token_id=bert.pad_token_id,
    )
    with _meta():
        made = transformers.DistilBertForMaskedLM(config)
    source, state = network.state_dict(), {}
    for part in ("word_embeddings.weight", "position_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"):
        state[f"distilbert.embeddings.{part}"] = source[f"bert.embeddings.{part}"]
    for place, layer in enumerate(layers):
        for theirs, ours in _TO_DISTILBERT.items():
            for kind in ("weight", "bias"):
                name = f"distilbert.transformer.layer.{place}.{ours}.{kind}"
                state[name] = source[f"bert.encoder.layer.{layer}.{theirs}.{kind}"]
    for theirs, ours in _HEAD_TO_DISTILBERT.items():
        state |= {f"{ours}.{kind}": source[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    state["vocab_projector.weight"] = source["cls.predictions.decoder.weight"]
    state["vocab_projector.bias"] = source["cls.predictions.bias"]
    return _filled(made, state)


def _filled(made: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """Give a network that was made without storage copies of the weights; buffers that are not saved are made anew."""
    fresh = type(made)(made.config)
    fresh.load_state_dict({name: value.detach().clone() for name, value in state.items()}, strict=True)
    fresh.tie_weights()
    return fresh


@contextlib.contextmanager
def _meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


def _blocks_prefix(network: nn.Module) -> str:
    blocks = transformer_blocks(network)
    return next(name for name, module in network.named_modules() if module is blocks) + "."
