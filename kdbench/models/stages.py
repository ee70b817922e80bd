"""The stages of image networks, and the taps that read them: ``stages.k``, ``preactivations.k`` and ``pooled``.

``stages.0`` is the output of the stem, ``stages.k`` that of stage k, as the network has it: maps ``[B, C, H, W]``, or tokens
``[B, N, C]``, class tokens first. ``preactivations.k`` is what the activation at the end of stage k is given; a stage that ends
without one has its output there. ``pooled`` is the vector ``[B, C]`` that the classifier reads.

- Our convolutional networks, and transformers' ResNet and ConvNeXt: the stages that they are built of.
- Swin: these too, each read before its patches are merged.
- MobileNetV2 of transformers: four stages, which end with the bottlenecks 2, 5, 12 and 16; the first of each halves the size.
- Networks of equal blocks (ViT, DeiT, our MLPMixer and ResMLP): :func:`~kdbench.models.layers.stage_ends`.
"""

import re

from torch import nn
from transformers import PreTrainedModel

from kdbench.errors import UserError
from kdbench.models.layers import stage_ends, transformer_blocks
from kdbench.models.vision import ConvolutionalClassifier, WideResNet

BUILT_OF_STAGES = {
    "resnet": ("embedder", "encoder.stages"),
    "convnext": ("embeddings", "encoder.stages"),
    "convnextv2": ("embeddings", "encoder.stages"),
    "swin": ("embeddings", "encoder.layers"),
    "swinv2": ("embeddings", "encoder.layers"),
}
"""Where transformers' networks have their stem and the list of their stages, by the type of the model."""
MOBILENET_ENDS = (1, 4, 11, 15)
"""The last bottleneck of each stage of a MobileNetV2, from 0."""


def stage_tap(network: nn.Module, name: str) -> str | None:
    """Return the module ``path``, or the ``path.input`` of one, that a tap of this file reads; None for other taps.

    Raises:
        UserError: the network has no such stage, or none at all that is known.
    """
    found = re.fullmatch(r"(stages|preactivations)\.(-?\d+)|pooled", name)
    if found is None or getattr(network, "main_input_name", None) != "pixel_values":
        return None
    if name == "pooled":
        return _pooled(network)
    paths, number = _stages(network), int(found[2])
    if not -len(paths) <= number < len(paths):
        raise UserError(
            f"The tap '{name}' is out of range: the network has a stem and {len(paths) - 1} stages ({found[1]}.0 to "
            f".{len(paths) - 1})."
        )
    return paths[number] if found[1] == "stages" else _preactivations(network, paths)[number]


def stage_names(network: nn.Module) -> list[str]:
    """Return the names of all taps of this file that a network has."""
    if getattr(network, "main_input_name", None) != "pixel_values":
        return []
    try:
        numbers = range(len(_stages(network)))
    except UserError:
        return []
    return [*(f"{kind}.{number}" for kind in ("stages", "preactivations") for number in numbers), "pooled"]


def _stages(network: PreTrainedModel) -> list[str]:
    """Return the modules whose outputs are those of the stem and of each stage."""
    if isinstance(network, ConvolutionalClassifier):
        return [f"stages.{number}" for number in range(len(network.stages))]
    kind, inside = network.config.model_type, "" if network.base_model is network else f"{network.base_model_prefix}."
    if kind == "mobilenet_v2":
        return [f"{inside}conv_stem", *(f"{inside}layer.{end}" for end in MOBILENET_ENDS)]
    if kind in BUILT_OF_STAGES:
        stem, stages = (f"{inside}{path}" for path in BUILT_OF_STAGES[kind])
        return [stem, *(_before_merging(network, f"{stages}.{number}") for number in range(len(network.config.depths)))]
    if not hasattr(network.config, "patch_size"):
        raise UserError(
            f"The stages of {type(network).__name__} are not known: name a module of the network in their place."
        )
    path, blocks = transformer_blocks(network)
    return [f"{path}.0.input", *(f"{path}.{end}" for end in stage_ends(len(blocks)))]


def _before_merging(network: nn.Module, stage: str) -> str:
    """Return the last block of a stage that merges patches at its end, else the stage."""
    blocks = getattr(network.get_submodule(stage), "blocks", None)
    return stage if blocks is None else f"{stage}.blocks.{len(blocks) - 1}"


def _preactivations(network: nn.Module, stages: list[str]) -> list[str]:
    if isinstance(network, WideResNet):
        return network.preactivations()
    found = []
    for stage in stages:
        path, module = stage, network.get_submodule(stage.removesuffix(".input"))
        while children := list(module.named_children()):
            child, module = children[-1]
            path = f"{path}.{child}"
        found.append(f"{path}.input" if path.endswith(".activation") else stage)
    return found


def _pooled(network: nn.Module) -> str:
    for path, module in network.named_modules():  # a DeiT with two heads has a cls_classifier
        if isinstance(module, nn.Linear) and re.match(r"(cls_)?classifier\b", path):
            return f"{path}.input"
    raise UserError(f"{type(network).__name__} has no classifier that would read a pooled vector: name a module of it.")
