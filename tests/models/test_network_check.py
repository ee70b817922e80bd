"""Images of the data that a network does not take, told before training."""

import pytest
import torch

from kdbench.errors import UserError
from kdbench.models.network_check import check_images
from kdbench.models.origins import Facts, FromConfig

LABELS = ["a", "b", "c"]
VIT = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1, "patch_size": 4}
NEXT = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ("architecture", "config", "told"),
    [
        (
            "ConvNet",
            {"num_channels": 3},
            r"ConvNet takes images of 3 channels, and those of the data have 1: .*'num_channels: 1'",
        ),
        (
            "ViTForImageClassification",
            {**VIT, "image_size": 32},
            r"does not take images of 8x8 \(Input image size \(8\*8\)",
        ),
        ("MLPMixer", {"image_size": 32}, "MLPMixer does not take images of 8x8"),
        ("ViTForImageClassification", {**VIT, "patch_size": 3}, "into patches of 3x3, and 8x8 is no multiple"),
        ("ConvNextForImageClassification", NEXT, r"ConvNextForImageClassification does not take images of 8x8 \("),
        ("ConvNet", {"num_labels": 10}, r"ConvNet tells 10 classes apart, and the data have 3: .*AddHead"),
        ("ViTForImageClassification", {**VIT, "num_labels": 10}, "tells 10 classes apart, and the data have 3"),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(architecture, config, told):
    facts = Facts(labels=LABELS, image=(1, 8, 8))
    network = FromConfig(architecture, config).build(facts)
    with pytest.raises(UserError, match=told) as caught:
        check_images(network, facts)
    assert "\n" not in str(caught.value)
    assert network.training


@pytest.mark.parametrize(("architecture", "config"), [("ConvNet", {}), ("ViTForImageClassification", VIT)])
def test_what_fits_is_left_as_it_was(architecture, config):
    facts = Facts(labels=LABELS, image=(1, 8, 8))
    network = FromConfig(architecture, config).build(facts)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    check_images(network, facts)
    assert torch.equal(state, torch.random.get_rng_state())
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_other_networks_and_other_data_are_let_pass():
    check_images(FromConfig("MLPClassifier", {"inputs": 4}).build(), Facts(image=(1, 8, 8)))
    check_images(FromConfig("ConvNet", {}).build(), Facts(labels=LABELS))
