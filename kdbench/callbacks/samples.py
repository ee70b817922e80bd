"""A sheet of samples: what the student draws when a fit has ended, beside the data, as a picture in the run's folder."""

import io
import math
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.nn import functional

from kdbench.files import whole_file
from kdbench.methods.drawing import Drawing

IMAGES = 100
"""The most images of a sheet."""
GRID = 240
"""The cells of each axis on which points are counted, and about the pixels of a row of images."""


class SampleSheet(pl.Callback):
    """Draws one batch of the test split with the student of a :class:`~kdbench.methods.drawing.Drawing` family; others have none.

    Points are shown as their density, images in rows of ten, by class where there are any. Where W&B logs the run, it has
    the picture too.

    Args:
        file: where the picture lies then, a PNG.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw on the first rank."""
        if not isinstance(pl_module, Drawing) or not trainer.is_global_zero:
            return
        training = pl_module.training
        pl_module.eval()
        trainer.datamodule.setup("test")
        batch = next(iter(trainer.datamodule.test_dataloader()))
        moved = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
        made = pl_module.answer("student", moved)["samples"]
        pl_module.train(training)
        rows, view = len(batch["id"]), batch["inputs"]
        with whole_file(self.file) as file:
            file.write(picture(made[:: len(made) // rows].cpu(), view["sample"], view.get("label")))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("samples", [str(self.file)])


def picture(made: Tensor, real: Tensor, label: Tensor | None = None) -> bytes:
    """Return a PNG: samples on the left, as many real ones on the right.

    Args:
        made: points ``[N, 2]``, counted on a grid, or images ``[N, C, H, W]`` in [-1, 1], in rows of ten.
        real: what they are compared with, of the same shape.
        label: the class of each image ``[N]``, by which they are sorted.
    """
    from PIL import Image

    if made.dim() == 2:
        both = torch.cat([made, real])
        panels = [_density(points, both.amin(0), both.amax(0)) for points in (made, real)]
    else:
        panels = [_tiles(images, label) for images in (made, real)]
    left, right = (functional.pad(panel, (8, 8, 8, 8), value=1.0) for panel in panels)
    pixels = (torch.cat([left, right], -1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    found = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(found, format="png")
    return found.getvalue()


def _density(points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return how dense points lie, ``[1, GRID, GRID]``: 1 where none is, darker where there are more; the second axis points up."""
    places = ((points - low) / (high - low).clamp_min(1e-12) * GRID).long().clamp(0, GRID - 1)
    counts = torch.zeros(GRID, GRID).index_put_(
        (GRID - 1 - places[:, 1], places[:, 0]), torch.ones(()), accumulate=True
    )
    return 1 / (1 + counts)[None]


def _tiles(images: Tensor, label: Tensor | None) -> Tensor:
    """Return some of the images as one, ``[C, 10 rows, 10 columns]``, in [0, 1]."""
    if label is not None:
        images = images[label.argsort(stable=True)]
    chosen = images[torch.linspace(0, len(images) - 1, min(IMAGES, len(images))).long()]
    chosen = functional.pad(chosen, (0, 1, 0, 1), value=1.0)
    rows = math.ceil(len(chosen) / 10)
    channels, height, width = chosen.shape[1:]
    sheet = chosen.new_full((10 * rows, channels, height, width), 1.0)
    sheet[: len(chosen)] = chosen
    tiles = sheet.unflatten(0, (rows, 10)).permute(2, 0, 3, 1, 4)  # channels, rows, height, 10, width
    scale = max(1, GRID // (10 * width))
    return (
        ((tiles.reshape(channels, rows * height, 10 * width) + 1) / 2)
        .repeat_interleave(scale, 1)
        .repeat_interleave(scale, 2)
    )
