"""Alignments of layers as a test tells and draws them."""

import lightning.pytorch as pl
import pytest
import torch

from kdbench.data.images import ImageClassification
from kdbench.errors import UserError
from kdbench.methods.similarity import LayerSimilarity
from kdbench.metrics.similarity import MinibatchCKA
from kdbench.models.origins import FromConfig

CNN = FromConfig("ConvNet", {"widths": [4, 8]})
MLP = FromConfig("ResMLP", {"patch_size": 4, "hidden_size": 8, "num_hidden_layers": 2})
TAPS = ["stages.1", "stages.2"]


def measured(module, batch=100):
    pl.seed_everything(0, verbose=False)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", enable_checkpointing=False, **quiet)
    data = ImageClassification("synthetic/painted_scenes", eval_batch_size=batch, train_rows=10)
    (values,) = trainer.test(module, datamodule=data, verbose=False)
    return values


@pytest.fixture(scope="module")
def found():
    layers = {"student": TAPS, "mlp": TAPS, "other": TAPS}
    module = LayerSimilarity(CNN, {"mlp": MLP, "other": CNN}, layers)
    return module, measured(module)


def test_a_test_tells_the_alignment_of_every_pair_of_layers(found):
    module, values = found
    module.eval()
    expected = MinibatchCKA(2, 2)
    student, mlp = module._layer_readers["student"], module._layer_readers["mlp"]
    for batch in module.data.test_dataloader():
        view = module.data.finish(batch)
        with torch.no_grad():
            expected.update([student(view)[tap] for tap in TAPS], [mlp(view)[tap] for tap in TAPS])
    cells = expected.compute()
    for i in (1, 2):
        for j in (1, 2):
            assert values[f"test/cka_{i}_{j}@mlp"] == pytest.approx(float(cells[i - 1, j - 1]), abs=1e-5)
    assert values["test/cka@mlp"] == pytest.approx(float(cells.diagonal().mean()), abs=1e-5)


def test_the_alignments_are_drawn(found):
    module, values = found
    assert list(module.pictures) == ["cka_mlp", "cka_other"]
    drawn = module.pictures["cka_mlp"]
    assert (list(drawn.x), list(drawn.y)) == (["1", "2"], ["1", "2"])
    for i, row in enumerate(drawn.cells, 1):
        assert row == pytest.approx([values[f"test/cka_{i}_{j}@mlp"] for j in (1, 2)], abs=1e-4)


def test_a_last_batch_that_is_too_small_is_left_out():
    assert measured(LayerSimilarity(CNN, {"mlp": MLP}, {"student": TAPS, "mlp": TAPS}), 1998)["test/cka@mlp"] > -1


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"student": TAPS, "mpl": TAPS}, r"layers names 'mpl', which is no network\. Did you mean 'mlp'"),
        ({"student": TAPS}, "as many of each, got student 2, mlp 0"),
        ({"student": TAPS, "mlp": TAPS[:1]}, "as many of each, got student 2, mlp 1"),
        ({}, "as many of each, got student 0, mlp 0"),
    ],
)
def test_layers_that_do_not_pair(layers, message):
    with pytest.raises(ValueError, match=message):
        LayerSimilarity(CNN, {"mlp": MLP}, layers)


def test_a_layer_that_does_not_exist():
    with pytest.raises(UserError, match=r"'stages.3' is out of range"):
        measured(LayerSimilarity(CNN, {"mlp": MLP}, {"student": ["stages.3"], "mlp": ["stages.1"]}))
