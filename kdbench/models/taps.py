"""Taps: inner values of an unchanged network, read by name through forward hooks."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdbench.errors import UserError, nearest
from kdbench.models.layers import transformer_blocks
from kdbench.models.packed_transformers import call_packed, check_packable, unpacked
from kdbench.models.sentence import masked_mean
from kdbench.models.stages import stage_names, stage_tap

KINDS = (
    "a field of the network's output (logits), hidden_states.i, embedding, query.i, key.i, value.i, "
    "of an image network stages.i, preactivations.i and pooled, "
    "or the path of a module (its output; with '.input' its input); '.first' or '.mean' behind it takes one vector a text"
)
# How the libraries call the projections of a block; a fused one holds query, key and value side by side.
PROJECTIONS = {
    "query": ("query", "q_lin", "q_proj", "query_proj"),
    "key": ("key", "k_lin", "k_proj", "key_proj"),
    "value": ("value", "v_lin", "v_proj", "value_proj"),
}
FUSED = ("c_attn", "Wqkv")


class Taps:
    """Reads inner values of a network by name, by one ordinary forward of it.

    - ``logits``, or any other tensor field of the output object; a field wins over anything else of the same name;
    - ``hidden_states.i``: 0 is the input of the first block (the embedding output), i the output of block i, the last one
      after the final norm where a language model has one: equal to transformers' own ``hidden_states[i]``, without asking
      the network for all of them; negative numbers count from the end; ``embedding`` is ``hidden_states.0``;
    - ``query.i``, ``key.i``, ``value.i``: the output of that projection in attention layer i, ``[B, S, heads * width]``;
    - ``stages.i``, ``preactivations.i``, ``pooled`` of an image network: see :mod:`kdbench.models.stages`;
    - ``module.path``, ``module.path.input``: the (first) output or input of any module, of its last call in the forward;
    - any of these with ``.first`` or ``.mean`` behind it: of ``[B, S, H]`` the value at the first real token (``[CLS]``), or
      the mean over the real tokens, ``[B, H]``.

    The hooks stay on the network until ``close`` and store nothing outside a call; any number of readers may share a
    network, and a copied or pickled network works on its own.

    Args:
        network: any module that is called with keyword arguments.
        names: the taps that a call returns.
        unpad: run the network on the real tokens of a view alone (:func:`~kdbench.models.packed_transformers.run_packed`);
            the values come in the padded layout all the same, with zeros in the padding.

    Raises:
        UserError: a name that the network does not have, a layer number that is out of range, or a network that cannot do
            without padding.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], unpad: bool = False) -> None:
        if unpad:
            check_packable(network)
        self.network, self.unpad = network, unpad
        self.names = list(dict.fromkeys(names))
        self._recorder = _Recorder()
        self._handles: list[Any] = []
        modules = dict(network.named_modules())
        self._pooled = {name: _pooling(name) if name not in modules else (name, None) for name in self.names}
        for stem in dict.fromkeys(stem for stem, _ in self._pooled.values()):
            self._place(stem)

    def __call__(self, view: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the network once on the keyword arguments of ``view`` and return ``{name: value}``, gradients attached."""
        self._recorder.values = values = {}
        packed = None
        try:
            if self.unpad:
                output, packed = call_packed(self.network, view)
            else:
                output = self.network(**view)
        finally:
            self._recorder.values = None
        fields = dict(output) if isinstance(output, Mapping) else getattr(output, "__dict__", {})
        stems = dict.fromkeys(stem for stem, _ in self._pooled.values())
        found = {stem: self._pick(stem, fields, values) for stem in stems}
        if packed is not None:
            found = {stem: unpacked(value, packed) for stem, value in found.items()}
        return {name: _pool(name, found[stem], how, view) for name, (stem, how) in self._pooled.items()}

    def close(self) -> None:
        """Take the hooks off the network."""
        while self._handles:
            self._handles.pop().remove()

    def _pick(self, name: str, fields: Mapping[str, Any], values: Mapping[str, Any]) -> Tensor:
        value = fields.get(name, values.get(name))
        if isinstance(value, Tensor):
            return value
        if name in fields:
            raise UserError(f"The tap '{name}' is a {type(value).__name__}, not a tensor.")
        if name in dict(self.network.named_modules()) or name.endswith(".input"):
            raise UserError(f"The module of the tap '{name}' gave no tensor in this forward.")
        raise self._unknown(name, fields)

    def _place(self, name: str) -> None:
        """Put the hooks for one name; a name that may be a field of the output needs none."""
        modules = dict(self.network.named_modules())
        path = stage_tap(self.network, name) or name
        stem, _, number = path.rpartition(".")
        if name == "embedding" and not _has_blocks(self.network):
            return
        if name == "embedding":
            self._hidden_state(name, 0)
        elif stem == "hidden_states" and re.fullmatch(r"-?\d+", number):
            self._hidden_state(name, int(number))
        elif stem in PROJECTIONS and re.fullmatch(r"-?\d+", number):
            self._projection(name, stem, int(number))
        elif path in modules:
            self._on_output(modules[path], name)
        elif number == "input" and stem in modules:
            self._on_input(modules[stem], name)
        elif "." in name or not name:
            raise self._unknown(name, ())

    def _hidden_state(self, name: str, number: int) -> None:
        path, blocks = transformer_blocks(self.network)
        index = _index(name, number, len(blocks) + 1, f"{len(blocks)} layers (hidden_states.0 to .{len(blocks)})")
        if index == 0:
            self._on_input(blocks[0], name)
            return
        self._on_output(blocks[index - 1], name)
        owner = _owner(self.network, path)
        # The owner's hook runs after the block's. Language models give their last hidden state after the final norm,
        # vision and audio models before it (transformers' `tie_last_hidden_states`).
        if index == len(blocks) and owner is not None and owner.main_input_name == "input_ids":
            self._on_output(owner, name, field="last_hidden_state")

    def _projection(self, name: str, which: str, number: int) -> None:
        _, blocks = transformer_blocks(self.network)
        last = len(blocks) - 1
        block = blocks[_index(name, number, len(blocks), f"{len(blocks)} layers ({which}.0 to .{last})")]
        for path, module in block.named_modules():
            own = path.rpartition(".")[2]
            if own in PROJECTIONS[which]:
                self._on_output(module, name)
                return
            if own in FUSED:
                self._on_output(module, name, third=list(PROJECTIONS).index(which))
                return
        raise UserError(
            f"The tap '{name}': the blocks of {type(self.network).__name__} have no projection that is known as {which}: "
            "name the module itself."
        )

    def _on_output(self, module: nn.Module, name: str, field: str | None = None, third: int | None = None) -> None:
        self._handles.append(module.register_forward_hook(_OutputHook(self._recorder, name, field, third)))

    def _on_input(self, module: nn.Module, name: str) -> None:
        hook = _InputHook(self._recorder, name)
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _unknown(self, name: str, fields: Iterable[str]) -> UserError:
        paths = [path for path, _ in self.network.named_modules() if path]
        names = [*fields, *paths, *stage_names(self.network), "logits", "embedding"]
        names += ["hidden_states.-1", "query.-1", "key.-1", "value.-1"]
        return UserError(f"{type(self.network).__name__} has no tap '{name}'.{nearest(name, names)} A tap is {KINDS}.")


def check_view(network: nn.Module, view_keys: Iterable[str]) -> None:
    """Check that a network's forward names every key of a view; transformers ignores unknown keywords in silence.

    Raises:
        UserError: a key is no named parameter of ``network.forward``.
    """
    parameters = inspect.signature(network.forward).parameters.values()
    named = [each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    for key in view_keys:
        if key not in named:
            raise UserError(
                f"{type(network).__name__} has no input '{key}'.{nearest(key, named)} It takes: {', '.join(named)}."
            )


class _Recorder:
    """Where hooks write during a call; between calls there is nothing to write to."""

    def __init__(self) -> None:
        self.values: dict[str, Any] | None = None


class _OutputHook:
    """A forward hook; a class, not a closure, so that the network can still be pickled."""

    def __init__(self, recorder: _Recorder, name: str, field: str | None, third: int | None) -> None:
        self.recorder, self.name, self.field, self.third = recorder, name, field, third

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.recorder.values is None:
            return
        value = output if self.field is None else getattr(output, self.field, None)
        if value is None:  # a network that gives no such field keeps what its block has left
            return
        value = (
            value if isinstance(value, Tensor) else next(iter(value.values() if isinstance(value, Mapping) else value))
        )
        self.recorder.values[self.name] = value if self.third is None else value.chunk(3, dim=-1)[self.third]


class _InputHook:
    """A forward pre-hook for the first input, by place or by keyword."""

    def __init__(self, recorder: _Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.recorder.values is not None:
            self.recorder.values[self.name] = args[0] if args else next(iter(kwargs.values()), None)


def _pooling(name: str) -> tuple[str, str | None]:
    """Return the tap without its pooling, and the pooling."""
    stem, _, how = name.rpartition(".")
    return (stem, how) if stem and how in ("first", "mean") else (name, None)


def _pool(name: str, value: Tensor, how: str | None, view: Mapping[str, Tensor]) -> Tensor:
    if how is None:
        return value
    mask = view.get("attention_mask")
    if value.dim() != 3 or mask is None or mask.shape != value.shape[:2]:
        raise UserError(
            f"The tap '{name}' pools the tokens of texts, and its value has the shape {tuple(value.shape)}."
        )
    if how == "mean":
        return masked_mean(value, mask)
    return value[torch.arange(len(value), device=value.device), mask.int().argmax(dim=1)]


def _has_blocks(network: nn.Module) -> bool:
    try:
        transformer_blocks(network)
    except UserError:
        return False
    return True


def _index(name: str, number: int, count: int, told: str) -> int:
    if not -count <= number < count:
        raise UserError(f"The tap '{name}' is out of range: the network has {told}.")
    return number % count


def _owner(network: nn.Module, path: str) -> PreTrainedModel | None:
    """Return the innermost transformers model around the module at ``path``: the one that returns its last hidden state."""
    parts = path.split(".")
    for length in range(len(parts) - 1, -1, -1):
        module = network.get_submodule(".".join(parts[:length]))
        if isinstance(module, PreTrainedModel):
            return module
    return None
