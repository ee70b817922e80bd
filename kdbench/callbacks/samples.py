"""A sheet of samples: what the student draws when a fit has ended, beside the data, as a picture in the run's folder."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.nn import functional

from kdbench.files import whole_file
from kdbench.methods.drawing import Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGES = 100
"""The most images of a sheet."""


class SampleSheet(pl.Callback):
    """Draws one batch of the test split with the student of a :class:`~kdbench.methods.drawing.Drawing` family; others have none.

    Points are shown as a scatter, images in rows of ten, by class where there are any. Where W&B logs the run, it has the
    picture too.

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
    """Return a PNG of samples ``[N, D]`` or ``[N, C, H, W]``, in [-1, 1] where they are images, beside as many real ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, rows, title in zip(panels, (made, real), ("student", "data"), strict=True):
        axes.set_title(title)
        if rows.dim() == 2:
            axes.scatter(rows[:, 0], rows[:, 1], s=2, alpha=0.5, linewidths=0)
            axes.set_aspect("equal")
        else:
            _show_images(axes, rows, label)
    found = io.BytesIO()
    figure.savefig(found, format="png", dpi=100)
    return found.getvalue()


def _show_images(axes: "Axes", images: Tensor, label: Tensor | None) -> None:
    if label is not None:
        images = images[label.argsort(stable=True)]
    chosen = images[torch.linspace(0, len(images) - 1, min(IMAGES, len(images))).long()]
    chosen = functional.pad(chosen, (0, 1, 0, 1), value=1.0)
    rows = math.ceil(len(chosen) / 10)
    channels, height, width = chosen.shape[1:]
    sheet = chosen.new_full((10 * rows, channels, height, width), 1.0)
    sheet[: len(chosen)] = chosen
    tiles = sheet.unflatten(0, (rows, 10)).permute(0, 3, 1, 4, 2).flatten(0, 1)  # rows x height, 10 x width, channels
    shown = (tiles.reshape(rows * height, 10 * width, channels) + 1) / 2
    axes.imshow(shown.clamp(0, 1).squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
