"""Pictures of records as SVG: what is drawn is what is told."""

import base64
import io
import itertools
import re
import struct
import xml.etree.ElementTree as ElementTree
import zlib

import pytest
import torch

from kdbench.metrics.pictures import HeatMap, Images, Picture, picture_of
from kdbench.suite import plots

PIXELS = torch.linspace(-1.2, 1.2, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
IMAGES = Images(
    "digits", "level", "class", ["10", "1", "sample"], ["0", "1 < 2"], [4, 5], Images.encoded(PIXELS.numpy())
)


def decoded(png):
    """Return a grey PNG as a tensor ``[H, W]``, read chunk by chunk."""
    file = io.BytesIO(png)
    assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    chunks = {}
    while head := file.read(8):
        length, kind = struct.unpack(">I4s", head)
        chunks[kind] = file.read(length)
        assert struct.unpack(">I", file.read(4))[0] == zlib.crc32(kind + chunks[kind])
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour) == (8, 0)
    lines = torch.frombuffer(bytearray(zlib.decompress(chunks[b"IDAT"])), dtype=torch.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any(), "no filter"
    return lines[:, 1:]


def test_images_are_one_table():
    drawn = plots.picture(IMAGES)
    found = decoded(base64.b64decode(re.search(r'base64,([^"]+)"', drawn).group(1)))
    expected = ((PIXELS.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert found.shape == (8, 15)
    for row in range(2):
        for column in range(3):
            tile = found[4 * row : 4 * row + 4, 5 * column : 5 * column + 5]
            assert torch.equal(tile, expected[row, column])
    texts = [each.text for each in ElementTree.fromstring(drawn).iter() if each.tag.endswith("text")]
    assert {"10", "sample", "0", "1 < 2", "level", "class"} <= set(texts)


def test_names_of_many_columns_do_not_meet():
    names = [f"{level}.25" for level in range(30)]
    wide = Images("t", "x", "y", names, ["0"], [4, 5], Images.encoded(torch.zeros(1, 30, 4, 5).numpy()))
    drawn = ElementTree.fromstring(plots.picture(wide))
    places = [
        float(each.get("x")) for each in drawn.iter() if each.get("text-anchor") == "middle" and each.text in names
    ]
    assert len(places) >= 5
    assert min(right - left for left, right in itertools.pairwise(places)) >= 4 * plots.LETTER


@pytest.mark.parametrize(
    "shown",
    [
        Picture("t", "x", "y", [1, 2], {"line": [0.0, 1.0]}),
        HeatMap("t", "x", "y", ["a"], ["b"], [[0.5]]),
        IMAGES,
    ],
)
def test_a_picture_is_told_and_found_again(shown):
    assert picture_of(vars(shown)) == shown
    assert ElementTree.fromstring(plots.picture(shown)).tag.endswith("svg")
