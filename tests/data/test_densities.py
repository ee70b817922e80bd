"""Samples of a density in batches: what a batch holds, its noise seed, and what is refused."""

import lightning.pytorch as pl
import pytest
import torch

from kdbench.data import registry
from kdbench.data.densities import DensitySamples
from kdbench.data.generators.density_mixtures import DensityMixture
from kdbench.errors import UserError

DIGITS = {"dataset": "vision/digits", "samples": "image", "label": "label", "value_range": [0, 255]}


class Network(pl.LightningModule):
    """Something that the data ask for the networks' names."""

    compares_rows = False
    teacher_names = ()

    def tokenizers(self):
        return {"student": None}

    def preprocessors(self):
        return {"student": None}


def ready(seed=0, **settings):
    pl.seed_everything(seed, verbose=False)
    data = DensitySamples(**{"dataset": "synthetic/ring", "batch_size": 64} | settings)
    trainer = pl.Trainer(logger=False, accelerator="cpu", barebones=True)
    trainer.strategy._lightning_module = Network()
    data.trainer = trainer
    data.setup("fit")
    data.setup("test")
    return data


def test_a_batch_holds_samples_without_noise():
    data = ready()
    batch = next(iter(data.train_dataloader()))
    rows = registry.load("synthetic/ring", "embedded", "train")
    expected = torch.tensor([rows[row]["point"] for row in batch["id"].tolist()])
    torch.testing.assert_close(batch["inputs"]["sample"], expected)
    assert list(batch["inputs"]) == ["sample"]
    assert "other" not in batch
    assert data.labels is None
    assert data.mixture.means.tolist() == DensityMixture.ring().means.tolist()


def test_batches_of_the_test_hold_as_many_training_rows():
    data = ready(**DIGITS, eval_batch_size=400)
    first, second = data.test_dataloader()
    train = data.table("train")
    assert first["other"]["sample"].equal(train["sample"][:400])
    assert second["other"]["label"].equal(train["label"][400:500])
    assert (first["inputs"]["sample"].min(), first["inputs"]["sample"].max()) == (-1, 1)
    image = registry.load("vision/digits", "embedded", "test")[3]["image"]
    torch.testing.assert_close(first["inputs"]["sample"][3], torch.from_numpy(image).float() / 127.5 - 1)


def test_the_noise_seed_is_a_function_of_seed_split_draw_and_first_row():
    def seeds(data, epoch):
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        return [batch["noise_seed"] for batch in loader]

    data = ready(train_rows=640)
    first = seeds(data, 0)
    assert len(set(first)) == 10
    assert seeds(ready(train_rows=640), 0) == first
    assert set(seeds(data, 1)).isdisjoint(first)
    assert set(seeds(ready(seed=1, train_rows=640), 0)).isdisjoint(first)
    (one,), (again,) = data.test_dataloader(), data.test_dataloader()
    assert one["noise_seed"] == again["noise_seed"], "the same samples at every test"


def test_the_batch_to_measure_speed_on_has_a_noise_level():
    view = ready(train_rows=100).speed_batch()["inputs"]
    assert view["sigma"].tolist() == [1.0] * 64


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"value_range is the lowest and the highest value, got \[255, 0\]"):
        DensitySamples("vision/digits", value_range=[255, 0])
    with pytest.raises(
        UserError, match=r"The rows have no field 'pont', only \['mode', 'point'\]. Did you mean 'point'"
    ):
        ready(samples="pont")
    with pytest.raises(UserError, match="The field 'mode' of 'synthetic/ring' holds no samples of one shape"):
        ready(samples="mode")
