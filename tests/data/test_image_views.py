import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import ViTImageProcessor

from kdbench.data.image_views import Normalise, normalisation
from kdbench.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, size=(2500, 3, 4, 5), dtype=np.uint8)
"""More images than are counted at once."""


def test_the_statistics_are_those_of_all_pixels():
    found = normalisation(list(PIXELS))
    values = PIXELS.astype(np.float64) / 255
    np.testing.assert_allclose(found.mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found.std, values.std((0, 2, 3)), rtol=1e-12)
    seen = found.pixel_values(torch.from_numpy(values))
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(3).double())


def test_a_channel_that_is_the_same_everywhere_stays_finite():
    assert normalisation([np.full((1, 2, 2), 51, dtype=np.uint8)]) == Normalise((0.2,), (1.0,))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 1)), min_size=1, max_size=3), st.integers(1, 64))
def test_what_is_written_is_read_again(channels, size):
    mean, std = zip(*channels, strict=True)
    own = Normalise(mean, std, size)
    assert Normalise.brought("a", json.loads(json.dumps(own.preprocessor(size, size)))) == own


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ({"size": {"height": 224, "width": 224}}, 224),
        ({"size": {"shortest_edge": 224}}, 224),
        ({"size": 384}, 384),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}, 224),
        ({"size": {"height": 8, "width": 8}, "do_resize": False}, None),
    ],
)
def test_the_forms_of_published_files_are_read(written, size):
    found = Normalise.brought("hub", {"image_mean": [0.5], "image_std": [0.25], **written})
    assert found == Normalise((0.5,), (0.25,), size)


@pytest.mark.parametrize(
    "written",
    [
        {"image_mean": [0.5], "image_std": [0.5], "size": {"height": 224, "width": 160}},
        {"image_mean": [0.5], "image_std": [0.5], "do_normalize": False},
        {"size": 224},
    ],
)
def test_what_cannot_be_followed_is_told(written):
    with pytest.raises(UserError, match=r"The network 'big' brings a preprocessor_config.json that is no square size"):
        Normalise.brought("big", written)


@pytest.mark.parametrize(("height", "size"), [(16, 16), (16, 24), (32, 20)])
def test_a_view_is_that_of_transformers_own_processor(height, size):
    pixels = np.random.default_rng(1).integers(0, 256, size=(height, height, 3), dtype=np.uint8)
    own = Normalise((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), size)
    theirs = ViTImageProcessor(**own.preprocessor(size, size))
    expected = theirs(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    found = own.pixel_values(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0]
    assert found.shape == (3, size, size)
    torch.testing.assert_close(found, expected, atol=1e-5 if size == height else 1.01 / 255 / 0.2, rtol=0)


def test_arguments_are_checked():
    for mean, std in (((0.5,), (0.5, 0.5)), ((0.5,), (0.0,))):
        with pytest.raises(ValueError, match="every channel has a mean and a std above 0"):
            Normalise(mean, std)
