import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from torch.nn.functional import interpolate

from kdbench.data.image_augmentation import (
    ColourJitter,
    Erasing,
    HorizontalFlip,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    _changes,
)
from kdbench.errors import UserError

ALL = [
    RandomCrop(2),
    RandomCrop(3, "circular"),
    HorizontalFlip(),
    RandomResizedCrop(),
    Erasing(probability=0.8),
    ColourJitter(hue=0.1),
    RandAugment(),
]


def images(batch=6, channels=3, height=12, width=10, seed=0):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def drawn(batch, numbers, seed=0):
    return torch.rand(batch, numbers, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("change", ALL, ids=lambda each: type(each).__name__)
def test_an_image_is_changed_by_its_own_numbers_alone(change):
    x, numbers = images(8), drawn(8, change.numbers, 1)
    before = x.clone()
    whole = change(x, numbers)
    assert torch.equal(x, before), "the images are left as they were"
    assert whole.shape == x.shape and whole.min() >= 0 and whole.max() <= 1
    for place in range(8):
        alone = change(x[place : place + 1], numbers[place : place + 1])
        torch.testing.assert_close(alone[0], whole[place])
    assert not torch.allclose(whole, x)


# ---- crops and flips ----


@given(st.integers(1, 4), st.sampled_from(["constant", "reflect", "circular"]), st.integers(0, 20))
def test_a_random_crop_is_a_window_of_the_padded_image(padding, mode, seed):
    x, numbers = images(5, seed=seed), drawn(5, 2, seed)
    found = RandomCrop(padding, mode)(x, numbers)
    wide = np.pad(x.numpy(), [(0, 0), (0, 0), (padding,) * 2, (padding,) * 2], mode=mode.replace("circular", "wrap"))
    for own, window, (down, right) in zip(found, wide, numbers.tolist(), strict=True):
        top, left = int(down * (2 * padding + 1)), int(right * (2 * padding + 1))
        assert np.array_equal(own.numpy(), window[:, top : top + 12, left : left + 10])


def test_every_shift_is_alike_and_a_circular_crop_is_a_roll():
    x = torch.zeros(2500, 1, 5, 5)
    x[:, :, 2, 2] = 1.0
    moved = RandomCrop(2, "circular")(x, drawn(2500, 2))
    counts = moved.sum((0, 1)).flatten()
    assert counts.sum() == 2500 and stats.chisquare(counts.numpy()).pvalue > 1e-3
    for largest in (0.0, 1 - 2**-24):
        corner = RandomCrop(2, "circular")(x[:1], torch.full((1, 2), largest))
        by = 2 if largest == 0 else -2
        assert torch.equal(corner, x[:1].roll((by, by), (2, 3)))


@given(st.floats(0, 1), st.integers(0, 20))
def test_a_share_of_the_images_is_flipped(probability, seed):
    x, numbers = images(40, seed=seed), drawn(40, 1, seed)
    found = HorizontalFlip(probability)(x, numbers)
    for own, before, number in zip(found, x, numbers[:, 0].tolist(), strict=True):
        assert torch.equal(own, before.flip(-1) if number < probability else before)


# ---- boxes ----


def torchvision_box(numbers, height, width, scale, ratio):
    """The procedure of torchvision's RandomResizedCrop, on given random numbers."""
    logs = [math.log(each) for each in ratio]
    for attempt in range(10):
        target = height * width * (scale[0] + (scale[1] - scale[0]) * numbers[2 * attempt])
        aspect = math.exp(logs[0] + (logs[1] - logs[0]) * numbers[2 * attempt + 1])
        wide, high = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < wide <= width and 0 < high <= height:
            return int(numbers[20] * (height - high + 1)), int(numbers[21] * (width - wide + 1)), high, wide
    if width / height < min(ratio):
        wide, high = width, round(width / min(ratio))
    elif width / height > max(ratio):
        wide, high = round(height * max(ratio)), height
    else:
        wide, high = width, height
    return (height - high) // 2, (width - wide) // 2, high, wide


@given(st.sampled_from([(12, 10), (32, 32), (9, 40), (40, 9)]), st.integers(0, 30))
def test_boxes_are_those_of_torchvision(size, seed):
    numbers = drawn(50, RandomResizedCrop.numbers, seed).double()
    box = RandomResizedCrop().boxes(numbers, *size)
    for place, own in enumerate(numbers.tolist()):
        expected = torchvision_box(own, *size, (0.08, 1.0), (3 / 4, 4 / 3))
        assert tuple(int(each[place]) for each in box[:4]) == expected


def test_where_no_box_fits_the_largest_in_the_middle_is_taken():
    crop = RandomResizedCrop(scale=(0.9, 1.0))
    for size, middle in (((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10))):
        box = crop.boxes(drawn(20, crop.numbers), *size)
        assert {tuple(int(each) for each in own[:4]) for own in zip(*box, strict=True)} == {middle}


@pytest.mark.parametrize("size", [None, 8, 25])
def test_a_resized_crop_is_the_crop_resized(size):
    x, crop = images(30, height=16, width=16), RandomResizedCrop(size)
    numbers = drawn(30, crop.numbers, 5)
    found = crop(x, numbers)
    for place, (top, left, height, width) in enumerate(zip(*crop.boxes(numbers, 16, 16)[:4], strict=True)):
        own = x[place : place + 1, :, top : top + height, left : left + width]
        expected = interpolate(own, (size or 16, size or 16), mode="bilinear", align_corners=False)
        torch.testing.assert_close(found[place], expected[0], atol=1e-5, rtol=0)


def test_an_image_from_a_file_is_cut_alike():
    x, crop = images(1, height=20, width=20), RandomResizedCrop(scale=(0.2, 0.4))
    picture = Image.fromarray((x[0] * 255).byte().permute(1, 2, 0).numpy())
    for seed in range(5):
        numbers = drawn(1, crop.numbers, seed)
        cut = torch.tensor(np.asarray(crop.cut(picture, numbers[0], 40))).permute(2, 0, 1) / 255
        torch.testing.assert_close(cut, RandomResizedCrop(40, scale=(0.2, 0.4))(x, numbers)[0], atol=0.01, rtol=0)


@given(st.integers(0, 20))
def test_erasing_fills_its_box_with_one_colour_of_its_own(seed):
    x, change = images(40, seed=seed) * 0.0 - 1, Erasing(probability=0.5)
    numbers = drawn(40, change.numbers, seed)
    found, box = change(x, numbers), change.boxes(numbers, 12, 10)
    for place, own in enumerate(numbers):
        erased = (found[place] != -1).all(0)
        if own[-4] >= 0.5 or not box.found[place]:
            assert not erased.any()
            continue
        top, left, height, width = (int(each[place]) for each in box[:4])
        assert erased[top : top + height, left : left + width].all() and erased.sum() == height * width
        assert torch.equal(found[place][:, erased], own[-3:, None].expand(3, height * width))
        assert 0.02 * 120 - 6 <= height * width <= 120 / 3 + 7  # edges are rounded


# ---- colours, against Pillow ----


def as_picture(image):
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def levels(seed=0):
    """One image of whole levels, as a file has them."""
    return (images(1, height=16, width=16, seed=seed) * 255).round() / 255


PILLOW = {
    "brightness": lambda x, m: ImageEnhance.Brightness(x).enhance(1 + 0.9 * m),
    "saturation": lambda x, m: ImageEnhance.Color(x).enhance(1 + 0.9 * m),
    "contrast": lambda x, m: ImageEnhance.Contrast(x).enhance(1 + 0.9 * m),
    "sharpness": lambda x, m: ImageEnhance.Sharpness(x).enhance(1 + 0.9 * m),
    "autocontrast": lambda x, m: ImageOps.autocontrast(x),
    "equalize": lambda x, m: ImageOps.equalize(x),
    "solarize": lambda x, m: ImageOps.solarize(x, 255 * (1 - abs(m))),
    "posterize": lambda x, m: ImageOps.posterize(x, 8 - round(4 * abs(m))),
    "identity": lambda x, m: x,
    "translate_x": lambda x, m: x.transform(x.size, Image.Transform.AFFINE, (1, 0, -m * 16 * 150 / 331, 0, 1, 0)),
    "translate_y": lambda x, m: x.transform(x.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, -m * 16 * 150 / 331)),
    "rotate": lambda x, m: x.rotate(30 * m),
    "shear_x": lambda x, m: x.transform(x.size, Image.Transform.AFFINE, (1, -0.3 * m, 0, 0, 1, 0)),
    "shear_y": lambda x, m: x.transform(x.size, Image.Transform.AFFINE, (1, 0, 0, -0.3 * m, 1, 0)),
}


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("strength", [0.3, 0.9])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_changes_of_randaugment_against_pillow(name, strength, sign):
    x = levels()
    found = _changes(strength, 16)[name](x, torch.tensor([sign]))[0]
    expected = torch.tensor(np.asarray(PILLOW[name](as_picture(x[0]), strength * sign))).permute(2, 0, 1) / 255
    wrong = ((found - expected).abs() > 2 / 255).any(0).float().mean()
    if name in (
        "rotate",
        "shear_x",
        "shear_y",
        "translate_x",
        "translate_y",
    ):  # the nearest pixel is a matter of rounding
        assert wrong < 0.2
    else:
        assert wrong == 0


def test_the_names_are_those_of_the_paper():
    assert set(_changes(0.5, 16)) == set(PILLOW) and len(PILLOW) == 14


def test_randaugment_applies_its_changes_one_after_another():
    x = levels()
    changes = list(_changes(9 / 30, 16).values())
    for first, second in ((6, 13), (10, 7), (12, 11)):
        numbers = torch.tensor([[(first + 0.5) / 14, 0.2, (second + 0.5) / 14, 0.7]])
        expected = changes[second](changes[first](x, torch.tensor([-1.0])), torch.tensor([1.0]))
        torch.testing.assert_close(RandAugment()(x, numbers), expected)


def test_a_jitter_is_a_factor_of_each_enhancement():
    x = levels(3)
    numbers = torch.tensor([[0.0, 1.0, 0.75, 0.5]])
    found = ColourJitter(0.4, 0.2, 0.4)(x, numbers)[0]
    picture = as_picture(x[0])
    for enhance, factor in ((ImageEnhance.Brightness, 0.6), (ImageEnhance.Contrast, 1.2), (ImageEnhance.Color, 1.2)):
        picture = enhance(picture).enhance(factor)
    expected = torch.tensor(np.asarray(picture)).permute(2, 0, 1) / 255
    torch.testing.assert_close(found, expected, atol=4 / 255, rtol=0)
    torch.testing.assert_close(ColourJitter(0.0, 0.0, 0.0)(x, numbers), x)


def test_a_turn_of_the_hue_by_a_third_exchanges_the_colours():
    x = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 2, 2)
    turned = ColourJitter(0, 0, 0, hue=0.5)(x, torch.tensor([[0, 0, 0, 0.5 + 1 / 3]]))
    torch.testing.assert_close(turned[0, :, 0, 0], torch.tensor([0.0, 1.0, 0.0]), atol=1e-4, rtol=0)


# ---- mistakes ----


def test_arguments_are_checked():
    for wrong in (
        lambda: RandomCrop(0),
        lambda: HorizontalFlip(1.5),
        lambda: RandomResizedCrop(scale=(0.0, 1.0)),
        lambda: RandomResizedCrop(ratio=(2.0, 1.0)),
        lambda: Erasing(probability=-0.1),
        lambda: ColourJitter(hue=0.6),
        lambda: RandAugment(0),
        lambda: RandAugment(magnitude=31),
    ):
        with pytest.raises(ValueError):
            wrong()


@pytest.mark.parametrize("change", [ColourJitter(), RandAugment()])
def test_colours_need_three_channels(change):
    with pytest.raises(UserError, match="these have 1 channels: leave it out"):
        change(images(2, channels=1), drawn(2, change.numbers))


def test_without_kornia_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(UserError, match=r"need kornia: pip install 'kdbench\[vision\]'"):
        ColourJitter()
    RandomCrop(1)(images(), drawn(6, 2))
