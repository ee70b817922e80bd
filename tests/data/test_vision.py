"""The readers of photographs on small files of the published form, and on CIFAR-10 itself where it is there."""

import io
import os
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdbench.data.cards import CARDS
from kdbench.data.image_files import ImageFile, as_array, opened
from kdbench.data.readers import vision
from kdbench.data.registry import SPLITS, fingerprint, load
from kdbench.errors import UserError


def encoded(number):
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(out, "png")
    return out.getvalue()


def cells(numbers):
    return [{"bytes": encoded(number), "path": f"{number}.png"} for number in numbers]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    return tmp_path


def write(folder, split, **columns):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{split}.parquet")


@pytest.mark.parametrize("image", ["image", "img"])
def test_cifar10(data, image):
    write(data / "cifar10", "train", **{image: cells(range(30)), "label": [number % 10 for number in range(30)]})
    write(data / "cifar10", "test", **{image: cells(range(90, 95)), "label": [9, 8, 7, 6, 5]})
    rows = {split: load("vision/cifar10", "local", split) for split in SPLITS}
    told = {split: [int(row["image"][0, 0, 0]) for row in found] for split, found in rows.items()}
    assert told["validation"] == [9, 19, 29] and told["test"] == [90, 91, 92, 93, 94]
    assert told["train"] == [number for number in range(30) if number % 10 != 9]
    assert [row["label"] for row in rows["test"]] == ["truck", "ship", "horse", "frog", "dog"]
    assert all(row["image"].shape == (3, 4, 4) and row["image"].dtype == np.uint8 for row in rows["train"])


def test_cifar100(data):
    write(data / "cifar100", "train", img=cells(range(10)), fine_label=list(range(90, 100)), coarse_label=[0] * 10)
    assert [row["label"] for row in load("vision/cifar100", "local", "train")] == list(range(90, 99))
    (row,) = load("vision/cifar100", "local", "validation")
    assert row["label"] == 99 and row["image"].max() == 9


def test_a_changed_file_is_read_again(data):
    write(data / "cifar10", "test", image=cells([1]), label=[0])
    assert load("vision/cifar10", "local", "test")[0]["label"] == "airplane"
    write(data / "cifar10", "test", image=cells([1]), label=[1])
    path = data / "cifar10" / "test.parquet"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
    assert load("vision/cifar10", "local", "test")[0]["label"] == "automobile"


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"image": [{"bytes": b"no image", "path": ""}], "label": [0]}, r"test.parquet, row 1: no image that Pillow"),
        ({"image": cells([1, 2]), "label": [0, 10]}, r"test.parquet, row 2: the label 10 is none of 0, 1, 2"),
        ({"image": cells([1]), "labels": [0]}, r"test.parquet: no parquet file with the columns image .* and label"),
        ({"picture": cells([1]), "label": [0]}, r"test.parquet: no parquet file with the columns image"),
        ({"image": ["not encoded"], "label": [0]}, r"test.parquet: no parquet file with the columns image"),
    ],
)
def test_damaged_files_are_told(data, columns, told):
    write(data / "cifar10", "test", **columns)
    with pytest.raises(UserError, match=told):
        load("vision/cifar10", "local", "test")


def test_a_pickle_is_not_opened(data):
    (data / "cifar10").mkdir()
    (data / "cifar10" / "test.parquet").write_bytes(b"\x80\x04}q\x00.")
    with pytest.raises(UserError, match="no parquet file"):
        load("vision/cifar10", "local", "test")


# ---- ImageNet ----


@pytest.fixture
def imagenet(data):
    for split, size in (("train", 60), ("val", 2)):
        for number, name in enumerate(("n02", "n01")):
            folder = data / "imagenet" / split / name
            folder.mkdir(parents=True)
            for place in range(size):
                (folder / f"{name}_{place}.JPEG").write_bytes(encoded(100 * number + place))
    return data / "imagenet"


def test_imagenet_is_read_when_it_is_needed(imagenet):
    rows = {split: load("vision/imagenet", "local", split) for split in SPLITS}
    assert [len(rows[split]) for split in SPLITS] == [119, 1, 4]
    assert [row["label"] for row in rows["test"]] == ["n01", "n01", "n02", "n02"]
    assert all(isinstance(row["image"], ImageFile) for row in rows["train"])
    paths = {row["image"].path for row in (*rows["train"], *rows["validation"])}
    assert paths == set((imagenet / "train").glob("*/*.JPEG"))
    assert set(Counter(row["label"] for row in rows["train"][:20])) == {"n01", "n02"}, "the first rows are a sample"
    row = rows["train"][0]
    pixels = as_array(opened(row["image"].read(), row["image"].where))
    assert pixels.max() == int(row["image"].path.stem[4:]) + 100 * (row["label"] == "n01")


def test_the_fingerprint_of_folders_follows_names_and_sizes(imagenet):
    seen = {fingerprint("vision/imagenet", "local")}
    (first, *_) = sorted((imagenet / "train").glob("*/*.JPEG"))
    first.write_bytes(first.read_bytes() + b" ")
    seen.add(fingerprint("vision/imagenet", "local"))
    first.rename(first.with_name("other.JPEG"))
    seen.add(fingerprint("vision/imagenet", "local"))
    assert len(seen) == 3


def test_an_empty_folder_is_told(data):
    for folder in ("train", "val"):
        (data / "imagenet" / folder).mkdir(parents=True)
    with pytest.raises(UserError, match="no folders of classes with images in them"):
        load("vision/imagenet", "local", "train")


# ---- CIFAR-10 itself ----


@pytest.mark.slow
def test_cifar10_as_published():
    if not os.environ.get("KDBENCH_DATA"):
        pytest.skip("KDBENCH_DATA names no folder with cifar10")
    rows = {split: load("vision/cifar10", "local", split) for split in SPLITS}
    assert tuple(len(rows[split]) for split in SPLITS) == CARDS["vision/cifar10"].splits["local"]
    for found in rows.values():
        counts = Counter(row["label"] for row in found)
        assert set(counts) == set(vision.CIFAR10) and max(counts.values()) < 1.2 * min(counts.values())
    means = np.stack([row["image"] for row in rows["test"]]).mean((0, 2, 3)) / 255
    np.testing.assert_allclose(means, [0.4942, 0.4851, 0.4504], atol=0.003)
