"""A sentence encoder: masked-mean pooling over a transformer's last hidden states."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput


class SentenceEncoderConfig(PretrainedConfig):
    """The config of a :class:`SentenceEncoder`: its encoder's config, and what is averaged."""

    model_type = "kdbench-sentence-encoder"

    def __init__(self, encoder: dict[str, Any] | None = None, pool_padding: bool = False, **rest: Any) -> None:
        super().__init__(**rest)
        self.encoder = encoder
        self.pool_padding = pool_padding


@dataclass
class SentenceOutput(ModelOutput):
    """What a :class:`SentenceEncoder` returns."""

    embedding: Tensor | None = None
    last_hidden_state: Tensor | None = None


class SentenceEncoder(PreTrainedModel):
    """A transformer with ``embedding = mean over real tokens of the last hidden states`` (arXiv 1908.10084).

    ``pool_padding`` in the config averages over padding too, as the baseline of RO-STS does.
    """

    config_class = SentenceEncoderConfig
    base_model_prefix = "encoder"

    def __init__(self, config: SentenceEncoderConfig) -> None:
        super().__init__(config)
        inner = dict(config.encoder)
        self.encoder = AutoModel.from_config(AutoConfig.for_model(**inner))
        self.post_init()

    @classmethod
    def of(cls, encoder: PreTrainedModel, pool_padding: bool = False) -> "SentenceEncoder":
        """Return a sentence encoder around an encoder, which it takes over."""
        config = SentenceEncoderConfig(encoder.config.to_dict(), pool_padding)
        with torch.device("meta"):
            made = cls(config)
        made.encoder = encoder
        return made

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SentenceOutput:
        """Return the sentence vectors ``[B, H]`` and the states ``[B, S, H]``."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = torch.ones_like(attention_mask) if self.config.pool_padding else attention_mask
        mask = mask[..., None].to(states.dtype)
        return SentenceOutput((states * mask).sum(1) / mask.sum(1).clamp(min=1), states)


AutoConfig.register(SentenceEncoderConfig.model_type, SentenceEncoderConfig)
AutoModel.register(SentenceEncoderConfig, SentenceEncoder)
