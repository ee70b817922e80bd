"""Sentence embeddings: an encoder and the mean of its last hidden states."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class OverEncoderConfig(PreTrainedConfig):
    """The config of a network that reads an unchanged encoder: what it asks the encoder's own config for.

    Args:
        encoder: the encoder's config, or its dict as it stands in a ``config.json``.
        kwargs: what transformers itself keeps in a ``config.json``.
    """

    def __init__(self, encoder: PreTrainedConfig | dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.encoder = AutoConfig.for_model(**encoder) if isinstance(encoder, dict) else encoder
        super().__init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """The width of the hidden states."""
        return self.encoder.hidden_size

    @property
    def vocab_size(self) -> int:
        """The number of pieces that the encoder knows."""
        return self.encoder.vocab_size

    @property
    def max_position_embeddings(self) -> int:
        """The longest text, in pieces."""
        return self.encoder.max_position_embeddings


class SentenceEncoderConfig(OverEncoderConfig):
    """The encoder's own config, and over which positions its hidden states are averaged.

    Args:
        encoder: the encoder's config, or its dict as it stands in a ``config.json``.
        pool_padding: average over padding too.
        kwargs: what transformers itself keeps in a ``config.json``.
    """

    model_type = "kdbench_sentence_encoder"

    def __init__(
        self,
        encoder: PreTrainedConfig | dict[str, Any] | None = None,
        pool_padding: bool = False,
        **kwargs: Any,
    ) -> None:
        self.pool_padding = pool_padding
        super().__init__(encoder, **kwargs)


@dataclass
class SentenceEncoderOutput(ModelOutput):
    """What a :class:`SentenceEncoder` returns.

    Attributes:
        embedding: ``[B, H]``, one vector a sentence.
        last_hidden_state: ``[B, S, H]``.
    """

    embedding: Tensor | None = None
    last_hidden_state: Tensor | None = None


class SentenceEncoder(PreTrainedModel):
    """An encoder whose last hidden states are averaged over the real tokens of a sentence.

    ``embedding_b = sum_s a_bs h_bs / sum_s a_bs`` with the attention mask ``a`` (Reimers and Gurevych 2019, arXiv
    1908.10084). With ``pool_padding`` the mean is over all S positions, as the RO-STS baseline takes it
    (github.com/dumitrescustefan/RO-STS): then the padding of a batch changes the embeddings.
    """

    config_class = SentenceEncoderConfig
    base_model_prefix = "encoder"

    def __init__(self, config: SentenceEncoderConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder)
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None  # nothing reads it, and DDP refuses parameters without gradient
        self.has_token_types = "token_type_ids" in inspect.signature(self.encoder.forward).parameters
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> SentenceEncoderOutput:
        """Return one embedding a sentence.

        Args:
            input_ids: ``[B, S]``.
            attention_mask: ``[B, S]``, 1 at real tokens; all ones by default.
            token_type_ids: ``[B, S]``, where the encoder has token types.

        Raises:
            ValueError: token types are given to an encoder without them (transformers would ignore them in silence).
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        if types and not self.has_token_types:
            raise ValueError(f"{type(self.encoder).__name__} takes no token_type_ids")
        states = self.encoder(input_ids=input_ids, attention_mask=mask, **types).last_hidden_state
        embedding = states.mean(dim=1) if self.config.pool_padding else masked_mean(states, mask)
        return SentenceEncoderOutput(embedding=embedding, last_hidden_state=states)


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean ``[B, H]`` of ``states`` ``[B, S, H]`` where ``mask`` ``[B, S]`` is true; 0 for a row without any."""
    real = mask.bool().unsqueeze(-1)
    return states.masked_fill(~real, 0.0).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def last_token(states: Tensor, mask: Tensor) -> Tensor:
    """Return the state ``[B, H]`` of the last token of ``[B, S, H]`` where ``mask`` is true, whichever side is padded."""
    places = torch.arange(mask.shape[1], device=mask.device)
    last = places.masked_fill(~mask.bool(), 0).amax(dim=1)
    return states[torch.arange(len(states), device=states.device), last]


AutoConfig.register(SentenceEncoderConfig.model_type, SentenceEncoderConfig)
AutoModel.register(SentenceEncoderConfig, SentenceEncoder)
