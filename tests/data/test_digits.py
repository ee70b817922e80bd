import numpy as np
from sklearn.datasets import load_digits

from kdbench.data.registry import SPLITS, load


def test_every_digit_is_in_one_split_with_its_label():
    digits = load_digits()
    published = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): digit
        for image, digit in zip(digits.images, digits.target, strict=True)
    }
    rows = {split: load("vision/digits", "embedded", split) for split in SPLITS}
    assert [len(each) for each in rows.values()] == [1000, 297, 500]
    found = [row for split in rows.values() for row in split]
    assert {row["image"].tobytes() for row in found} == published.keys()  # 1797 different images
    assert len(published) == 1797
    for row in found:
        assert row["image"].shape == (1, 8, 8) and row["label"] == str(published[row["image"].tobytes()])


def test_splits_have_the_digits_in_equal_shares():
    for split in SPLITS:
        labels = [row["label"] for row in load("vision/digits", "embedded", split)]
        shares = np.unique(labels, return_counts=True)[1] / len(labels)
        assert len(shares) == 10 and shares.min() > 0.093 and shares.max() < 0.105
        assert labels != sorted(labels)
