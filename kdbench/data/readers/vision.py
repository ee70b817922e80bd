"""Sets of photographs: CIFAR-10 and CIFAR-100 (Krizhevsky 2009), ImageNet-1k (Russakovsky et al. 2015, arXiv 1409.0575).

They are published without a validation split, so one is held out of training: every tenth row of CIFAR, every hundredth of
ImageNet. What is published as ImageNet's validation split is the test split here.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from kdbench.data.image_files import ImageFile, decode_all
from kdbench.data.noise import uniform
from kdbench.data.readers.published import check_label, damaged
from kdbench.data.registry import Row, local_file

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_HELD_OUT, IMAGENET_HELD_OUT = 10, 100
"""Of so many published training rows one is for validation."""


def part(published: Sequence[Row], split: str, every: int) -> list[Row]:
    """Return a split of the published test or training rows; of the training rows every n-th is for validation."""
    if split == "test":
        return list(published)
    return [row for place, row in enumerate(published) if (place % every == every - 1) == (split == "validation")]


def cifar_rows(images: Sequence[bytes], labels: Sequence[int], classes: Sequence[str | int], where: str) -> list[Row]:
    """Return ``{"image": uint8 [3, 32, 32], "label"}`` of encoded images and numbers of classes."""
    for place, label in enumerate(labels):
        check_label(label, range(len(classes)), f"{where}, row {place + 1}")
    pixels = decode_all(images, lambda place: f"{where}, row {place + 1}")
    return [{"image": image, "label": classes[label]} for image, label in zip(pixels, labels, strict=True)]


# ---- local files ----


def local_cifar10(folder: Path, split: str) -> list[Row]:
    """Return the rows of a parquet file with the columns ``image`` or ``img``, and ``label``; classes by name."""
    return part(_cifar(folder, split, "label", CIFAR10), split, CIFAR_HELD_OUT)


def local_cifar100(folder: Path, split: str) -> list[Row]:
    """Return the rows of a parquet file with the columns ``image`` or ``img``, and ``fine_label``; classes by number."""
    return part(_cifar(folder, split, "fine_label", tuple(range(100))), split, CIFAR_HELD_OUT)


def local_imagenet(folder: Path, split: str) -> list[Row]:
    """Return ``{"image", "label"}`` of folders ``train`` and ``val`` with one folder a class; images are read when needed.

    Training images come in a random order, so that the first n of them are a sample of the classes.
    """
    root = local_file(folder, "val" if split == "test" else "train")
    rows = [
        {"image": ImageFile(path), "label": own.name}
        for own in sorted(root.iterdir())
        if own.is_dir()
        for path in sorted(own.iterdir())
    ]
    if not rows:
        raise damaged(root, "no folders of classes with images in them")
    if split == "test":
        return rows
    return part([rows[place] for place in uniform(0, range(len(rows))).argsort()], split, IMAGENET_HELD_OUT)


def _cifar(folder: Path, split: str, label: str, classes: tuple[str | int, ...]) -> list[Row]:
    path = local_file(folder, "test.parquet" if split == "test" else "train.parquet")
    return _decoded(path, path.stat().st_mtime_ns, label, classes)


@functools.lru_cache(maxsize=4)
def _decoded(path: Path, stamp: int, label: str, classes: tuple[str | int, ...]) -> list[Row]:
    """Return all rows of a file, decoded once in a process; ``stamp`` (its time) makes the cache forget a changed file."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        image = next(name for name in ("image", "img") if name in table.column_names)
        encoded = pc.struct_field(table.column(image), "bytes").to_pylist()
        labels = table.column(label).to_pylist()
    except (pa.ArrowException, OSError, StopIteration, KeyError) as error:
        raise damaged(path, f"no parquet file with the columns image {{bytes, path}} and {label}") from error
    return cifar_rows(encoded, labels, classes, str(path))
