import io

import numpy as np
import pytest
from PIL import Image

from kdbench.data.image_files import ImageFile, as_array, centre_of, decode_all, opened
from kdbench.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, size=(3, 6, 8), dtype=np.uint8)


def encoded(pixels, kind="png", mode="RGB"):
    out = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).convert(mode).save(out, kind)
    return out.getvalue()


def test_images_are_decoded_as_they_are():
    found = decode_all([encoded(PIXELS), encoded(PIXELS[::-1])], str)
    assert found.dtype == np.uint8 and np.array_equal(found, [PIXELS, PIXELS[::-1]])
    grey = as_array(opened(encoded(PIXELS, mode="L"), "here"))
    assert grey.shape == (3, 6, 8) and np.array_equal(grey[0], grey[2])


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_damaged_image_is_named(kind):
    good = encoded(PIXELS, kind)
    for bad in (b"", b"no image at all", good[: len(good) // 2]):
        with pytest.raises(UserError, match=r"^row 2: no image that Pillow can read.*published data\.$"):
            decode_all([good, bad], lambda place: f"row {place + 1}")


def test_an_image_of_another_size_is_named():
    with pytest.raises(UserError, match=r"row 1: an image of \(8, 6\) pixels among images of \(6, 8\)"):
        decode_all([encoded(PIXELS), encoded(PIXELS.transpose(0, 2, 1))], lambda place: f"row {place}")


def test_a_file_that_is_gone_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(PIXELS))
    assert ImageFile(tmp_path / "a.png").read() == encoded(PIXELS)
    gone = ImageFile(tmp_path / "b.png")
    with pytest.raises(UserError, match="No such file"):
        gone.read()
    assert gone.where == str(tmp_path / "b.png")


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (256, 256), (100, 333)])
def test_the_centre_is_that_of_the_usual_evaluation(width, height):
    """The shorter edge becomes 256, the middle 224 x 224 of it is seen."""
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([255 * rows / height, 255 * columns / width, 0 * rows]).astype(np.uint8)
    found = as_array(centre_of(Image.fromarray(ramp.transpose(1, 2, 0)), 224, 0.875)).astype(float)
    assert found.shape == (3, 224, 224)
    scale = 256 / min(width, height)
    for channel, edge in ((0, height), (1, width)):
        line = found[channel].mean(2 - channel - 1)
        assert line.mean() == pytest.approx(127, abs=2)
        assert line[-1] - line[0] == pytest.approx(255 * 223 / (edge * scale), abs=3)
