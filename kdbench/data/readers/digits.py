"""Handwritten digits that scikit-learn carries: 1,797 images of 8x8 pixels (Alpaydin and Kaynak 1998, UCI)."""

from typing import Any

import numpy as np

from kdbench.data.registry import SPLITS

SIZES = (1000, 297, 500)
"""Rows of training, validation and test."""
INK = 16
"""The darkest of the 17 levels of a pixel; an image holds ``round(255 level / 16)``."""

Row = dict[str, Any]


def images(split: str, count: int) -> list[Row]:
    """Return the first rows of a split, ``{"image": uint8 [1, 8, 8], "label": "0" to "9"}``.

    The rows are shuffled and cut once, with equal shares of the digits in all splits as far as they go.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, rest = train_test_split(
        np.arange(len(digits.target)), train_size=SIZES[0], stratify=digits.target, random_state=0
    )
    held_out = train_test_split(rest, train_size=SIZES[1], stratify=digits.target[rest], random_state=0)
    chosen = dict(zip(SPLITS, (train, *held_out), strict=True))[split][:count]
    pixels = np.rint(digits.images[chosen] * (255 / INK)).astype(np.uint8)[:, None]
    return [{"image": image, "label": str(digit)} for image, digit in zip(pixels, digits.target[chosen], strict=True)]
