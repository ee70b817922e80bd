"""Reading inner values of an unchanged network by name, through forward hooks."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdbench.errors import UserError, nearest

PROJECTIONS = {
    "query": ("attention.self.query", "attention.q_lin", "self_attn.q_proj", "attention.attention.query"),
    "key": ("attention.self.key", "attention.k_lin", "self_attn.k_proj", "attention.attention.key"),
    "value": ("attention.self.value", "attention.v_lin", "self_attn.v_proj", "attention.attention.value"),
}
"""Where the architectures keep the projections of an attention layer, below the layer's own module."""


class Taps:
    """Named inner values of one network.

    Names: ``logits`` or another field of the output; ``hidden_states.i`` (0 is the embedding output, negative from the
    end) and ``embedding``; ``query.i``, ``key.i``, ``value.i`` (projections of attention layer i); ``path.to.module`` or
    ``path.to.module.input``. Only hooks are used, so the network keeps its fast attention. Calls of other taps or of the
    network itself are not disturbed.

    Args:
        network: the network.
        names: what to read.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.network = network
        self.names = list(names)
        self._values: dict[str, Tensor] | None = None
        self._handles: list[RemovableHandle] = []
        self._fields = [name for name in self.names if not self._hook(name)]

    def __call__(self, view: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the network once on a view and return the value of every name."""
        self._values = {}
        try:
            output = self.network(**view)
            found = self._values
        finally:
            self._values = None
        for name in self._fields:
            value = getattr(output, name, None)
            if value is None:
                raise UserError(self._unknown(name, [key for key in output if output[key] is not None]))
            found[name] = value
        return {name: found[name] for name in self.names}

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> bool:
        """Place the hook of a name; return False when the name must be a field of the output."""
        module, side = self._place(name)
        if module is None:
            return False

        def keep(value: Any) -> None:
            if self._values is not None:
                self._values[name] = value[0] if isinstance(value, tuple) else value

        if side == "input":
            hook = module.register_forward_pre_hook(
                lambda _, args, kwargs: keep(args or next(iter(kwargs.values()))), with_kwargs=True
            )
        else:
            hook = module.register_forward_hook(lambda _, args, output: keep(output))
        self._handles.append(hook)
        return True

    def _place(self, name: str) -> tuple[nn.Module | None, str]:
        kind, _, index = name.partition(".")
        if kind == "embedding" and not index:
            kind, index = "hidden_states", "0"
        if kind in ("hidden_states", *PROJECTIONS):
            if not re.fullmatch(r"-?\d+", index):
                raise UserError(f"The tap '{name}' needs a layer number, such as '{kind}.-1'.")
            return self._layer(name, kind, int(index))
        modules = dict(self.network.named_modules())
        path, side = (name.removesuffix(".input"), "input") if name.endswith(".input") else (name, "output")
        if path in modules:
            return modules[path], side
        if "." in name:
            raise UserError(self._unknown(name, modules))
        return None, "field"

    def _layer(self, name: str, kind: str, index: int) -> tuple[nn.Module, str]:
        blocks = transformer_blocks(self.network)
        count = len(blocks) + (kind == "hidden_states")
        if not -count <= index < count:
            raise UserError(
                f"The tap '{name}' is out of range: {type(self.network).__name__} has {len(blocks)} layers."
            )
        place = index % count
        if kind == "hidden_states":
            if place == 0:
                return blocks[0], "input"
            norm = final_norm(self.network) if place == len(blocks) else None
            return (norm or blocks[place - 1]), "output"
        for path in PROJECTIONS[kind]:
            module = dict(blocks[place].named_modules()).get(path)
            if module is not None:
                return module, "output"
        raise UserError(
            f"'{name}': the attention of {type(self.network).__name__} has no projection of its own for it."
        )

    def _unknown(self, name: str, known: Iterable[str]) -> str:
        names = [each for each in (*known, "logits", "hidden_states.-1", "embedding") if each]
        return (
            f"{type(self.network).__name__} has no tap '{name}'.{nearest(name, names)} There are fields of its output, "
            "hidden_states.i, embedding, query.i, key.i, value.i and the paths of its modules."
        )


def transformer_blocks(network: nn.Module) -> nn.ModuleList:
    """Return the list of repeated blocks: the longest ModuleList of one class with attention inside."""
    lists = [
        module
        for module in network.modules()
        if isinstance(module, nn.ModuleList) and len(module) and len({type(block) for block in module}) == 1
        and any("attention" in name.lower() or "attn" in name.lower() for name, _ in module[0].named_modules())
    ]  # fmt: skip
    if not lists:
        raise UserError(
            f"{type(network).__name__} has no list of transformer blocks, so its layers cannot be numbered."
        )
    return max(lists, key=len)


def final_norm(network: nn.Module) -> nn.Module | None:
    """Return the norm after the last block of pre-norm networks: transformers' last hidden state includes it."""
    blocks = transformer_blocks(network)
    owner = next(module for module in network.modules() if blocks in module.children())
    for name in ("ln_f", "norm", "final_layer_norm", "final_layernorm", "layernorm"):
        found = getattr(owner, name, None)
        if isinstance(found, nn.Module):
            return found
    return None


def check_view(network: nn.Module, view: Iterable[str]) -> None:
    """Raise :class:`UserError` for a key that ``forward`` does not name; transformers would swallow it in silence."""
    named = [
        name
        for name, each in inspect.signature(network.forward).parameters.items()
        if each.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    ]
    for key in view:
        if key not in named:
            raise UserError(f"{type(network).__name__} does not take '{key}'.{nearest(key, named)}")
