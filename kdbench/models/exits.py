"""Exit branches: small networks that turn the features of a student's inner stage into logits (OFA-KD).

They serve a loss while the student is trained, have weights and statistics of their own, and are no part of the student.
Hao et al. 2023, arXiv 2310.19444, as its official code builds them for students of four stages.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from kdbench.errors import UserError

STAGES = 4
GRID = 7  # tokens are merged as long as the grid stays at least as wide
HEADS = 4


def exit_branch(features: Tensor, stage: int, student_width: int, teacher_width: int, classes: int) -> nn.Module:
    """Return the branch for the features of a student's stage, of the kind and size that these ask for.

    Args:
        features: maps ``[B, C, H, W]`` of a convolutional student; or tokens ``[B, N, C]`` of a Transformer or a perceptron, a
            square grid row by row behind the class tokens, if any: the stage's output before any final norm.
        stage: 1 to 4.
        student_width: the width of the student's last features.
        teacher_width: that of the teacher's.
        classes: how many logits.

    Raises:
        UserError: the features are neither maps nor a square grid of tokens, or their width is no multiple of the heads.
    """
    if features.dim() == 4:
        return ConvolutionBranch(features.shape[1], STAGES - stage, max(student_width, teacher_width), classes)
    side = math.isqrt(features.shape[1]) if features.dim() == 3 else 0
    class_tokens = features.shape[1] - side**2
    if side == 0 or class_tokens > 2:
        raise UserError(
            "An exit branch reads maps [B, C, H, W], or a square grid of tokens [B, N, C] with two class tokens at most, not "
            f"features of the shape {tuple(features.shape)}: name another tap for stage {stage}."
        )
    merges = 0
    while side % 2 == 0 and side // 2 >= GRID:
        side, merges = side // 2, merges + 1
    merged_width = features.shape[2] if class_tokens else student_width  # what is not merged keeps its width
    return TokenBranch(features.shape[2], merged_width, merges, max(STAGES - stage, 1), class_tokens, classes)


def feature_width(network: nn.Module) -> int:
    """Return the width of a classifier's last features: the inputs of its last linear layer.

    Raises:
        UserError: the network has no linear layer.
    """
    found = [module.in_features for module in network.modules() if isinstance(module, nn.Linear)]
    if not found:
        raise UserError(f"{type(network).__name__} has no linear layer that would tell the width of its features.")
    return found[-1]


class ConvolutionBranch(nn.Module):
    """Separable convolutions that halve the map and double the channels, the mean over the map, a linear layer.

    Args:
        channels: of the features.
        halvings: how many; without any, one 1x1 convolution.
        width: the channels behind the last convolution.
        classes: how many logits.
    """

    def __init__(self, channels: int, halvings: int, width: int, classes: int) -> None:
        super().__init__()
        sizes = [channels * 2**place for place in range(halvings)] + [width]
        steps = [_halving(*pair) for pair in pairwise(sizes)]
        self.convolutions = nn.Sequential(*(steps or [nn.Conv2d(channels, width, 1)]))
        self.classifier = nn.Linear(width, classes)
        self.apply(_initialise)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, classes]`` of maps ``[B, channels, H, W]``."""
        return self.classifier(self.convolutions(features).mean((2, 3)))


class TokenBranch(nn.Module):
    """Patch merging, Transformer blocks, the class token (or the mean of all tokens), a linear layer.

    Class tokens stand before the grid and are not merged; of two, the mean is classified (ours: the official code has one).

    Args:
        width: of the tokens.
        merged_width: of the tokens behind the first merging.
        merges: how often 2x2 tokens become one.
        blocks: how many.
        class_tokens: how many.
        classes: how many logits.

    Raises:
        UserError: the width of the blocks is no multiple of their 4 heads.
    """

    def __init__(
        self, width: int, merged_width: int, merges: int, blocks: int, class_tokens: int, classes: int
    ) -> None:
        super().__init__()
        self.class_tokens = class_tokens
        widths = [width] + [merged_width] * merges
        if widths[-1] % HEADS:
            raise UserError(
                f"The blocks of an exit branch have {HEADS} heads, and the tokens' width {widths[-1]} is no multiple."
            )
        # A merging alone has its activation, the last of several has none: so the official code.
        self.merging = nn.Sequential(
            *(
                PatchMerging(*pair, activation=place == 0 or place < merges - 1)
                for place, pair in enumerate(pairwise(widths))
            )
        )
        self.blocks = nn.Sequential(*(_block(widths[-1]) for _ in range(blocks)))
        self.classifier = nn.Linear(widths[-1], classes)
        self.apply(_initialise)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, classes]`` of tokens ``[B, class_tokens + side^2, width]``."""
        grid = self.merging(features[:, self.class_tokens :])
        if not self.class_tokens:
            return self.classifier(self.blocks(grid).mean(1))
        tokens = self.blocks(torch.cat([features[:, : self.class_tokens], grid], 1))
        return self.classifier(tokens[:, : self.class_tokens].mean(1))


class PatchMerging(nn.Module):
    """``act(W norm([x_00, x_10, x_01, x_11]))`` of each 2x2 tokens ``x_(row, column)``: a quarter of them is left.

    Args:
        width: of the tokens.
        out_width: of the merged ones.
        activation: whether a GELU follows.
    """

    def __init__(self, width: int, out_width: int, activation: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, out_width, bias=False)
        self.activation = nn.GELU() if activation else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[B, N / 4, out_width]`` of a square grid ``[B, N, width]``, row by row, whose side is even."""
        half = math.isqrt(tokens.shape[1]) // 2
        grid = tokens.unflatten(1, (half, 2, half, 2))  # row, its offset, column, its offset
        together = grid.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)
        return self.activation(self.reduction(self.norm(together)))


def _halving(channels: int, out: int) -> nn.Sequential:
    """Return two separable 3x3 convolutions, the first with stride 2."""

    def separable(stride: int, out: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        return [depthwise, nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    return nn.Sequential(*separable(2, channels), *separable(1, out))


def _block(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width, HEADS, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.trunc_normal_(module.in_proj_weight, std=0.02)
