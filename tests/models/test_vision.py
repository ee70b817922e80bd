"""Our networks of images: the published sizes, the shapes of their stages, what they compute, and what a folder keeps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification, ResNetConfig
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer

from kdbench.errors import UserError
from kdbench.metrics.speed import parameters
from kdbench.models.fingerprint import network_digest
from kdbench.models.mobile import ShuffleBlock
from kdbench.models.origins import Facts, FromConfig, FromFolder, FromHub, quiet
from kdbench.models.surgery import AddHead, CopyLayers, RandomWeights
from kdbench.models.taps import Taps, check_view
from kdbench.models.vision import ConvLayer, ResidualBlock

X4 = {"widths": [32, 64, 128, 256]}
IMAGENET = {"image_size": 224, "patch_size": 16, "num_hidden_layers": 12}
PUBLISHED = [  # architecture, config, classes, parameters
    ("CifarResNet", {"depth": 20}, 100, 278_324),
    ("CifarResNet", {"depth": 20}, 10, 272_474),  # He et al. tell 0.27M; with padded shortcuts it would be 269,722
    ("CifarResNet", {"depth": 32}, 100, 472_756),
    ("CifarResNet", {"depth": 56}, 100, 861_620),
    ("CifarResNet", {"depth": 110}, 100, 1_736_564),
    ("CifarResNet", {"depth": 8, **X4}, 100, 1_233_540),
    ("CifarResNet", {"depth": 32, **X4}, 100, 7_433_860),
    ("WideResNet", {"depth": 16, "factor": 2}, 100, 703_284),
    ("WideResNet", {"depth": 40, "factor": 1}, 100, 569_780),
    ("WideResNet", {"depth": 40, "factor": 2}, 100, 2_255_156),
    ("WideResNet", {"depth": 28, "factor": 10}, 10, 36_479_194),
    ("VGG", {"depth": 8}, 100, 3_965_028),
    ("VGG", {"depth": 13}, 100, 9_462_180),
    ("ShuffleNetV2", {}, 100, 1_355_528),
    ("CifarMobileNetV2", {}, 100, 812_836),
    ("MLPMixer", {**IMAGENET, "hidden_size": 768}, 1000, 59_880_472),
    ("ResMLP", {**IMAGENET, "hidden_size": 384}, 1000, 15_350_872),
]
SHAPES = {  # of stem and stages for images of 32x32: channels and edge; tokens and width
    "ConvNet": ({"widths": [8, 16, 32, 64]}, [(8, 32), (8, 32), (16, 16), (32, 8), (64, 4)]),
    "CifarResNet": ({"depth": 8}, [(16, 32), (16, 32), (32, 16), (64, 8)]),
    "WideResNet": ({"depth": 10, "factor": 2}, [(16, 32), (32, 32), (64, 16), (128, 8)]),
    "VGG": ({"widths": [4, 8, 16, 24, 32]}, [(4, 32), (8, 16), (16, 8), (24, 4), (32, 4)]),
    "ShuffleNetV2": ({"factor": 0.5}, [(24, 32), (48, 16), (96, 8), (192, 4)]),
    "CifarMobileNetV2": ({}, [(16, 16), (12, 16), (16, 8), (48, 4), (160, 2)]),
}
PATCHED = {"MLPMixer": {"hidden_size": 12}, "ResMLP": {"hidden_size": 12, "layer_scale": 0.5}}
CONFIGS = {name: config for name, (config, _) in SHAPES.items()} | PATCHED
LABELS = ["cat", "dog", "owl"]
POOLED = {"ShuffleNetV2": 1024, "CifarMobileNetV2": 1280, "MLPMixer": 12, "ResMLP": 12}


def network_of(architecture, image=(3, 32, 32), then=None, **config):
    torch.manual_seed(0)
    origin = FromConfig(architecture, CONFIGS[architecture] | config, then)
    return origin.build(Facts(labels=LABELS, image=image)).eval()


def used(network, image=(3, 32, 32)):
    """Let the statistics of the batch norms be those of some images, as after a training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _ in range(3):
            network.train()(pixel_values=torch.randn(8, *image))
    return network.eval()


def images(rows=2, image=(3, 32, 32)):
    return torch.randn(rows, *image, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("architecture", "config", "classes", "count"), PUBLISHED)
def test_sizes_are_the_published_ones(architecture, config, classes, count):
    with torch.device("meta"):
        network = FromConfig(architecture, config | {"num_labels": classes}).build()
    assert parameters(network)["parameters"] == count


@pytest.mark.parametrize("architecture", SHAPES)
def test_every_stage_is_a_tap(architecture):
    network, (_, wanted) = used(network_of(architecture)), SHAPES[architecture]
    numbers = range(len(wanted))
    names = [f"{kind}.{number}" for kind in ("stages", "preactivations") for number in numbers]
    found = Taps(network, [*names, "stages.-1", "preactivations.-1", "pooled", "logits"])({"pixel_values": images()})
    for number, (channels, edge) in enumerate(wanted):
        assert found[f"stages.{number}"].shape == (2, channels, edge, edge)
        assert found[f"preactivations.{number}"].shape == (2, channels, edge, edge)
    assert torch.equal(found["stages.-1"], found[f"stages.{numbers[-1]}"])
    assert torch.equal(found["preactivations.-1"], found[f"preactivations.{numbers[-1]}"])
    assert found["pooled"].shape == (2, POOLED.get(architecture, wanted[-1][0]))
    torch.testing.assert_close(network.classifier(found["pooled"]), found["logits"])
    if architecture not in POOLED and architecture != "WideResNet":
        torch.testing.assert_close(found["stages.-1"].mean((2, 3)), found["pooled"])


@pytest.mark.parametrize("architecture", ["ConvNet", "CifarResNet", "VGG", "ShuffleNetV2"])
def test_a_stage_is_its_rectified_preactivation(architecture):
    network = used(network_of(architecture))
    numbers = range(len(network.stages))
    taps = [f"{kind}.{number}" for kind in ("stages", "preactivations") for number in numbers]
    found = Taps(network, taps)({"pixel_values": images()})
    for number in numbers:
        before = found[f"preactivations.{number}"]
        assert torch.equal(found[f"stages.{number}"], before.relu())
        assert (before < 0).any()


def test_the_preactivations_of_a_wide_residual_network_are_the_next_norms():
    network = used(network_of("WideResNet"))
    names = [f"{kind}.{number}" for kind in ("stages", "preactivations") for number in range(4)]
    found = Taps(network, [*names, "pooled"])({"pixel_values": images()})
    for number in range(3):
        norm = network.stages[number + 1][0].norm1
        torch.testing.assert_close(norm(found[f"stages.{number}"]), found[f"preactivations.{number}"])
    torch.testing.assert_close(found["preactivations.3"].relu().mean((2, 3)), found["pooled"])


def test_the_linear_bottlenecks_of_a_mobile_network_are_their_own_preactivations():
    found = Taps(used(network_of("CifarMobileNetV2")), ["stages.2", "preactivations.2"])({"pixel_values": images()})
    assert torch.equal(found["stages.2"], found["preactivations.2"])
    assert (found["stages.2"] < 0).any()


@pytest.mark.parametrize(("inputs", "width", "stride"), [(6, 6, 1), (6, 10, 1), (6, 10, 2), (6, 6, 2)])
def test_a_residual_block_is_that_of_transformers(inputs, width, stride):
    torch.manual_seed(0)
    ours, theirs = ResidualBlock(inputs, width, stride), ResNetBasicLayer(inputs, width, stride)
    names = {
        "first": "layer.0",
        "second": "layer.1",
        "shortcut": "shortcut",
        "conv": "convolution",
        "norm": "normalization",
    }
    renamed = {
        ".".join(names.get(part, part) for part in key.split(".")): each for key, each in ours.state_dict().items()
    }
    theirs.load_state_dict(renamed)
    states = torch.randn(4, inputs, 8, 8)
    assert torch.equal(ours(states), theirs(states))


@pytest.mark.parametrize("halves", [True, False])
def test_a_shuffle_block_takes_turns_between_its_paths(halves):
    torch.manual_seed(0)
    block, states = ShuffleBlock(8, 12 if halves else 8, halves), torch.randn(2, 8, 6, 6).relu()
    left, right = (block.left(states), block.right(states)) if halves else (states[:, :4], block.right(states[:, 4:]))
    out = torch.cat([left.relu(), right.relu()], 1)
    rows, channels, height, width = out.shape
    shuffled = out.view(rows, 2, channels // 2, height, width).permute(0, 2, 1, 3, 4).reshape(out.shape)
    assert torch.equal(block(states), shuffled)
    assert height == (3 if halves else 6)


def test_a_mixer_is_its_equations():
    network, pixels = network_of("MLPMixer", num_hidden_layers=1), images()
    weight = network.embedding[0].weight
    cut = pixels.unfold(2, 4, 4).unfold(3, 4, 4)  # B C 8 8 4 4
    states = torch.einsum("bchwij,dcij->bhwd", cut, weight).flatten(1, 2) + network.embedding[0].bias
    layer = network.layers[0]
    for norm, perceptron, over in ((layer.norm1, layer.tokens, 1), (layer.norm2, layer.channels, 2)):
        inner = nn.functional.layer_norm(states, (12,), norm.weight, norm.bias, 1e-6).transpose(over, 2)
        hidden = nn.functional.gelu(inner @ perceptron[0].weight.T + perceptron[0].bias)
        states = states + (hidden @ perceptron[2].weight.T + perceptron[2].bias).transpose(over, 2)
    pooled = nn.functional.layer_norm(states, (12,), eps=1e-6).mean(1)
    wanted = pooled @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(pixel_values=pixels).logits, wanted)


def test_a_resmlp_without_its_branches_is_linear():
    network, pixels = network_of("ResMLP", layer_scale=0.0), images()
    wanted = network.classifier(network.embedding(pixels).mean(1))
    torch.testing.assert_close(network(pixel_values=pixels).logits, wanted)
    other = network_of("ResMLP")
    assert not torch.allclose(other(pixel_values=pixels).logits, wanted)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 17))
def test_a_conv_net_has_any_number_of_stages(widths, layers, channels, edge):
    torch.manual_seed(0)
    origin = FromConfig("ConvNet", {"widths": widths, "layers": layers})
    network = origin.build(Facts(labels=LABELS, image=(channels, edge, edge))).eval()
    assert network(pixel_values=torch.randn(2, channels, edge, edge)).logits.shape == (2, 3)
    convolutions = [module for module in network.modules() if isinstance(module, ConvLayer)]
    assert len(convolutions) == 1 + layers * len(widths)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_data_tell_channels_size_and_classes(architecture):
    network = network_of(architecture, (1, 16, 16))
    assert network(pixel_values=images(2, (1, 16, 16))).logits.shape == (2, 3)
    assert network.config.num_channels == 1
    assert network.config.id2label == dict(enumerate(LABELS))
    assert network.config.label2id == {"cat": 0, "dog": 1, "owl": 2}
    assert network.training is False
    check_view(network, ["pixel_values"])


@pytest.mark.parametrize("architecture", CONFIGS)
def test_saved_and_loaded_by_transformers_it_gives_equal_outputs(tmp_path, architecture):
    network, pixels = used(network_of(architecture)), images()
    with quiet():
        network.save_pretrained(tmp_path)
        plain = [kind.from_pretrained(tmp_path) for kind in (AutoModel, AutoModelForImageClassification)]
    for other in (*plain, FromFolder(str(tmp_path)).build(Facts(labels=LABELS)).eval()):
        assert type(other) is type(network)
        assert torch.equal(other(pixel_values=pixels).logits, network(pixel_values=pixels).logits)
        assert other.config.id2label == network.config.id2label
    assert FromFolder(str(tmp_path)).tokenizer() is None


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_parameter_has_a_gradient_and_the_weights_follow_the_seed(architecture):
    network, again = network_of(architecture), network_of(architecture)
    assert network_digest(network) == network_digest(again)
    torch.manual_seed(1)
    assert network_digest(FromConfig(architecture, CONFIGS[architecture]).build()) != network_digest(network)
    network.train()(pixel_values=images(4)).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_weights_begin_as_the_docstrings_say(architecture):
    network = network_of(architecture, num_labels=400)
    convolution = max(
        (each for each in network.modules() if isinstance(each, nn.Conv2d)), key=lambda each: each.weight.numel()
    )
    weight, head = convolution.weight, network.classifier.weight
    outputs, inputs, *size = weight.shape
    area = math.prod(size)
    if architecture in PATCHED:
        first, last = math.sqrt(2 / (outputs + inputs * area)), math.sqrt(2 / sum(head.shape))
    elif architecture == "ShuffleNetV2":
        first, last = math.sqrt(1 / (3 * inputs * area)), math.sqrt(1 / (3 * head.shape[1]))
    else:
        first, last = math.sqrt(2 / (outputs * area)), math.sqrt(1 / (3 * head.shape[1]))
    last = 0.01 if architecture in ("VGG", "CifarMobileNetV2") else last
    assert weight.std().item() == pytest.approx(first, rel=0.1)
    assert head.std().item() == pytest.approx(last, rel=0.1)
    zero = architecture in ("VGG", "CifarMobileNetV2", "WideResNet", *PATCHED)
    assert bool((network.classifier.bias == 0).all()) is zero


@pytest.mark.parametrize("architecture", ["ConvNet", "MLPMixer"])
def test_a_new_head_for_other_classes_keeps_all_else(tmp_path, architecture):
    network = used(network_of(architecture))
    with quiet():
        network.save_pretrained(tmp_path)
    origin = FromFolder(str(tmp_path), then=[AddHead("classification")])
    other = origin.build(Facts(labels=["a", "b", "c", "d"])).eval()
    assert other.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}
    assert other.classifier.weight.shape[0] == 4
    pixels = {"pixel_values": images()}
    assert torch.equal(Taps(other, ["pooled"])(pixels)["pooled"], Taps(network, ["pooled"])(pixels)["pooled"])


def test_a_new_head_for_a_network_of_transformers(tmp_path):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    assert ResNetConfig(**sizes).num_labels == 2
    network = FromConfig("ResNetForImageClassification", sizes).build(Facts(labels=LABELS, image=(3, 32, 32)))
    assert network.config.num_labels == 3
    used(network)
    with quiet():
        network.save_pretrained(tmp_path)
    origin = FromFolder(str(tmp_path), then=[AddHead("classification")])
    other = origin.build(Facts(labels=["a", "b", "c", "d"])).eval()
    pixels = {"pixel_values": images()}
    assert torch.equal(Taps(other, ["pooled"])(pixels)["pooled"], Taps(network, ["pooled"])(pixels)["pooled"])
    assert other(**pixels).logits.shape == (2, 4)


def test_layers_are_copied_as_those_of_a_transformer():
    network, facts = network_of("MLPMixer"), Facts(labels=LABELS)
    smaller = CopyLayers(layers=[0, 3])(network, facts).eval()
    taken = Taps(network, ["hidden_states.0"])({"pixel_values": images()})["hidden_states.0"]
    for layer in (network.layers[0], network.layers[3]):
        taken = layer(taken)
    assert torch.equal(Taps(smaller, ["stages.-1"])({"pixel_values": images()})["stages.-1"], taken)
    wider = RandomWeights({"hidden_size": 20, "channel_width": 30})(network, facts)
    assert wider.layers[0].channels[0].weight.shape == (30, 20)


def test_a_network_of_the_hub_brings_no_tokenizer():
    assert FromHub("microsoft/resnet-18", "AutoModelForImageClassification").tokenizer() is None
    assert FromHub("microsoft/resnet-18", "ResNetModel").tokenizer() is None


@pytest.mark.parametrize(
    ("architecture", "config", "told"),
    [
        ("ConvNet", {"widths": []}, r"sizes of a ConvNet are whole numbers of at least 1: not widths \[\]"),
        ("ConvNet", {"widths": [8, 0]}, r"not widths \[8, 0\]"),
        ("ConvNet", {"layers": 0}, "not layers 0"),
        ("ConvNet", {"width": [8]}, r"ConvNetConfig has no 'width'\. Did you mean 'widths'"),
        ("ConvNett", {}, "Did you mean 'ConvNet'"),
        ("CifarResNet", {"depth": 18}, r"depth of 6 n \+ 2, such as 8, 20 or 56, not 18"),
        ("CifarResNet", {"widths": [16, 32]}, "four widths, of its stem and its three stages"),
        ("WideResNet", {"depth": 20}, r"depth of 6 n \+ 4"),
        ("WideResNet", {"factor": 0}, "not factor 0"),
        ("VGG", {"depth": 9}, "depth of 8, 11, 13, 16, 19, not 9"),
        ("VGG", {"widths": [4]}, "five widths"),
        ("ShuffleNetV2", {"factor": 3}, r"factor of 0\.5, 1\.0, 1\.5, 2\.0, not 3"),
        ("CifarMobileNetV2", {"factor": 0.05}, "not width 0"),
        ("MLPMixer", {"patch_size": 5}, "patches of 5x5, and 32x32 is no multiple"),
        ("ResMLP", {"image_size": [32, 30]}, "patches of 4x4, and 32x30 is no multiple"),
        ("ResMLP", {"hidden_size": 0}, "not hidden_size 0"),
    ],
)
def test_mistakes_are_told(architecture, config, told):
    with pytest.raises(UserError, match=told):
        FromConfig(architecture, config).build(Facts(labels=LABELS, image=(3, 32, 32)))
