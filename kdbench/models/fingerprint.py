"""Which network it is, told by its content: equal digests mean equal outputs."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kdbench.files import file_digest
from kdbench.models.origins import FromFolder, FromRun, Origin
from kdbench.models.package import FromPackage

FILES = ("*.safetensors", "*.json")
"""What decides the outputs of a saved network: weights and config (and its tokenizer's files, which do no harm)."""


def digest(origin: Origin, build: Callable[[], nn.Module]) -> str:
    """Return a digest of the network that an origin makes; ``build`` is asked for it only where files do not tell.

    What surgeries were told counts too, for not all that they change need be a weight: the scale of a LoRA is none.
    """
    found = origin_digest(origin)
    if found is not None:
        return found
    told = [
        (type(each).__qualname__, [(name, value) for name, value in sorted(vars(each).items()) if _plain(value)])
        for each in origin.then
    ]
    found = network_digest(build())
    return hashlib.sha256(f"{found} {told}".encode()).hexdigest() if told else found


def origin_digest(origin: Origin) -> str | None:
    """Return a digest of the network that an origin would build, from its files, without building it.

    None where files do not tell: random weights, surgeries, and the hub, whose files may not be here yet.
    """
    if origin.then or not isinstance(origin, FromFolder | FromRun | FromPackage):
        return None
    digest = hashlib.sha256(str(getattr(origin, "architecture", None)).encode())
    for path in sorted(each for pattern in FILES for each in origin.path().glob(pattern)):
        digest.update(f"{path.name} {file_digest(path)}".encode())
    return digest.hexdigest()


def network_digest(network: nn.Module) -> str:
    """Return a digest of the class, the config and every weight and buffer of a network."""
    digest = hashlib.sha256(f"{type(network).__qualname__} {getattr(network, 'config', '')}".encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | list | tuple | dict | None)
