"""The sheet of samples: a picture in the run's folder, of points and of images."""

import struct

import torch

from kdbench.callbacks.samples import SampleSheet, picture
from kdbench.methods.diffusion import DenoisingTraining
from kdbench.models.origins import FromConfig
from tests.methods.test_diffusion import SMALL, data, still, trainer


def size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def test_points_and_images_are_drawn():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(20, 2, generator=generator)
    assert size(picture(points, points)) == (900, 450)
    for channels, count in ((1, 7), (3, 250)):
        images = torch.rand(count, channels, 8, 8, generator=generator) * 2 - 1
        labels = torch.arange(count) % 10
        assert size(picture(images, images, labels)) == (900, 450)
    assert picture(images, images) != picture(-images, images)


def test_a_fit_leaves_its_sheet(tmp_path):
    module = DenoisingTraining(FromConfig("Denoiser", SMALL), optimizer=still)
    fit = trainer(1, tmp_path, callbacks=[SampleSheet(tmp_path / "samples.png")])
    fit.fit(module, datamodule=data())
    assert size((tmp_path / "samples.png").read_bytes()) == (900, 450)
    assert module.training
