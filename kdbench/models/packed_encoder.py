"""A BERT-like encoder that computes on real tokens alone: it packs a batch before the first layer and unpacks it at the end."""

from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from kdbench.errors import UserError, nearest
from kdbench.models.packed import PackedBatch
from kdbench.models.packed_attention import alibi_slopes, check_backend, packed_attention, padded_attention

Position = Literal["learnt", "alibi"]
FeedForwardKind = Literal["gelu", "geglu"]


class PackedEncoderConfig(PreTrainedConfig):
    """The sizes of a :class:`PackedEncoder`, by BERT's names, and its options.

    Args:
        vocab_size: the number of pieces.
        hidden_size: the width of the states.
        num_hidden_layers: the number of layers.
        num_attention_heads: the number of heads; a divisor of ``hidden_size``.
        intermediate_size: the inner width of the feed-forward.
        max_position_embeddings: the longest sequence, where positions are learnt.
        hidden_dropout_prob: dropout on the embeddings and on what a layer adds to the states.
        attention_probs_dropout_prob: dropout on attention weights; 0 by default, for the fast kernels know none.
        attention_backend: how attention is computed (:func:`~kdbench.models.packed_attention.packed_attention`); with
            ``padded`` the whole encoder keeps the padding, as others do.
        position: ``learnt`` embeddings, or ``alibi``, a bias on the attention scores and no embeddings.
        feed_forward: ``gelu``, or ``geglu``, gated and without the first bias.
        layer_norm_eps: the epsilon of the layer norms.
        initializer_range: the standard deviation of fresh weights.
        pad_token_id: the id of padding.
        tie_word_embeddings: whether a head for masked language modelling shares the word embeddings.
        kwargs: what transformers itself keeps in a ``config.json``.

    Raises:
        UserError: an option has no such value, or the heads do not divide the width.
    """

    model_type = "kdbench_packed_encoder"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        max_position_embeddings: int = 512,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.0,
        attention_backend: str = "auto",
        position: Position = "learnt",
        feed_forward: FeedForwardKind = "gelu",
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        pad_token_id: int | None = 0,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        check_backend(attention_backend)
        for name, value, kinds in (
            ("position", position, get_args(Position)),
            ("feed_forward", feed_forward, get_args(FeedForwardKind)),
        ):
            if value not in kinds:
                raise UserError(f"'{name}' cannot be '{value}'.{nearest(value, kinds)} There are: {', '.join(kinds)}.")
        if hidden_size % num_attention_heads:
            raise UserError(
                f"{num_attention_heads} heads do not divide a hidden_size of {hidden_size}: choose a divisor of it."
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.attention_backend = attention_backend
        self.position = position
        self.feed_forward = feed_forward
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.pad_token_id = pad_token_id
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)


class SelfAttention(nn.Module):
    """Self-attention of a layer: ``out(attention(Wqkv x))``; ``Wqkv`` holds query, key and value side by side."""

    def __init__(self, config: PackedEncoderConfig) -> None:
        super().__init__()
        self.heads, self.backend = config.num_attention_heads, config.attention_backend
        self.dropout = config.attention_probs_dropout_prob
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states: Tensor, packed: PackedBatch, slopes: Tensor | None) -> Tensor:
        """Return ``[T, H]`` for packed states ``[T, H]``, or ``[B, S, H]`` for padded ones."""
        query, key, value = self.Wqkv(states).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        dropout = self.dropout if self.training else 0.0
        if self.backend == "padded":
            mixed = padded_attention(query, key, value, packed, slopes, dropout)
        else:
            mixed = packed_attention(query, key, value, packed, self.backend, slopes, dropout)
        return self.out(mixed.flatten(-2))


class FeedForward(nn.Module):
    """``down(GELU(up x))`` and dropout; gated: ``[g | u] = up x``, ``down(dropout(GELU(g) * u))``, ``up`` without bias.

    Source: Devlin et al. 2019, arXiv 1810.04805; gated: Shazeer 2020, arXiv 2002.05202, as in Portes et al. 2023, arXiv
    2312.17482.
    """

    def __init__(self, config: PackedEncoderConfig) -> None:
        super().__init__()
        self.gated = config.feed_forward == "geglu"
        inner = config.intermediate_size
        self.up = nn.Linear(config.hidden_size, 2 * inner if self.gated else inner, bias=not self.gated)
        self.down = nn.Linear(inner, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: Tensor) -> Tensor:
        """Return ``[..., H]`` for states ``[..., H]``."""
        if self.gated:
            gate, linear = self.up(states).chunk(2, dim=-1)
            return self.down(self.dropout(F.gelu(gate) * linear))
        return self.dropout(self.down(F.gelu(self.up(states))))


class PackedLayer(nn.Module):
    """A layer with the norms behind (post-LN): ``y = LN(x + attention(x))``, ``LN(y + feed_forward(y))``."""

    def __init__(self, config: PackedEncoderConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: Tensor, packed: PackedBatch, slopes: Tensor | None = None) -> Tensor:
        """Return the states behind the layer, in the layout of ``states``: ``[T, H]`` or ``[B, S, H]``."""
        states = self.attention_norm(states + self.dropout(self.attention(states, packed, slopes)))
        return self.output_norm(states + self.feed_forward(states))


class _PreTrained(PreTrainedModel):
    """What the encoder and its head share."""

    config_class = PackedEncoderConfig
    base_model_prefix = "encoder"
    _input_embed_layer = "word_embeddings"


class PackedEncoder(_PreTrained):
    """A Transformer encoder with the interface of any other, whose layers work on packed tokens.

    Inside, states are ``[T, H]``, and so are the taps that read them (:meth:`PackedBatch.unpack` spreads them out).

    Source: Zhai et al. 2023, arXiv 2210.03052; the options are those of MosaicBERT, Portes et al. 2023, arXiv 2312.17482.
    """

    def __init__(self, config: PackedEncoderConfig) -> None:
        super().__init__(config)
        width, learnt = config.hidden_size, config.position == "learnt"
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width) if learnt else None
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(PackedLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, packed: PackedBatch | None = None
    ) -> BaseModelOutput:
        """Return ``last_hidden_state`` ``[B, S, H]``, zero in the padding.

        Args:
            input_ids: ``[B, S]``.
            attention_mask: ``[B, S]``, 1 at real tokens; all ones by default.
            packed: the packed batch of that mask, where it is made already.
        """
        packed = packed or _packed_batch(input_ids, attention_mask)
        keeps_padding = self.config.attention_backend == "padded"
        ids, positions = packed.pack(input_ids), packed.position_ids
        if keeps_padding:
            ids, positions = input_ids, packed.unpack(positions)
        states, slopes = self.word_embeddings(ids), None
        if self.position_embeddings is not None:
            states = states + self.position_embeddings(positions)
        else:
            slopes = packed.planned(_slopes, self.config.num_attention_heads, states.dtype)
        states = self.dropout(self.norm(states))
        for layer in self.layers:
            states = layer(states, packed, slopes)
        padded = states.masked_fill(~packed.mask.unsqueeze(-1), 0.0) if keeps_padding else packed.unpack(states)
        return BaseModelOutput(last_hidden_state=padded)


class PackedEncoderForMaskedLM(_PreTrained):
    """A :class:`PackedEncoder` and a head that tells the piece of a token: ``decoder(LN(GELU(dense x)))``."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"decoder.weight": "encoder.word_embeddings.weight"}

    def __init__(self, config: PackedEncoderConfig) -> None:
        super().__init__(config)
        self.encoder = PackedEncoder(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """Return the decoder."""
        return self.decoder

    def set_output_embeddings(self, embeddings: nn.Linear) -> None:
        """Set the decoder."""
        self.decoder = embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        packed: PackedBatch | None = None,
        positions: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Return ``logits``: ``[B, S, V]``, zero in the padding, or of the chosen tokens only, ``[N, V]``.

        Args:
            input_ids: ``[B, S]``.
            attention_mask: ``[B, S]``, 1 at real tokens; all ones by default.
            packed: the packed batch of that mask, where it is made already.
            positions: ``[N]``, the places ``b S + s`` of the tokens that the head is wanted for. A place in the padding
                has a state of zeros, and logits that mean nothing.
        """
        packed = packed or _packed_batch(input_ids, attention_mask)
        states = self.encoder(input_ids, packed=packed).last_hidden_state
        if positions is not None:
            states = states.flatten(0, 1).index_select(0, positions)
        if states.dim() == 2:  # chosen tokens; a hook on the encoder may have chosen them too
            return MaskedLMOutput(logits=self._head(states))
        return MaskedLMOutput(logits=packed.unpack(self._head(packed.pack(states))))

    def _head(self, states: Tensor) -> Tensor:
        return self.decoder(self.norm(F.gelu(self.dense(states))))


def _slopes(packed: PackedBatch, heads: int, dtype: torch.dtype) -> Tensor:
    return alibi_slopes(heads).to(packed.place.device, dtype)


def _packed_batch(input_ids: Tensor, attention_mask: Tensor | None) -> PackedBatch:
    return PackedBatch.of(torch.ones_like(input_ids) if attention_mask is None else attention_mask)


AutoConfig.register(PackedEncoderConfig.model_type, PackedEncoderConfig)
AutoModel.register(PackedEncoderConfig, PackedEncoder)
AutoModelForMaskedLM.register(PackedEncoderConfig, PackedEncoderForMaskedLM)
