"""DataModule of images in classes: kept as bytes, changed and normalised in whole batches on the device."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from kdbench.data.base import DataOptions, Item, Row, TaskData, class_numbers, field, numbered
from kdbench.data.corruption import IGNORED
from kdbench.data.image_augmentation import ImageAugmentation, RandomResizedCrop
from kdbench.data.image_files import as_array, centre_of, opened
from kdbench.data.image_views import IMAGENET, Normalise, normalisation
from kdbench.data.mixing import Mixing, mix_labels
from kdbench.data.negatives import Negatives
from kdbench.data.noise import uniform
from kdbench.errors import UserError, nearest

_CHANGE, _MIXING = range(2)  # what a random number is drawn for


class ImageClassification(TaskData):
    """One class an image; the view of a network is ``pixel_values``, float ``[B, C, H, W]``.

    All networks see the same images. They share one view, normalised by mean and standard deviation of the whole training
    split (of ImageNet, where images are read from files one by one), but for a network that brings a preprocessor of its
    own or is named in ``normalise``.

    Training images are changed and mixed on the device. What is drawn for an image is a pure function of the seed, its
    number and its draw. ``images`` and ``drawn`` of a batch are what its views are made from.

    Args:
        dataset: see :class:`~kdbench.data.base.TaskData`.
        label: the field of the row that holds the class.
        image: the field of the image, uint8 ``[C, H, W]`` of one size or an
            :class:`~kdbench.data.image_files.EncodedImage`.
        labelled_rows: only the first so many training rows keep their labels. Losses on labels leave out the others
            (``-100``), which a teacher may label.
        image_size: the edge that images are resized to; default: as they are.
        centre: of an image in a file, the share of its shorter edge that is seen where it is not cropped at random: 0.875 is
            the usual 224 out of 256.
        normalise: how networks take images, by their names.
        augment: changes of training images, in order.
        mix: ways in which the images of a training batch are mixed, one of them drawn for each batch. The teacher sees the
            mixtures; labels belong to the images before.
        soft_labels: the labels are mixed too: ``labels`` are distributions ``[B, classes]`` in training.
        draws: how many random versions of an image there are, in turn, which the teacher cache can keep; default: a new
            one in every epoch.
        negatives: also give ``negatives`` ``[B, K]``: so many rows of other classes for each row.
        options: see :class:`~kdbench.data.base.TaskData`.
    """

    task = "classification"
    batch_sizes = 64, 256

    def __init__(
        self,
        dataset: str,
        label: str = "label",
        image: str = "image",
        labelled_rows: int | None = None,
        image_size: int | None = None,
        centre: float = 1.0,
        normalise: dict[str, Normalise] | None = None,
        augment: list[ImageAugmentation] | None = None,
        mix: list[Mixing] | None = None,
        soft_labels: bool = False,
        draws: int | None = None,
        negatives: int | None = None,
        **options: Unpack[DataOptions],
    ) -> None:
        super().__init__(dataset, **options)
        for name, number in (("labelled_rows", labelled_rows), ("draws", draws), ("negatives", negatives)):
            if number is not None and number < 1:
                raise ValueError(f"{name} is at least 1, got {number}")
        if not 0 < centre <= 1:
            raise ValueError(f"centre is a share of an image in (0, 1], got {centre}")
        if soft_labels and (not mix or labelled_rows is not None):
            raise ValueError("soft_labels mixes the labels of all images: it needs 'mix', and no 'labelled_rows'")
        self.label, self.image, self.labelled_rows = label, image, labelled_rows
        self.image_size, self.centre, self.normalise = image_size, centre, normalise or {}
        self.augment, self.mix, self.soft_labels = augment or [], mix or [], soft_labels
        self.draws = draws if draws or self.augment or self.mix or negatives else 1
        self.wanted_negatives = negatives

    @property
    def versions(self) -> int | None:
        """How many versions of a row the networks see; a mixture never comes again."""
        return None if self.mix else self.draws if self.augment else 1

    # ---- before training ----

    def read_labels(self, rows: dict[str, list[Row]]) -> list[str]:
        """Return every value of the label, in order."""
        self.number = class_numbers(rows, self.label)
        return [str(value) for value in self.number]

    def settle_views(self) -> None:
        """Give a view of its own to each network that takes images in another way than the student."""
        brought = self.trainer.lightning_module.preprocessors()
        for name in self.normalise:
            if name not in brought:
                raise UserError(f"data.normalise names '{name}', which is no network.{nearest(name, brought)}")
        images = [field(row, self.image) for row in self.rows["train"]]
        self.encoded = not isinstance(images[0], np.ndarray)
        """Whether images are read from files when they are needed."""
        self.cuts = self.encoded and bool(self.augment) and isinstance(self.augment[0], RandomResizedCrop)
        """Whether the first change is made when an image is read, at its full resolution."""
        if self.encoded and self.image_size is None:
            raise UserError(f"The images of '{self.dataset}' are of different sizes: give data.image_size.")
        height, width = images[0].shape[1:] if self.image_size is None else (self.image_size, self.image_size)
        own = IMAGENET if self.encoded else normalisation(images)
        self.takes: dict[str, Normalise] = {}
        """How the networks of each view take images; the student's view is ``inputs``."""
        for name, told in brought.items():
            takes = self.normalise.get(name) or (Normalise.brought(name, told) if told else own)
            takes = replace(takes, size=takes.size or (height if height == width else None))
            known = next((view for view, other in self.takes.items() if other == takes), None)
            self.views[name] = known or (f"inputs.{name}" if self.takes else "inputs")
            self.takes[self.views[name]] = takes
        self.tokenizers = dict.fromkeys(self.takes)

    def preprocessor(self, view: str) -> dict[str, Any]:
        """Return how a view is made of images, as transformers' image processors read it."""
        return self.takes[view].preprocessor(*self.example()[view]["pixel_values"].shape[-2:])

    def setup(self, stage: str) -> None:
        """Also take away labels, and see that none is read where images are mixed."""
        super().setup(stage)
        train = self.items["train"]
        if self.labelled_rows is not None:
            for item in train[self.labelled_rows :]:
                item["label"] = IGNORED
        if self.wanted_negatives is not None:
            self.negatives = Negatives([item["label"] for item in train], self.wanted_negatives)
        if stage == "fit" and self.mix and not self.soft_labels and (name := self._reads_labels()):
            raise UserError(
                f"data.mix leaves labels as they were, and {name} reads them: take it out of the objective, or mix them too "
                "with data.soft_labels."
            )

    def _reads_labels(self) -> str | None:
        """Return the first term that reads labels, for people."""
        objective = self.trainer.lightning_module.objective
        if objective is None:
            return "the loss of the task"
        for name, term in objective.terms.items():
            if term.labels == "labels" or "labels" in getattr(term.loss, "fields", ()):
                return f"the term '{name}'"
        return None

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return the image and the number of the class of every row.

        Raises:
            UserError: the images are of different sizes or kinds.
        """
        images = [field(row, self.image) for row in rows]
        if not self.encoded and len({each.shape for each in images}) > 1:
            raise UserError(f"The images of '{self.dataset}' are of different sizes, which do not fit into one batch.")
        return [
            {"image": image, "label": self.number[field(row, self.label)]}
            for image, row in zip(images, rows, strict=True)
        ]

    # ---- batches ----

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return ``images``, uint8 ``[B, C, H, W]``, the classes ``[B]``, and in training what is drawn for their views."""
        batch = {**numbered(chosen), "labels": torch.tensor([item["label"] for item, _ in chosen])}
        rows, draws = batch["id"].numpy(), batch["draw"].numpy()
        cuts: list[Tensor | None] = [None] * len(chosen)
        if split == "train" and self.augment:
            count = sum(change.numbers for change in self.augment)
            drawn = uniform(self.seed, rows[:, None], draws[:, None], _CHANGE, np.arange(count))
            batch["drawn"] = torch.from_numpy(drawn.astype(np.float32)).clamp(max=1 - 2**-24)
            if self.cuts:
                cuts = list(batch["drawn"][:, : self.augment[0].numbers])
        if split == "train" and self.mix:
            kind = int(len(self.mix) * uniform(self.seed, int(rows[0]), int(draws[0]), _MIXING))
            mixing = self.mix[kind]
            batch["mixing"] = kind
            batch["partner"] = mixing.partners(self.seed, rows, draws)
            batch["mixed"] = mixing.numbers(self.seed, rows, draws)
        if split == "train" and self.wanted_negatives is not None:
            batch["negatives"] = self.negatives(self.seed, rows, draws)
        images = [self._pixels(item["image"], cut) for (item, _), cut in zip(chosen, cuts, strict=True)]
        return batch | {"images": torch.from_numpy(np.stack(images))}

    def _pixels(self, image: Any, cut: Tensor | None) -> np.ndarray:
        """Return the pixels of an image; one in a file is read, cropped and resized at its full resolution."""
        if not self.encoded:
            return image
        picture = opened(image.read(), image.where)
        if cut is None:
            return as_array(centre_of(picture, self.image_size, self.centre))
        return as_array(self.augment[0].cut(picture, cut, self.image_size))

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch with the view of every network, its images changed and mixed where it is for training."""
        images, made = batch["images"].float() / 255, {}
        if "drawn" in batch:
            parts = batch["drawn"].split([change.numbers for change in self.augment], dim=1)
            for change, drawn in list(zip(self.augment, parts, strict=True))[int(self.cuts) :]:
                images = change(images, drawn)
        if "mixing" in batch:
            images, share = self.mix[batch["mixing"]](images, batch["partner"], batch["mixed"])
            if self.soft_labels:
                made["labels"] = mix_labels(batch["labels"], batch["partner"], share, len(self.labels))
        return {
            **batch,
            **made,
            **{view: {"pixel_values": takes.pixel_values(images)} for view, takes in self.takes.items()},
        }

    def named(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a batch whose views are what they are made from: images, what is drawn for them, and how they are changed."""
        drawn = {"drawn": batch["drawn"]} if "drawn" in batch else {}
        rows = len(batch["images"])
        return {
            **batch,
            **{
                view: {"pixel_values": batch["images"], "recipe": self._recipe(view).expand(rows, -1), **drawn}
                for view in self.takes
            },
        }

    def _recipe(self, view: str) -> Tensor:
        """Return a hash ``[2]`` of how a view is made of images and drawn numbers."""
        changes = [(type(each).__name__, sorted(vars(each).items())) for each in self.augment]
        digest = hashlib.sha256(repr((changes, self.takes[view])).encode()).digest()
        return torch.frombuffer(bytearray(digest[:16]), dtype=torch.int64)

    def example(self) -> dict[str, Any]:
        """Return one small batch with every view, as training has it."""
        return self.finish(self.collate("train", [(item, 0) for item in self.items["train"][:2]]))

    def speed_batch(self) -> dict[str, Any]:
        """Return one full batch of training rows with every view, to measure speed on."""
        return self.finish(super().speed_batch())
