"""Shifts and scales of channels, folded into the layers of transformers' own networks: the function stays the same.

``X' = (X - z) / s`` goes into what gives X, a norm (``gamma' = gamma / s``, ``beta' = (beta - z) / s``) or a linear layer; ``W' = W
s`` column by column and ``b' = b + W z`` into every layer that reads X. Wei et al. 2023, arXiv 2304.09145 (Outlier Suppression+).
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kdbench.errors import UserError
from kdbench.models.layers import transformer_blocks


@dataclass(frozen=True)
class Layout:
    """How the modules of a block are called in a family of networks.

    Args:
        attention: the module that attends.
        projections: the layers of query, key and value.
        context: the layer that reads the heads, one after the other.
        feed: the layers that read the input of the feed-forward part.
        down: its last layer.
        norms: in front of attention and feed-forward part, or behind both where there are shortcuts to restore.
        gated: the module of a feed-forward part that multiplies two of its layers, which is compared as a whole.
        adds: of a post-norm block, the two modules that add a shortcut, as their second input.
    """

    attention: str
    projections: tuple[str, ...]
    context: str
    feed: tuple[str, ...]
    down: str
    norms: tuple[str, str]
    gated: str | None = None
    adds: tuple[str, str] | None = None

    def inside(self, block: str) -> "Layout":
        """Return the layout with the path of a block in front of every name."""

        def whole(told: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
            if isinstance(told, tuple):
                return tuple(f"{block}.{name}" for name in told)
            return f"{block}.{told}" if told else None

        return Layout(**{each.name: whole(getattr(self, each.name)) for each in fields(self)})


def _named(prefix: str, names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names.split())


_PROJECTIONS = _named("self_attn", "q_proj k_proj v_proj")
_GPT2 = Layout("attn", ("attn.c_attn",), "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj", ("ln_1", "ln_2"))
_OPT = Layout(
    "self_attn", _PROJECTIONS, "self_attn.out_proj", ("fc1",), "fc2", ("self_attn_layer_norm", "final_layer_norm")
)
_LLAMA = Layout(
    attention="self_attn",
    projections=_PROJECTIONS,
    context="self_attn.o_proj",
    feed=_named("mlp", "gate_proj up_proj"),
    down="mlp.down_proj",
    norms=("input_layernorm", "post_attention_layernorm"),
    gated="mlp",
)
_BERT = Layout(
    attention="attention.self",
    projections=_named("attention.self", "query key value"),
    context="attention.output.dense",
    feed=("intermediate.dense",),
    down="output.dense",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    adds=("attention.output", "output"),
)
LAYOUTS = (
    {"gpt2": _GPT2, "opt": _OPT}
    | dict.fromkeys(("llama", "mistral", "qwen2"), _LLAMA)
    | dict.fromkeys(("bert", "camembert", "electra", "roberta", "xlm-roberta"), _BERT)
)
"""By the type of the model."""


@dataclass(frozen=True)
class Site:
    """A place where a shift and a scale may be folded; paths of modules.

    Args:
        source: the norm or linear layer whose output is moved.
        readers: the linear layers that read it.
        shifts: whether source and readers have the biases that a shift needs.
        shortcut: the module that adds the output of the source as its second input, and has to have it restored.
        function: the module whose outputs tell how much is lost: attention, or a gated feed-forward part; None: the readers'.
        result: the layer that reads these outputs inside of that module; None: the module returns them.
    """

    source: str
    readers: tuple[str, ...]
    shifts: bool
    shortcut: str | None = None
    function: str | None = None
    result: str | None = None


def layout(network: nn.Module) -> Layout:
    """Return the layout of a network; raise :class:`UserError` where its layers cannot be folded."""
    kind = getattr(getattr(network, "config", None), "model_type", None)
    if not isinstance(network, PreTrainedModel) or kind not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise UserError(
            f"The layers of {type(network).__name__} ('{kind}') cannot be folded: take a network of one of the types {known}."
        )
    if kind == "opt" and not network.config.do_layer_norm_before:
        raise UserError(
            f"The layers of this {type(network).__name__} cannot be folded: its 'self_attn_layer_norm' stands behind the "
            "shortcut and the sum is no module of its own; take an OPT with do_layer_norm_before, any but OPT-350m."
        )
    return LAYOUTS[kind]


def sites(network: nn.Module) -> list[Site]:
    """Return every place of a network where a shift and a scale may be folded, in the order of the forward.

    Pre-norm blocks: behind both norms, into query, key and value and into the feed-forward part. Post-norm blocks (BERT and its
    kin): behind every norm but the last, whose output leaves the encoder, and between value and output projection, for the
    attention of a row sums to 1. A scale alone behind an RMS norm (LLaMA), which has no bias.

    Raises:
        UserError: the network is of another kind, or one of its norms has no weight.
    """
    found: list[Site] = []
    for number, at in enumerate(_blocks(network)):
        first, second = at.norms
        if at.adds is None:
            gated = (at.gated, at.down) if at.gated else ()
            found.append(_site(network, first, at.projections, None, at.attention, at.context))
            found.append(_site(network, second, at.feed, None, *gated))
        else:
            if before := _norm_before(network, number):
                found.append(_site(network, before, at.projections, at.adds[0], at.attention))
            found.append(_site(network, at.projections[-1], (at.context,)))
            found.append(_site(network, first, at.feed, at.adds[1]))
    return found


def attention_modules(network: nn.Module) -> list[str]:
    """Return the modules of a network that attend."""
    return [at.attention for at in _blocks(network)]


def layer_outputs(network: nn.Module) -> list[str]:
    """Return the layers whose outputs are added to the stream: the last of attention and feed-forward part of every block."""
    return [path for at in _blocks(network) for path in (at.context, at.down)]


def matrix(layer: nn.Module) -> Tensor:
    """Return the weight ``[out, in]`` of a linear layer."""
    return turned(layer, layer.weight)


def turned(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight ``[out, in]`` as a layer keeps it, or one that it keeps as ``[out, in]``: GPT-2's ``Conv1D`` turns it."""
    return weight.T if isinstance(layer, Conv1D) else weight


@torch.no_grad()
def fold(network: nn.Module, site: Site, shift: Tensor, scale: Tensor) -> None:
    """Fold ``(X - z) / s`` into the source of a site and undo it in its readers and its shortcut; z and s are ``[C]``.

    Raises:
        ValueError: z is not 0 and the site cannot take a shift.
    """
    shifts = bool(shift.any())
    if shifts and not site.shifts:
        raise ValueError(f"'{site.source}' or a layer that reads it has no bias to take a shift")
    for path in site.readers:
        layer = network.get_submodule(path)
        if shifts:
            layer.bias += matrix(layer) @ shift
        matrix(layer).mul_(scale)
    source = network.get_submodule(site.source)
    source.weight.div_(scale[:, None] if source.weight.dim() == 2 else scale)
    if getattr(source, "bias", None) is not None:
        source.bias.sub_(shift).div_(scale)
    if site.shortcut is not None:
        Restore.beside(network.get_submodule(site.shortcut)).follow(shift, scale)


class Restore(nn.Module):
    """``X = X' s + z``: the second input of the module that it stands beside, the shortcut of a post-norm block.

    Args:
        width: C.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("shift", torch.zeros(width))

    @classmethod
    def beside(cls, module: nn.Module) -> "Restore":
        """Return the one beside the end of a post-norm block; put one there, which changes nothing yet, where there is none."""
        if not hasattr(module, "restore"):
            made = module.restore = cls(module.dense.out_features).to(module.dense.weight)
            module.register_forward_pre_hook(made._restore)
        return module.restore

    def follow(self, shift: Tensor, scale: Tensor) -> None:
        """Undo ``X'' = (X' - z) / s`` too."""
        self.shift += self.scale * shift
        self.scale *= scale

    def _restore(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        own, shortcut, *others = inputs
        return own, shortcut * self.scale + self.shift, *others


def _blocks(network: nn.Module) -> list[Layout]:
    """Return the layout of each block, with whole paths."""
    names = layout(network)
    path, modules = transformer_blocks(network)
    return [names.inside(f"{path}.{number}") for number in range(len(modules))]


def _site(
    network: nn.Module,
    source: str,
    readers: tuple[str, ...],
    shortcut: str | None = None,
    function: str | None = None,
    result: str | None = None,
) -> Site:
    modules = [network.get_submodule(path) for path in (source, *readers)]
    if modules[0].weight is None:
        raise UserError(f"The norm '{source}' has no weight that a scale could be folded into: take another network.")
    shifts = all(getattr(module, "bias", None) is not None for module in modules)
    return Site(source, readers, shifts, shortcut, function, result)


def _norm_before(network: nn.Module, number: int) -> str | None:
    """Return the norm whose output a post-norm block is given, None where something lies between them (ELECTRA)."""
    if number:
        return _blocks(network)[number - 1].norms[1]
    encoder = transformer_blocks(network)[0].removesuffix("encoder.layer")
    projected = hasattr(network.get_submodule(encoder.removesuffix(".")), "embeddings_project")
    return None if projected else f"{encoder}embeddings.LayerNorm"
