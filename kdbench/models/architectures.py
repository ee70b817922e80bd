"""Architectures by name: those of transformers, and our own, which importing this file makes known to its Auto classes."""

import inspect
from typing import Any

import transformers
from transformers import PreTrainedModel

from kdbench.errors import UserError, nearest
from kdbench.models import quantised_folder  # noqa: F401 - transformers opens quantised networks from now on
from kdbench.models.denoiser import Denoiser
from kdbench.models.exact_denoiser import ExactDenoiser
from kdbench.models.mlp import MLPClassifier
from kdbench.models.mobile import CifarMobileNetV2, ShuffleNetV2
from kdbench.models.multi_exit import MultiExitEncoder, MultiExitForPreTraining
from kdbench.models.packed_encoder import PackedEncoder, PackedEncoderForMaskedLM
from kdbench.models.patches import MLPMixer, ResMLP
from kdbench.models.sentence import SentenceEncoder
from kdbench.models.vision import VGG, CifarResNet, ConvNet, WideResNet

OURS: dict[str, type[PreTrainedModel]] = {
    kind.__name__: kind
    for kind in (
        CifarMobileNetV2,
        CifarResNet,
        ConvNet,
        Denoiser,
        ExactDenoiser,
        MLPClassifier,
        MLPMixer,
        MultiExitEncoder,
        MultiExitForPreTraining,
        PackedEncoder,
        PackedEncoderForMaskedLM,
        ResMLP,
        SentenceEncoder,
        ShuffleNetV2,
        VGG,
        WideResNet,
    )
}


def architecture_class(name: str) -> Any:
    """Return a class of transformers, also one that chooses by the config (``AutoModel...``), or one of our own.

    Raises:
        UserError: there is none of that name.
    """
    kind = OURS.get(name) or getattr(transformers, name, None)
    if not inspect.isclass(kind) or not (issubclass(kind, PreTrainedModel) or name.startswith("AutoModel")):
        names = [*OURS, *(each for each in dir(transformers) if each.endswith("Model") or "For" in each)]
        raise UserError(f"transformers has no architecture '{name}'.{nearest(name, names)}")
    return kind


def sees_images(name: str) -> bool:
    """Return whether an architecture takes images, as far as its name or its class tells."""
    return "Image" in name or getattr(architecture_class(name), "main_input_name", None) == "pixel_values"
