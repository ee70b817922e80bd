"""Surgeries: a network goes in, another network comes out; an origin carries a list of them."""

import abc
import copy
import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdbench.errors import UserError, nearest
from kdbench.models.layers import LayerKind, layer_map, transformer_blocks


@dataclasses.dataclass
class Facts:
    """What the data know and a network has to fit.

    Args:
        tokenizer: with the vocabulary.
        labels: the names of the classes in the order of their numbers.
        image: channels, height and width of the images that the network sees.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    labels: list[str] | None = None
    image: tuple[int, int, int] | None = None

    @classmethod
    def seen(
        cls, view: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase | None, labels: list[str] | None
    ) -> "Facts":
        """Return what a view of a batch tells, beside the tokenizer that makes it and the labels."""
        pixels = view.get("pixel_values")
        return cls(tokenizer, labels, None if pixels is None else tuple(pixels.shape[1:]))


class Surgery(abc.ABC):
    """From network to network."""

    @abc.abstractmethod
    def __call__(self, network: nn.Module, facts: Facts) -> nn.Module:
        """Return the changed network; ``facts`` are what the data know."""


class CopyLayers(Surgery):
    """A smaller network with some of the encoder layers; everything outside the layers is copied too.

    Args:
        layers: the layers to take, from 0, in the order in which the new network has them; or
        count: how many to take, chosen by ``kind`` (:func:`~kdbench.models.layers.layer_map`).
        kind: the layer map.
        layout: ``same`` architecture, or ``distilbert``: a BERT (bare, or with its MLM head) becomes a DistilBERT as the
            extraction script makes it (Sanh et al. 2019, arXiv 1910.01108): pooler and token-type embeddings are dropped.
            Even with all the layers its outputs are therefore the teacher's without the type-0 vector, and training has
            to make up for it.

    Raises:
        UserError: both or neither of ``layers`` and ``count``, a layer that the network does not have, or a network that is
            no BERT where the layout is ``distilbert``.
    """

    def __init__(
        self,
        layers: list[int] | None = None,
        count: int | None = None,
        kind: LayerKind = "even",
        layout: Literal["same", "distilbert"] = "same",
    ) -> None:
        if (layers is None) == (count is None):
            raise UserError("CopyLayers takes either 'layers' (their numbers, from 0) or 'count' (how many).")
        if layout not in ("same", "distilbert"):
            raise UserError(f"CopyLayers has no layout '{layout}': take 'same' or 'distilbert'.")
        self.layers, self.count, self.kind, self.layout = layers, count, kind, layout

    def __call__(self, network: nn.Module, facts: Facts) -> nn.Module:
        """Return the network of the chosen layers."""
        if not isinstance(network, PreTrainedModel):
            raise UserError(f"CopyLayers needs a transformers model, and {type(network).__name__} is none.")
        path, blocks = transformer_blocks(network)
        layers = self.layers if self.layers is not None else layer_map(len(blocks), self.count, self.kind)
        if not layers or any(not 0 <= layer < len(blocks) for layer in layers):
            raise UserError(
                f"CopyLayers cannot take the layers {layers} of a network with layers 0 to {len(blocks) - 1}."
            )
        chosen = _chosen(network.state_dict(), path, layers)
        if self.layout == "distilbert":
            return _distilbert(network, chosen, len(layers))
        config = copy.deepcopy(network.config)
        inner = getattr(config, "encoder", config)
        inner.num_hidden_layers = len(layers)
        if getattr(inner, "layer_types", None):
            inner.layer_types = [inner.layer_types[layer] for layer in layers]
        student = _empty_like(network, config)
        missing, unexpected = student.load_state_dict(chosen, strict=False)
        if wrong := [*missing, *unexpected]:  # ModernBERT's first block, for one, has no norm in front
            raise UserError(
                f"CopyLayers: the layers {layers} do not fit their new places ({wrong[0]}): keep layer 0 first."
            )
        return student


class RandomWeights(Surgery):
    """The same architecture with fresh random weights, in another size where asked: it keeps the vocabulary of its origin.

    Args:
        config: what is changed of the config, such as ``{num_hidden_layers: 6}``.
        architecture: another class of transformers with the same config, such as ``BertForMaskedLM`` of a ``BertModel``.

    Raises:
        UserError: the config has no such key, or transformers no such class of it.
    """

    def __init__(self, config: dict[str, Any] | None = None, architecture: str | None = None) -> None:
        self.config, self.architecture = config or {}, architecture

    def __call__(self, network: nn.Module, facts: Facts) -> nn.Module:
        """Return a new network."""
        if not isinstance(network, PreTrainedModel):
            raise UserError(f"RandomWeights needs a transformers model, and {type(network).__name__} is none.")
        config = copy.deepcopy(network.config)
        known = {*config.to_dict(), *config.attribute_map}
        for key, value in self.config.items():
            if key not in known:
                raise UserError(f"RandomWeights: {type(config).__name__} has no '{key}'.{nearest(key, known)}")
            setattr(config, key, value)
        if self.architecture is None:
            return _empty_like(network, config)
        import transformers

        kind = getattr(transformers, self.architecture, None)
        if getattr(kind, "config_class", None) is not type(config):
            raise UserError(
                f"RandomWeights: '{self.architecture}' is no class of transformers with a {type(config).__name__}."
            )
        config.architectures = [self.architecture]
        with torch.device(network.device):
            return kind(config)


class ScaleWeights(Surgery):
    """Chosen parameters times a number, where parts of a new network begin too small or too large.

    Transformers' image networks, for one, begin with position embeddings of a standard deviation of ``initializer_range``,
    which a narrow network does not notice beside its patches.

    Args:
        factors: by patterns of the parameters' names, such as ``"*.position_embeddings"``.
    """

    def __init__(self, factors: dict[str, float]) -> None:
        self.factors = factors

    @torch.no_grad()
    def __call__(self, network: nn.Module, facts: Facts) -> nn.Module:
        """Return the same network; raise :class:`UserError` where a pattern fits no parameter."""
        parameters = dict(network.named_parameters())
        for pattern, factor in self.factors.items():
            found = fnmatch.filter(parameters, pattern)
            if not found:
                raise UserError(f"ScaleWeights: no parameter is named '{pattern}'.{nearest(pattern, parameters)}")
            for name in found:
                parameters[name].mul_(factor)
        return network


class AddHead(Surgery):
    """The encoder of a network under a fresh head; whatever head it had is left behind.

    Args:
        task: ``tagging`` (a label a token) and ``classification`` (a label a sequence or an image) take the architecture's own
            head, with the label names of the data; ``similarity`` takes a :class:`~kdbench.models.sentence.SentenceEncoder`.
        dropout: of the head; transformers' default for the architecture when not given.

    Raises:
        UserError: the data have no labels, or transformers has no such head for the architecture.
    """

    def __init__(self, task: Literal["tagging", "classification", "similarity"], dropout: float | None = None) -> None:
        if task not in ("tagging", "classification", "similarity"):
            raise UserError(f"AddHead has no task '{task}': take 'tagging', 'classification' or 'similarity'.")
        if task == "similarity" and dropout is not None:
            raise UserError("AddHead: the similarity head is a mean and has no dropout; leave 'dropout' out.")
        self.task, self.dropout = task, dropout

    def __call__(self, network: nn.Module, facts: Facts) -> nn.Module:
        """Return the network with the new head."""
        if not isinstance(network, PreTrainedModel):
            raise UserError(f"AddHead needs a transformers model, and {type(network).__name__} is none.")
        base = network.base_model
        config = copy.deepcopy(base.config)
        with torch.device(base.device):
            made = self._similarity(config) if self.task == "similarity" else self._labelled(base, config, facts.labels)
        # A pooler belongs to the head: some heads bring a fresh one, others have no use for it. Our image networks are their own
        # base, classifier included.
        kept = {key: value for key, value in base.state_dict().items() if not key.startswith("classifier.")}
        missing, unexpected = made.base_model.load_state_dict(kept, strict=False)
        if wrong := [key for key in (*missing, *unexpected) if not key.startswith(("pooler.", "classifier."))]:
            raise UserError(
                f"AddHead: {type(made).__name__} does not take the weights of {type(base).__name__}: {wrong[0]}."
            )
        return made

    def _similarity(self, config: PreTrainedConfig) -> PreTrainedModel:
        from kdbench.models.sentence import SentenceEncoder, SentenceEncoderConfig

        return SentenceEncoder(SentenceEncoderConfig(encoder=config))

    def _labelled(self, base: PreTrainedModel, config: PreTrainedConfig, labels: list[str] | None) -> PreTrainedModel:
        import transformers

        if not labels:
            raise UserError(f"AddHead: a {self.task} head needs the label names of the data, and these data have none.")
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        for name in ("classifier_dropout", "seq_classif_dropout"):
            if self.dropout is not None and hasattr(config, name):
                setattr(config, name, self.dropout)
        of_whole = transformers.AutoModelForSequenceClassification
        if base.main_input_name == "pixel_values":
            of_whole = transformers.AutoModelForImageClassification
        kinds = {"tagging": transformers.AutoModelForTokenClassification, "classification": of_whole}
        try:
            made = kinds[self.task].from_config(config)
        except ValueError as error:
            raise UserError(
                f"transformers has no {self.task} head for the architecture '{config.model_type}'."
            ) from error
        if self.dropout is not None:  # DistilBERT's tagger, for one, reads no dropout of its own from the config
            inside = {id(module) for module in made.base_model.modules()}
            for module in made.modules():
                if isinstance(module, nn.Dropout) and id(module) not in inside:
                    module.p = self.dropout
        return made


def _chosen(state: dict[str, Tensor], path: str, layers: list[int]) -> dict[str, Tensor]:
    """Return a state dict in which the chosen layers stand in the places 0, 1, .. and the others are left out."""
    prefix = f"{path}."
    kept = {key: value for key, value in state.items() if not key.startswith(prefix)}
    for key, value in state.items():
        number, _, rest = key.removeprefix(prefix).partition(".")
        if key.startswith(prefix):
            kept |= {f"{prefix}{new}.{rest}": value for new, old in enumerate(layers) if old == int(number)}
    return kept


def _empty_like(network: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Build a network of the same class on the same device, with a pooler only where the given one has it."""
    with torch.device(network.device):
        made = type(network)(config)
    if getattr(network, "pooler", made) is None:
        made.pooler = None
    return made


# BERT's names -> DistilBERT's; the longer ones come first.
DISTILBERT_NAMES = {
    "bert.": "distilbert.",
    "encoder.layer.": "transformer.layer.",
    "attention.self.query.": "attention.q_lin.",
    "attention.self.key.": "attention.k_lin.",
    "attention.self.value.": "attention.v_lin.",
    "attention.output.dense.": "attention.out_lin.",
    "attention.output.LayerNorm.": "sa_layer_norm.",
    "intermediate.dense.": "ffn.lin1.",
    "output.dense.": "ffn.lin2.",
    "output.LayerNorm.": "output_layer_norm.",
    "cls.predictions.transform.dense.": "vocab_transform.",
    "cls.predictions.transform.LayerNorm.": "vocab_layer_norm.",
    "cls.predictions.decoder.": "vocab_projector.",
}
DISTILBERT_DROPS = ("token_type_embeddings.", "pooler.", "cls.seq_relationship.", "cls.predictions.bias")


def _distilbert(network: PreTrainedModel, state: dict[str, Tensor], layers: int) -> PreTrainedModel:
    """Return a DistilBERT with the weights of a BERT's state dict (of ``layers`` layers)."""
    import transformers

    bert = network.config
    headed = isinstance(network, transformers.BertForMaskedLM | transformers.BertForPreTraining)
    if not headed and not isinstance(network, transformers.BertModel):
        raise UserError(
            f"CopyLayers makes a DistilBERT of BertModel, BertForMaskedLM or BertForPreTraining, not of "
            f"{type(network).__name__}: use the layout 'same', or add the head afterwards."
        )
    if bert.layer_norm_eps != 1e-12:
        raise UserError(
            f"CopyLayers: DistilBERT's layer norms have an epsilon of 1e-12 and this BERT's of {bert.layer_norm_eps}: "
            "use the layout 'same'."
        )
    config = transformers.DistilBertConfig(
        vocab_size=bert.vocab_size,
        max_position_embeddings=bert.max_position_embeddings,
        n_layers=layers,
        n_heads=bert.num_attention_heads,
        dim=bert.hidden_size,
        hidden_dim=bert.intermediate_size,
        dropout=bert.hidden_dropout_prob,
        attention_dropout=bert.attention_probs_dropout_prob,
        activation=bert.hidden_act,
        initializer_range=bert.initializer_range,
        pad_token_id=bert.pad_token_id,
        tie_word_embeddings=bert.tie_word_embeddings,
    )
    with torch.device(network.device):
        made = (transformers.DistilBertForMaskedLM if headed else transformers.DistilBertModel)(config)
    renamed = {}
    for key, value in state.items():
        if any(part in key for part in DISTILBERT_DROPS):
            continue
        for old, new in DISTILBERT_NAMES.items():
            key = key.replace(old, new)
        renamed[key] = value
    made.load_state_dict(renamed)
    return made
