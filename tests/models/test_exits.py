"""Exit branches: their kinds and sizes, what they compute, how they start, and what they refuse."""

import pytest
import torch
from torch import nn

from kdbench.errors import UserError
from kdbench.models.exits import ConvolutionBranch, PatchMerging, TokenBranch, exit_branch, feature_width


def maps(stage, channels=8, side=16):
    return torch.randn(3, channels * 2 ** (stage - 1), side // 2 ** (stage - 1), side // 2 ** (stage - 1))


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_a_branch_of_maps_halves_them_and_doubles_the_channels_up_to_the_wider_network(stage):
    branch = exit_branch(maps(stage), stage, student_width=64, teacher_width=96, classes=20)
    convolutions = [module for module in branch.modules() if isinstance(module, nn.Conv2d)]
    if stage == 4:
        (pointwise,) = convolutions
        assert (pointwise.in_channels, pointwise.out_channels, pointwise.kernel_size) == (64, 96, (1, 1))
    else:
        channels = 8 * 2 ** (stage - 1)
        expected = []
        for place in range(4 - stage):
            own, out = channels * 2**place, 96 if place == 3 - stage else channels * 2 ** (place + 1)
            expected += [(own, own, (3, 3), (2, 2), own), (own, own, (1, 1), (1, 1), 1)]
            expected += [(own, own, (3, 3), (1, 1), own), (own, out, (1, 1), (1, 1), 1)]
        assert [
            (each.in_channels, each.out_channels, each.kernel_size, each.stride, each.groups) for each in convolutions
        ] == expected
        assert all(each.bias is None for each in convolutions)
        assert branch.convolutions(maps(stage)).shape == (3, 96, 2, 2)
    assert branch(maps(stage)).shape == (3, 20)


def test_a_branch_of_maps_is_the_linear_layer_of_their_mean():
    branch = ConvolutionBranch(4, 0, 6, 5).double()
    features = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    weight, bias = branch.convolutions[0].weight[:, :, 0, 0], branch.convolutions[0].bias
    expected = branch.classifier(features.mean((2, 3)) @ weight.T + bias)
    torch.testing.assert_close(branch(features), expected)


@pytest.mark.parametrize(
    ("shape", "stage", "student_width", "merges", "blocks", "class_tokens"),
    [
        ((17, 32), 1, 32, 0, 3, 1),
        ((16, 32), 3, 32, 0, 1, 0),
        ((16, 32), 4, 32, 0, 1, 0),
        ((197, 192), 2, 192, 1, 2, 1),
        ((198, 192), 4, 192, 1, 1, 2),
        ((196, 384), 1, 384, 1, 3, 0),
        ((56 * 56, 96), 1, 768, 3, 3, 0),
        ((28 * 28, 192), 2, 768, 2, 2, 0),
        ((14 * 14, 384), 3, 768, 1, 1, 0),
        ((49, 768), 4, 768, 0, 1, 0),
        ((256, 64), 2, 64, 1, 2, 0),
    ],
)
def test_a_branch_of_tokens_merges_them_down_to_a_grid_of_7(shape, stage, student_width, merges, blocks, class_tokens):
    features = torch.randn(2, *shape)
    branch = exit_branch(features, stage, student_width, teacher_width=2048, classes=20)
    assert (len(branch.merging), len(branch.blocks), branch.class_tokens) == (merges, blocks, class_tokens)
    widths = [shape[1]] + [student_width] * merges
    assert [each.reduction.in_features for each in branch.merging] == [4 * width for width in widths[:-1]]
    assert all(each.reduction.bias is None for each in branch.merging)
    assert {each.self_attn.num_heads for each in branch.blocks} == {4}
    assert branch(features).shape == (2, 20)


@pytest.mark.parametrize(("merges", "expected"), [(1, [True]), (2, [True, False]), (3, [True, True, False])])
def test_mergings_have_their_activation_but_for_the_last_of_several(merges, expected):
    branch = TokenBranch(4, 4, merges, 1, 0, 2)
    assert [isinstance(each.activation, nn.GELU) for each in branch.merging] == expected


def test_merging_takes_neighbours_of_the_grid():
    """Token (r, c) of a 4x4 grid holds 10 r + c: a merged one holds (0,0), (1,0), (0,1), (1,1) of its 2x2."""
    tokens = torch.tensor([[10.0 * row + column] for row in range(4) for column in range(4)])[None].double()
    merging = PatchMerging(1, 4).double()
    merging.norm, merging.reduction.weight.data = nn.Identity(), torch.eye(4, dtype=torch.float64)
    assert merging(tokens)[0].tolist() == [[0, 10, 1, 11], [2, 12, 3, 13], [20, 30, 21, 31], [22, 32, 23, 33]]


@pytest.mark.parametrize("class_tokens", [0, 1, 2])
def test_class_tokens_bypass_the_merging_and_are_what_is_classified(class_tokens):
    branch = TokenBranch(8, 8, 1, 1, class_tokens, 3).double()
    branch.blocks = nn.Identity()
    features = torch.randn(2, class_tokens + 16, 8, dtype=torch.float64)
    read = features[:, :class_tokens] if class_tokens else branch.merging(features)
    torch.testing.assert_close(branch(features), branch.classifier(read.mean(1)))


def test_how_the_weights_start():
    torch.manual_seed(0)
    branch = exit_branch(torch.randn(2, 64, 8, 8), 2, 256, 256, 100)
    depthwise, pointwise = branch.convolutions[0][0], branch.convolutions[0][1]
    assert float(depthwise.weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1), (
        "fan-out, as torch counts it"
    )
    assert float(pointwise.weight.detach().std()) == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert float(branch.classifier.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert (branch.classifier.bias == 0).all()
    tokens = exit_branch(torch.randn(2, 65, 64), 1, 64, 64, 100)
    for weight in (tokens.blocks[0].self_attn.in_proj_weight, tokens.blocks[0].linear1.weight):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert (tokens.blocks[0].linear1.bias == 0).all()


def test_what_cannot_be_read():
    for shape in ((2, 8), (2, 7, 8), (2, 0, 8), (2, 60, 8)):
        with pytest.raises(UserError, match="An exit branch reads maps"):
            exit_branch(torch.zeros(shape), 1, 8, 8, 5)
    with pytest.raises(UserError, match="the tokens' width 6 is no multiple"):
        exit_branch(torch.zeros(2, 16, 6), 1, 6, 6, 5)


def test_the_width_of_the_last_features():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert feature_width(network) == 8
    with pytest.raises(UserError, match="Sequential has no linear layer"):
        feature_width(nn.Sequential(nn.ReLU()))
