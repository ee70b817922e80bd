"""The sets of photographs from the hub, as the same rows as the local files give."""

from typing import Any

from kdbench.data.cards import Hub
from kdbench.data.image_files import ImageCell
from kdbench.data.readers.fetched import load
from kdbench.data.readers.vision import CIFAR10, CIFAR_HELD_OUT, IMAGENET_HELD_OUT, cifar_rows, part
from kdbench.data.registry import Row


def hub_cifar10(hub: Hub, split: str) -> list[Row]:
    """Return the published test split, or a part of the training split."""
    return _cifar(hub, split, "label", CIFAR10)


def hub_cifar100(hub: Hub, split: str) -> list[Row]:
    """Return the published test split, or a part of the training split; classes by number."""
    return _cifar(hub, split, "fine_label", range(100))


def hub_imagenet(hub: Hub, split: str) -> list[Row]:
    """Return the published validation split as test, or a part of the training split; classes by number, images not yet read."""
    table = _encoded(hub, "validation" if split == "test" else "train", "image")
    rows = [{"image": ImageCell(table, "image", row), "label": label} for row, label in enumerate(table["label"])]
    return part(rows, split, IMAGENET_HELD_OUT)


def _cifar(hub: Hub, split: str, label: str, classes: Any) -> list[Row]:
    published = "test" if split == "test" else "train"
    table = _encoded(hub, published, "img")
    images = [cell["bytes"] for cell in table["img"]]
    return part(cifar_rows(images, table[label], classes, f"{hub.id} ({published})"), split, CIFAR_HELD_OUT)


def _encoded(hub: Hub, split: str, image: str) -> Any:
    """Return a table whose images are not decoded."""
    import datasets

    table = load(hub.id, hub.id, split, data_dir=hub.config, revision=hub.revision)
    return table.cast_column(image, datasets.Image(decode=False))
