"""Multi-exit encoders: one network that can stop after several of its layers (ModularStarEncoder)."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from kdbench.errors import UserError
from kdbench.models.sentence import OverEncoderConfig, last_token, masked_mean
from kdbench.models.surgery import CopyLayers, Facts, Surgery

Pooling = Literal["mean", "last"]


class MultiExitConfig(OverEncoderConfig):
    """The encoder's own config and its exits.

    Args:
        encoder: the encoder's config, or its dict as it stands in a ``config.json``.
        exits: after how many layers there is an exit, ascending; the last one is the encoder's end.
        dim: the width of the embeddings.
        pooling: ``mean`` of the real tokens, or the ``last`` real token.
        kwargs: what transformers itself keeps in a ``config.json``.

    Raises:
        UserError: the exits do not ascend, lie outside the encoder or end before it does, or there is no such pooling.
    """

    model_type = "kdbench_multi_exit"

    def __init__(
        self,
        encoder: PreTrainedConfig | dict[str, Any] | None = None,
        exits: Sequence[int] = (),
        dim: int | None = None,
        pooling: Pooling = "mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, **kwargs)
        self.exits, self.pooling = list(exits), pooling
        self.dim = dim if dim is not None or self.encoder is None else self.encoder.hidden_size
        if pooling not in get_args(Pooling):
            raise UserError(f"There is no pooling '{pooling}': take 'mean' or 'last'.")
        if self.encoder is not None:  # transformers makes an empty config to compare with
            check_exits(self.exits, self.encoder.num_hidden_layers)


class MultiExitNetwork(PreTrainedModel):
    """An unchanged encoder of transformers, read after several of its layers.

    ``h_i`` is what the encoder would return if it ended after layer i: where it ends with a norm, as networks with norms in
    front of their blocks do, that norm belongs to every exit. So an exit alone is a plain, shorter encoder. All exits come
    from one forward and nothing is detached: the deeper ones also train the layers below.
    """

    config_class = MultiExitConfig
    base_model_prefix = "encoder"

    def __init__(self, config: MultiExitConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder)
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None  # nothing reads it, and DDP refuses parameters without gradient

    def states(self, input_ids: Tensor, mask: Tensor) -> dict[int, Tensor]:
        """Return ``h_i`` ``[B, S, H]`` of every exit i."""
        found = self.encoder(input_ids=input_ids, attention_mask=mask, output_hidden_states=True).hidden_states
        *inner, last = self.config.exits
        norm = next(
            (getattr(self.encoder, name) for name in ("norm", "final_norm") if hasattr(self.encoder, name)), None
        )
        return {each: found[each] if norm is None else norm(found[each]) for each in inner} | {last: found[last]}

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return one vector a text ``[B, H]``."""
        return masked_mean(states, mask) if self.config.pooling == "mean" else last_token(states, mask)


class MultiExitEncoder(MultiExitNetwork):
    """Embeddings of texts at several depths: ``e_i(x) = normalise(P_i(pool(h_i(x))))``, a projection of its own for each exit.

    ``embedding_<i>`` ``[B, dim]`` is that of exit i, ``embedding`` that of the last one. Padding may stand on either side of
    a text if the encoder's positions are relative (rotary). Gurioli et al. 2025, arXiv 2503.03008.
    """

    def __init__(self, config: MultiExitConfig) -> None:
        super().__init__(config)
        self.projections = nn.ModuleDict(
            {str(exit): nn.Linear(config.hidden_size, config.dim) for exit in config.exits}
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> ModelOutput:
        """Return the embeddings of texts ``[B, S]``, whose mask ``[B, S]`` is 1 at real tokens (default: all)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        found = {
            f"embedding_{exit}": normalize(self.projections[str(exit)](self.pool(states, mask)), dim=-1)
            for exit, states in self.states(input_ids, mask).items()
        }
        return ModelOutput(found | {"embedding": found[f"embedding_{self.config.exits[-1]}"]})


class MultiExitForPreTraining(MultiExitNetwork):
    """Masked tokens and in-context classification at several depths, by heads that all exits share.

    The exit's identity reaches the heads as a learnt vector that is added to ``h_i`` and is 0 at first; the paper adds an
    encoding of the layer, whose form it does not tell. For exit i, ``masked_<i>`` are logits over the vocabulary ``[B, S, V]``
    (only of the rows asked for, ``[N, V]``) and ``logits_<i>`` ``[B, 2]`` say whether all of the input is from one place;
    ``logits`` are those of the last exit. Gurioli et al. 2025, arXiv 2503.03008.
    """

    def __init__(self, config: MultiExitConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.exit_embeddings = nn.ParameterDict({str(exit): torch.zeros(width) for exit in config.exits})
        self.masked_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, config.vocab_size)
        )
        self.context_head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, masked: Tensor | None = None
    ) -> ModelOutput:
        """Return the logits of both heads at every exit.

        Args:
            input_ids: ``[B, S]``.
            attention_mask: ``[B, S]``, 1 at real tokens; all ones by default.
            masked: bool ``[B, S]``, at which tokens the vocabulary's logits are wanted; all by default.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        found = {}
        for exit, states in self.states(input_ids, mask).items():
            told = states + self.exit_embeddings[str(exit)]
            found[f"masked_{exit}"] = self.masked_head(told if masked is None else told[masked])
            found[f"logits_{exit}"] = self.context_head(self.pool(told, mask))
        return ModelOutput(found | {"logits": found[f"logits_{self.config.exits[-1]}"]})


class AddExits(Surgery):
    """An encoder with exits; whatever head it had is left behind.

    Args:
        exits: after how many layers, ascending; the last one is the encoder's end.
        heads: ``separate`` projections to embeddings (:class:`MultiExitEncoder`), or ``shared`` heads for pre-training
            (:class:`MultiExitForPreTraining`); all are new.
        dim: the width of the embeddings, by default that of the hidden states.
        pooling: ``mean`` of the real tokens, or the ``last`` real token.

    Raises:
        UserError: the exits do not ascend, lie outside the encoder or end before it does.
    """

    def __init__(
        self,
        exits: list[int],
        heads: Literal["separate", "shared"] = "separate",
        dim: int | None = None,
        pooling: Pooling = "mean",
    ) -> None:
        if heads not in ("separate", "shared"):
            raise UserError(f"AddExits has no heads '{heads}': take 'separate' or 'shared'.")
        self.exits, self.heads, self.dim, self.pooling = exits, heads, dim, pooling

    def __call__(self, network: nn.Module, facts: Facts) -> nn.Module:
        """Return the encoder with its exits."""
        if not isinstance(network, PreTrainedModel) or network.main_input_name != "input_ids":
            raise UserError(f"AddExits needs an encoder of texts, and {type(network).__name__} is none.")
        encoder = network.base_model
        kind = MultiExitEncoder if self.heads == "separate" else MultiExitForPreTraining
        config = MultiExitConfig(copy.deepcopy(encoder.config), self.exits, self.dim, self.pooling)
        with torch.device(encoder.device):
            made = kind(config).to(encoder.dtype)
        missing, unexpected = made.encoder.load_state_dict(encoder.state_dict(), strict=False)
        if wrong := [key for key in (*missing, *unexpected) if not key.startswith("pooler.")]:
            raise UserError(f"AddExits: {type(encoder).__name__} is no plain encoder of transformers: {wrong[0]}.")
        return made


class KeepExits(Surgery):
    """The same network as far as its deepest kept exit: no layer and no head beyond it is left.

    Args:
        exits: those to keep, ascending.

    Raises:
        UserError: the exits do not ascend, or the network does not have them.
    """

    def __init__(self, exits: list[int]) -> None:
        check_exits(exits, exits[-1] if exits else 0)
        self.exits = exits

    def __call__(self, network: nn.Module, facts: Facts) -> nn.Module:
        """Return the smaller network, with weights of its own."""
        if not isinstance(network, MultiExitNetwork):
            raise UserError(
                f"KeepExits needs a network with exits, and {type(network).__name__} has none: add AddExits."
            )
        if not set(self.exits) <= set(network.config.exits):
            raise UserError(f"KeepExits cannot keep {self.exits} of the exits {network.config.exits}.")
        encoder = CopyLayers(layers=list(range(self.exits[-1])))(network.encoder, facts)
        config = copy.deepcopy(network.config)
        config.encoder, config.exits = encoder.config, list(self.exits)
        with torch.device(network.device):
            made = type(network)(config).to(network.dtype)
        state = network.state_dict()
        made.load_state_dict({name: state[name] for name in made.state_dict()})
        return made


def exits_alone(network: nn.Module) -> dict[str, nn.Module]:
    """Return ``exit_<i>``, a network that ends there, for every exit but the last; nothing of a network without exits."""
    inner = network.config.exits[:-1] if isinstance(network, MultiExitNetwork) else []
    return {f"exit_{exit}": KeepExits([exit])(network, Facts()) for exit in inner}


def check_exits(exits: Sequence[int], layers: int) -> None:
    """Raise :class:`UserError` unless the exits ascend from 1 or more and the last one is the end of so many layers."""
    if not exits or any(first >= second for first, second in itertools.pairwise(exits)):
        raise UserError(f"The exits of a network ascend, such as [2, 4, 6], not {list(exits)}.")
    if exits[0] < 1 or exits[-1] > layers:
        raise UserError(f"The exits {list(exits)} lie outside a network of {layers} layers: choose from 1 to {layers}.")
    if exits[-1] < layers:
        raise UserError(
            f"The last exit is {exits[-1]} and the network has {layers} layers, of which those behind it would learn nothing: "
            f"cut it with CopyLayers, or let the last exit be {layers}."
        )


AutoConfig.register(MultiExitConfig.model_type, MultiExitConfig)
AutoModel.register(MultiExitConfig, MultiExitEncoder)
AutoModelForPreTraining.register(MultiExitConfig, MultiExitForPreTraining)
