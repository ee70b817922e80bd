"""The sheet of samples: a picture in the run's folder, of points and of images."""

import io

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from kdbench.callbacks.samples import SampleSheet, picture
from kdbench.methods.diffusion import DenoisingTraining
from kdbench.models.origins import FromConfig
from tests.methods.test_diffusion import SMALL, data, still, trainer


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_points_are_counted_on_one_grid():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(500, 2, generator=generator)
    left, right = np.split(pixels(picture(points * 0.5, points)), 2, axis=1)
    inside = slice(8, -8)
    assert right.shape == (256, 256)
    assert (left[inside, inside][:116] == 255).all(), "the upper half is empty: the second axis points up"
    assert (left[inside, inside][:, 124:] == 255).all()
    assert (right[inside, inside] < 255).sum() > 490


def test_images_lie_in_rows_of_ten_by_class():
    generator = torch.Generator().manual_seed(0)
    for channels, count, rows in ((1, 7, 1), (3, 250, 10)):
        images = torch.rand(count, channels, 7, 7, generator=generator) * 2 - 1
        labels = torch.arange(count).flip(0) % 10
        made = pixels(picture(images, -images, labels))
        assert made.shape == (rows * 24 + 16, 2 * 256) + (3,) * (channels == 3)
        first = images[labels.argsort(stable=True)[0]]
        assert np.allclose(made[8, 8], ((first[:, 0, 0] + 1) / 2 * 255).round())
        assert np.allclose(made[8, 256 + 8], ((1 - first[:, 0, 0]) / 2 * 255).round(), atol=1)


def test_a_fit_leaves_its_sheet(tmp_path):
    module = DenoisingTraining(FromConfig("Denoiser", SMALL), optimizer=still)
    fit = trainer(1, tmp_path, callbacks=[SampleSheet(tmp_path / "samples.png")])
    fit.fit(module, datamodule=data())
    assert pixels((tmp_path / "samples.png").read_bytes()).shape == (256, 512)
    assert module.training


@pytest.mark.slow
def test_weights_and_biases_has_the_sheet_too(tmp_path):
    module = DenoisingTraining(FromConfig("Denoiser", SMALL), optimizer=still)
    logger = WandbLogger(project="kdbench", save_dir=tmp_path, offline=True)
    sheet = tmp_path / "samples.png"
    trainer(1, tmp_path, callbacks=[SampleSheet(sheet)], logger=logger).fit(module, datamodule=data())
    (logged,) = tmp_path.rglob("media/images/samples_*.png")
    logger.experiment.finish()
    assert (pixels(logged.read_bytes()) == pixels(sheet.read_bytes())).all()
