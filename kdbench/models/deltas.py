"""Deltas: low-rank changes of a network's layers that live beside its weights and move to another network of the same names."""

import contextlib
import copy
import json
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdbench.errors import UserError, nearest
from kdbench.files import whole_file, write_text
from kdbench.models.origins import Origin
from kdbench.models.surgery import Facts, Surgery

LORA = "lora"
"""The folder in which a run leaves the LoRA of its student."""
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # PEFT's names, so that it opens the folder too
FOREIGN = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern")  # PEFT's variants, whose equations are others
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LowRank(nn.Module):
    """``c (alpha / r) U(D x)``, added to what one linear or convolution layer gives: ``W x + b + c (alpha / r) U(D x)``.

    D has the layer's inputs and r outputs (of a convolution: its kernel, stride and padding), U the layer's outputs (a kernel
    of 1). D is Kaiming-uniform as every layer of torch. Hu et al. 2021, arXiv 2106.09685; c: Gandikota et al. 2023, arXiv
    2311.12092.

    Args:
        layer: the layer that is changed.
        rank: r.
        alpha: see the equation.
        freeze_up: U has random orthonormal columns and stays as it is; by default it starts at 0 and is trained.
    """

    def __init__(self, layer: nn.Module, rank: int, alpha: float, freeze_up: bool = False) -> None:
        super().__init__()
        where = {"device": layer.weight.device, "dtype": layer.weight.dtype, "bias": False}
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, **where)
            self.up = nn.Linear(rank, layer.out_features, **where)
        else:
            shape = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")}
            mode = layer.padding_mode
            self.down = type(layer)(layer.in_channels, rank, **shape, padding_mode=mode, **where)
            self.up = type(layer)(rank, layer.out_channels, 1, **where)
        if freeze_up:
            nn.init.orthogonal_(self.up.weight)
            self.up.requires_grad_(False)
        else:
            nn.init.zeros_(self.up.weight)
        self.rank, self.alpha, self.scale = rank, alpha, 1.0
        self.handle = layer.register_forward_hook(self._add)

    def delta(self) -> Tensor:
        """Return ``c (alpha / r) U D`` in the shape of the layer's weight."""
        product = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        return self.scale * self.alpha / self.rank * product.view(*product.shape[:1], *self.down.weight.shape[1:])

    def _add(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.scale == 0:  # the layer alone, to the last bit
            return None
        return output + self.scale * self.alpha / self.rank * self.up(self.down(args[0]))


def add_lora(
    network: nn.Module,
    modules: Sequence[str] = ("*",),
    without: Sequence[str] = (),
    rank: int = 4,
    alpha: float = 1.0,
    freeze_up: bool = False,
) -> nn.Module:
    """Put a :class:`LowRank` beside every linear and convolution layer of a name; nothing else of the network is trained.

    Args:
        network: is changed and returned.
        modules: patterns of names, such as ``*.attn1.*``.
        without: patterns of names among these that are left alone.
        rank: see :class:`LowRank`.
        alpha: see :class:`LowRank`.
        freeze_up: see :class:`LowRank`.

    Raises:
        UserError: a pattern fits no such layer, no layer is left, or a layer has a LoRA already.
    """
    layers = {name: layer for name, layer in network.named_modules() if _takes_lora(layer)}
    for pattern in (*modules, *without):
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise UserError(
                f"AddLoRA: {type(network).__name__} has no linear or convolution layer '{pattern}'.{nearest(pattern, layers)}"
            )
    chosen = {
        name: layer
        for name, layer in layers.items()
        if any(fnmatchcase(name, pattern) for pattern in modules)
        and not any(fnmatchcase(name, pattern) for pattern in without)
    }
    if not chosen:
        raise UserError("AddLoRA: 'without' leaves none of the layers that 'modules' names.")
    if loras(network):
        raise UserError("AddLoRA: the network has a LoRA already, and one at a time is enough.")
    network.requires_grad_(False)
    for layer in chosen.values():
        layer.lora = LowRank(layer, rank, alpha, freeze_up)
    return network


def loras(network: nn.Module) -> dict[str, LowRank]:
    """Return the low-rank changes of a network by the names of the layers that they change."""
    ending = ".lora"
    return {
        name.removesuffix(ending): module for name, module in network.named_modules() if isinstance(module, LowRank)
    }


@contextlib.contextmanager
def scaled(network: nn.Module, scale: float) -> Iterator[None]:
    """Set c of every low-rank change inside: 1 as it was learnt, 0 the network without it, below 0 the other direction.

    Raises:
        ValueError: the network has none.
    """
    found = loras(network).values()
    if not found:
        raise ValueError(f"this {type(network).__name__} has no LoRA whose scale could be set")
    before = [lora.scale for lora in found]
    try:
        for lora in found:
            lora.scale = scale
        yield
    finally:
        for lora, own in zip(found, before, strict=True):
            lora.scale = own


def merged(network: nn.Module) -> nn.Module:
    """Return a copy with ``W + c (alpha / r) U D`` in the place of W, plain again and trainable."""
    plain = copy.deepcopy(network)
    for name, lora in loras(plain).items():
        layer = plain.get_submodule(name)
        with torch.no_grad():
            layer.weight += lora.delta()
        lora.handle.remove()
        del layer.lora
    return plain.requires_grad_(True)


def save_lora(network: nn.Module, folder: Path) -> None:
    """Write the low-rank changes of a network to a folder, in PEFT's layout (safetensors; U times 1, whatever c is)."""
    found = loras(network)
    weights = {}
    for name, lora in found.items():
        weights[f"{PREFIX}{name}.lora_A.weight"] = lora.down.weight.detach().contiguous()
        weights[f"{PREFIX}{name}.lora_B.weight"] = lora.up.weight.detach().contiguous()
    first = next(iter(found.values()))
    told = {"peft_type": "LORA", "r": first.rank, "lora_alpha": first.alpha, "bias": "none"}
    told["target_modules"] = "|".join(re.escape(name) for name in found)
    with whole_file(folder / WEIGHTS) as file:
        file.write(save(weights))
    write_text(folder / CONFIG, json.dumps(told, indent=2) + "\n")


def load_lora(network: nn.Module, folder: Path) -> nn.Module:
    """Put the low-rank changes of a folder beside the layers of the same names; the network is changed and returned.

    Raises:
        UserError: there is no such folder, or the network has not all the layers that the LoRA changes, in their shapes.
    """
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"The folder '{folder}' holds no LoRA that can be read: {error}.") from error
    if foreign := [name for name in FOREIGN if told.get(name)]:
        raise UserError(f"The LoRA in '{folder}' is of another kind ({foreign[0]}), which is not read.")
    downs, ups = (
        {key.removeprefix(PREFIX).removesuffix(end): value for key, value in weights.items() if key.endswith(end)}
        for end in (".lora_A.weight", ".lora_B.weight")
    )
    if not downs or downs.keys() != ups.keys():
        raise UserError(f"The folder '{folder}' holds no LoRA: every layer has two matrices, lora_A and lora_B.")
    layers = {name: layer for name, layer in network.named_modules() if _takes_lora(layer)}
    foreign = [name for name in downs if name not in layers or not _fits(layers[name], downs[name], ups[name])]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UserError(
            f"The LoRA in '{folder}' was learnt on another architecture: {type(network).__name__} has no layer "
            f"'{foreign[0]}' of its shape{more}.{nearest(foreign[0], layers)}"
        )
    add_lora(network, list(downs), rank=told["r"], alpha=told["lora_alpha"])
    with torch.no_grad():
        for name, lora in loras(network).items():
            lora.down.weight.copy_(downs[name])
            lora.up.weight.copy_(ups[name])
    return network


class AddLoRA(Surgery):
    """The network with fresh low-rank changes beside its layers (:func:`add_lora`), which alone are trained.

    Args:
        modules: patterns of the names of linear and convolution layers; by default all of them.
        without: patterns of names among these that are left alone. The official slider code (``noxattn``) changes attention and
            residual blocks without cross attention and time embedding.
        rank: r.
        alpha: of the scale ``alpha / r``.
        freeze_up: U is random and frozen, and D alone is trained: the start is not neutral then (official slider code).
    """

    def __init__(
        self,
        modules: list[str] | None = None,
        without: list[str] | None = None,
        rank: int = 4,
        alpha: float = 1.0,
        freeze_up: bool = False,
    ) -> None:
        if rank < 1:
            raise UserError(f"AddLoRA: the rank is at least 1, got {rank}.")
        self.modules, self.without = modules or ["*"], without or []
        self.rank, self.alpha, self.freeze_up = rank, alpha, freeze_up

    def __call__(self, network: nn.Module, facts: Facts) -> nn.Module:
        """Return the network with its LoRA."""
        return add_lora(network, self.modules, self.without, self.rank, self.alpha, self.freeze_up)


class ApplyLoRA(Surgery):
    """The network with the low-rank changes that another one of the same architecture has learnt.

    Args:
        lora: where they lie: ``FromRun`` with ``file: lora``, or ``FromFolder``.
        scale: c of ``W + c (alpha / r) U D``, folded into the weights: 0 leaves the network as it is, below 0 goes the other
            way. None: nothing is folded, and c can be set for each call (:func:`scaled`).
        control: the seed of random changes of the same ranks and, layer by layer, the same norms in the place of those that
            were learnt.

    Raises:
        UserError: the network has not all the layers that the LoRA changes.
    """

    def __init__(self, lora: Origin, scale: float | None = 1.0, control: int | None = None) -> None:
        self.lora, self.scale, self.control = lora, scale, control

    def __call__(self, network: nn.Module, facts: Facts) -> nn.Module:
        """Return the changed network."""
        load_lora(network, self.lora.path())
        if self.control is not None:
            _randomise(loras(network), self.control)
        if self.scale is None:
            return network
        with scaled(network, self.scale):
            return merged(network)


def _takes_lora(layer: nn.Module) -> bool:
    return type(layer) in LAYERS and getattr(layer, "groups", 1) == 1


def _fits(layer: nn.Module, down: Tensor, up: Tensor) -> bool:
    return layer.weight.shape == (up.shape[0], *down.shape[1:])


def _randomise(changes: dict[str, LowRank], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for lora in changes.values():
            norm = lora.delta().norm()
            for part in (lora.down, lora.up):
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator))
            lora.up.weight *= norm / lora.delta().norm()
