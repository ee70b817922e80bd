"""Experiments on images as a user meets them: changes by their short names, the filled cache, and one sentence for a mistake."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from kdbench import cli
from kdbench.suite import cache, chain, experiment, fit

STUDENT = {"class_path": "FromConfig", "init_args": {"architecture": "ConvNet", "config": {"widths": [4, 4, 4]}}}
AUGMENT = [{"class_path": "RandomCrop", "init_args": {"padding": 1, "mode": "circular"}}, "HorizontalFlip"]
EXPERIMENT = {
    "model": {
        "class_path": "Distillation",
        "init_args": {
            "student": STUDENT,
            "teachers": {"big": STUDENT},
            "objective": {"soft": {"loss": "KLDivergence", "teacher": "big.logits"}},
        },
    },
    "data": {
        "class_path": "ImageClassification",
        "init_args": {"dataset": "vision/digits", "batch_size": 250, "augment": AUGMENT, "draws": 2},
    },
    "trainer": {"max_epochs": 2},
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "digits.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "targets"))
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path / "data"))
    return tmp_path


def plan(**changes):
    return chain.plan(experiment.read("experiments/digits.yaml", overrides=list(changes.items())), fresh=True)


def mistake(capsys, **changes):
    """Return the sentence of the command ``kdbench fit``."""
    words = [word for key, value in changes.items() for word in (f"--{key}", value)]
    with pytest.raises(SystemExit, match="2"):
        cli.main(["fit", "--quiet", "--config", "experiments/digits.yaml", *words])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("kdbench: ")
    return line


def test_a_cache_that_was_filled_ahead_answers_for_every_version(home):
    told = cache.fill(plan(), quiet=True).told()
    assert (told["rows_computed"], told["rows_read"]) == (2000, 0)
    record = fit.fit(plan(), quiet=True)
    assert (record["cache"]["rows_computed"], record["cache"]["rows_read"]) == (0, 2000)
    assert record["cache"]["teachers_loaded"] == 0


def test_mistakes_in_the_config_are_told(home, capsys):
    for changes, told in (
        ({"data.augment": "[HorizontalFlp]"}, "Did you mean 'HorizontalFlip'?"),
        ({"data.augment": "[ColourJitter]"}, "these have 1 channels: leave it out of data.augment"),
        ({"data.soft_labels": "true"}, "soft_labels mixes the labels of all images"),
        (
            {"data.mix": "[CutMix]", "model.objective": "{gold: {loss: CrossEntropy, labels: labels}}"},
            "data.mix leaves labels as they were, and the term 'gold' reads them",
        ),
    ):
        assert told in mistake(capsys, **changes)


def test_a_damaged_image_is_named(home, capsys):
    out = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(out, "png")
    good = {"bytes": out.getvalue(), "path": "good.png"}
    bad = {"bytes": out.getvalue()[:40], "path": "bad.png"}
    (home / "data" / "cifar10").mkdir(parents=True)
    for split, cells in (("train", [good] * 14 + [bad]), ("test", [good])):
        table = pa.table({"image": cells, "label": [0] * len(cells)})
        pq.write_table(table, home / "data" / "cifar10" / f"{split}.parquet")
    told = mistake(capsys, **{"data.dataset": "vision/cifar10", "data.source": "local"})
    assert f"{home}/data/cifar10/train.parquet, row 15: no image that Pillow can read" in told
