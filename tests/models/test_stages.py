"""Stages as taps: of every family of image networks, against what transformers itself gives."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdbench.errors import UserError
from kdbench.models.layers import stage_ends
from kdbench.models.origins import Facts, FromConfig
from kdbench.models.taps import Taps

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
CONFIGS = {
    "ResNetForImageClassification": {
        "embedding_size": 8,
        "hidden_sizes": [8, 12, 16],
        "depths": [1, 2, 1],
        "layer_type": "basic",
    },
    "ConvNextForImageClassification": {"hidden_sizes": [8, 12, 16], "depths": [1, 2, 1], "num_stages": 3},
    "ConvNextV2ForImageClassification": {"hidden_sizes": [8, 12, 16], "depths": [1, 2, 1], "num_stages": 3},
    "SwinForImageClassification": {"embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 2], "window_size": 2},
    "Swinv2ForImageClassification": {"embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 2], "window_size": 2},
    "MobileNetV2ForImageClassification": {"depth_multiplier": 0.35},
    "ViTForImageClassification": {**SIZES, "patch_size": 8, "num_hidden_layers": 5},
    "DeiTForImageClassification": {**SIZES, "patch_size": 8, "num_hidden_layers": 5},
    "DeiTForImageClassificationWithTeacher": {**SIZES, "patch_size": 8, "num_hidden_layers": 5},
    "MLPMixer": {"hidden_size": 16, "patch_size": 8, "num_hidden_layers": 5},
    "ResMLP": {"hidden_size": 16, "patch_size": 8, "num_hidden_layers": 5},
}
STAGES = {  # shapes of stem and stages for images of 32x32
    "ResNetForImageClassification": [(8, 8, 8), (8, 8, 8), (12, 4, 4), (16, 2, 2)],
    "ConvNextForImageClassification": [(8, 8, 8), (8, 8, 8), (12, 4, 4), (16, 2, 2)],
    "ConvNextV2ForImageClassification": [(8, 8, 8), (8, 8, 8), (12, 4, 4), (16, 2, 2)],
    "SwinForImageClassification": [(64, 8), (64, 8), (16, 16), (4, 32)],
    "Swinv2ForImageClassification": [(64, 8), (64, 8), (16, 16), (4, 32)],
    "MobileNetV2ForImageClassification": [(8, 16, 16), (8, 8, 8), (16, 4, 4), (32, 2, 2), (112, 1, 1)],
    "ViTForImageClassification": [(17, 16)] * 5,
    "DeiTForImageClassification": [(18, 16)] * 5,
    "DeiTForImageClassificationWithTeacher": [(18, 16)] * 5,
    "MLPMixer": [(16, 16)] * 5,
    "ResMLP": [(16, 16)] * 5,
}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def network_of(architecture, **changes):
    torch.manual_seed(0)
    origin = FromConfig(architecture, CONFIGS[architecture] | changes)
    return origin.build(Facts(labels=["a", "b", "c"], image=(3, 32, 32))).eval()


def taps(network, *names):
    return Taps(network, names)({"pixel_values": IMAGES})


@pytest.mark.parametrize("architecture", CONFIGS)
def test_stem_and_stages_are_taps(architecture):
    network, wanted = network_of(architecture), STAGES[architecture]
    numbers = range(len(wanted))
    found = taps(
        network, *(f"{kind}.{number}" for kind in ("stages", "preactivations") for number in numbers), "stages.-1"
    )
    for number, shape in enumerate(wanted):
        assert found[f"stages.{number}"].shape == (2, *shape)
        assert found[f"preactivations.{number}"].shape == (2, *shape)
    assert torch.equal(found["stages.-1"], found[f"stages.{numbers[-1]}"])


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_pooled_vector_gives_the_logits(architecture):
    network = network_of(architecture)
    found = taps(network, "pooled")
    heads = [each for path, each in network.named_modules() if isinstance(each, nn.Linear) and "classifier" in path]
    head = heads[0]
    assert found["pooled"].shape == (2, head.in_features)
    output = network(pixel_values=IMAGES)  # a DeiT of two heads gives the mean of both as its logits
    wanted = output.cls_logits if architecture.endswith("WithTeacher") else output.logits
    torch.testing.assert_close(head(found["pooled"]), wanted)


@pytest.mark.parametrize("architecture", [name for name in CONFIGS if "For" in name])
def test_stages_are_the_hidden_states_of_transformers(architecture):
    network = network_of(architecture)
    given_back = network(pixel_values=IMAGES, output_hidden_states=True)
    last = len(STAGES[architecture]) - 1
    found = taps(network, *(f"stages.{number}" for number in range(last + 1)))
    if architecture.startswith("Swin"):  # transformers gives the states behind the merging of patches
        merge = network.base_model.encoder.layers[0].downsample
        torch.testing.assert_close(merge(found["stages.1"], (8, 8)), given_back.hidden_states[1])
        assert torch.equal(found["stages.3"], given_back.hidden_states[3])
        assert torch.equal(found["stages.0"], given_back.hidden_states[0])
        return
    chosen = {"MobileNetV2": [None, 1, 4, 11, 15], "ViT": [0, 1, 2, 4, 5], "DeiT": [0, 1, 2, 4, 5]}
    places = next((each for name, each in chosen.items() if architecture.startswith(name)), list(range(last + 1)))
    for number, place in enumerate(places):
        if place is not None:
            assert torch.equal(found[f"stages.{number}"], given_back.hidden_states[place]), number


def test_the_preactivations_of_a_residual_network_come_before_its_units():
    found = taps(network_of("ResNetForImageClassification"), *(f"{kind}.2" for kind in ("stages", "preactivations")))
    assert torch.equal(found["stages.2"], found["preactivations.2"].relu())
    assert (found["preactivations.2"] < 0).any()


@pytest.mark.parametrize("architecture", ["ConvNextForImageClassification", "ViTForImageClassification", "MLPMixer"])
def test_a_stage_that_ends_without_a_unit_is_its_own(architecture):
    found = taps(network_of(architecture), "stages.2", "preactivations.2")
    assert torch.equal(found["stages.2"], found["preactivations.2"])


def test_a_network_without_a_head_has_stages():
    torch.manual_seed(0)
    network = transformers.ResNetModel(transformers.ResNetConfig(**CONFIGS["ResNetForImageClassification"])).eval()
    assert taps(network, "stages.-1")["stages.-1"].shape == (2, 16, 2, 2)
    with pytest.raises(UserError, match="ResNetModel has no classifier that would read a pooled vector"):
        taps(network, "pooled")


def test_the_stages_of_twelve_equal_blocks():
    assert stage_ends(12) == [1, 3, 9, 11]
    assert [stage_ends(blocks) for blocks in (1, 2, 3, 4)] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert stage_ends(24) == [3, 7, 19, 23]
    assert stage_ends(9) == [1, 2, 7, 8]  # halves up


@given(st.integers(1, 60))
def test_stages_end_one_after_another_and_the_last_with_the_last_block(blocks):
    ends = stage_ends(blocks)
    assert ends == sorted(set(ends)) and ends[-1] == blocks - 1
    assert len(ends) == min(4, blocks)
    assert all(abs(end + 1 - blocks * part) <= 2 for end, part in zip(ends, (1 / 6, 1 / 3, 5 / 6, 1), strict=False))


def test_stages_have_gradients():
    network = network_of("ConvNextForImageClassification")
    taps(network, "stages.1")["stages.1"].sum().backward()
    assert network.convnext.embeddings.patch_embeddings.weight.grad is not None
    assert network.classifier.weight.grad is None


@pytest.mark.parametrize(
    ("architecture", "name", "told"),
    [
        (
            "MLPMixer",
            "stages.5",
            r"'stages\.5' is out of range: the network has a stem and 4 stages \(stages\.0 to \.4\)",
        ),
        ("ResNetForImageClassification", "preactivations.-5", r"a stem and 3 stages \(preactivations\.0 to \.3\)"),
        ("ResNetForImageClassification", "stage.2", r"has no tap 'stage\.2'\. Did you mean 'stages\.[0-3]'"),
        ("ResNetForImageClassification", "preactivation.2", r"Did you mean 'preactivations\.[0-3]'"),
        ("ViTForImageClassification", "poold", "has no tap 'poold'. Did you mean 'pooled'"),
        ("MLPMixer", "stages.one", r"has no tap 'stages\.one'"),
    ],
)
def test_a_wrong_name_is_told(architecture, name, told):
    with pytest.raises(UserError, match=told):
        taps(network_of(architecture), name)


def test_a_network_of_unknown_stages_is_told():
    config = transformers.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=8)
    network = transformers.RegNetForImageClassification(config)
    with pytest.raises(UserError, match="stages of RegNetForImageClassification are not known: name a module"):
        Taps(network, ["stages.1"])
    with pytest.raises(UserError, match="has no tap 'stage'"):
        Taps(network, ["stage"])({"pixel_values": IMAGES})


def test_a_network_of_texts_has_no_stages():
    sizes = {"vocab_size": 20, "num_hidden_layers": 2, **SIZES}
    network = transformers.BertModel(transformers.BertConfig(**sizes))
    with pytest.raises(UserError, match=r"BertModel has no tap 'stages\.1'"):
        Taps(network, ["stages.1"])
