"""Vectors from the registry through a fit: the parts of a data module that have nothing to do with text."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from kdbench.callbacks.export import StudentExport
from kdbench.callbacks.teacher_cache import TeacherCache
from kdbench.data.registry import load
from kdbench.data.vectors import VectorClassification
from kdbench.errors import UserError
from kdbench.losses.divergences import KLDivergence
from kdbench.methods.base import Distillation
from kdbench.methods.objective import Term
from kdbench.methods.supervised import Supervised
from kdbench.models.mlp import MLPClassifier
from kdbench.models.origins import Facts, FromConfig, FromFolder, quiet

DATASET = "synthetic/gaussian_tree"


class Comparing(KLDivergence):
    compares_rows = True


def trainer(*callbacks, steps=60, **settings):
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **settings,
    )


def mlp(*widths):
    return FromConfig("MLPClassifier", {"widths": list(widths)})


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A teacher that was fitted and exported: its folder, and what the test said of it."""
    folder = tmp_path_factory.mktemp("teacher") / "student"
    pl.seed_everything(0, verbose=False)
    fitting, data = trainer(StudentExport(folder), steps=300), VectorClassification(DATASET, batch_size=64)
    module = Supervised(student=mlp(64), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3))
    fitting.fit(module, datamodule=data)
    (scores,) = fitting.test(module, datamodule=data, verbose=False)
    return folder, scores


def test_a_perceptron_learns_the_classes_and_is_exported_without_a_tokenizer(taught):
    folder, scores = taught
    assert 0.6 < scores["test/accuracy@student"] < 0.823
    assert sorted(each.name for each in folder.iterdir()) == ["config.json", "model.safetensors"]
    student = FromFolder(str(folder)).build(Facts()).eval()
    assert isinstance(student, MLPClassifier) and student.config.id2label[19] == "c19"
    rows = load(DATASET, "embedded", "test")
    with torch.inference_mode():
        guessed = student(features=torch.tensor([row["features"] for row in rows])).logits.argmax(-1).tolist()
    right = np.mean([f"c{place:02d}" == row["label"] for place, row in zip(guessed, rows, strict=True)])
    assert right == pytest.approx(scores["test/accuracy@student"], abs=1e-6)


def distilled(folder, loss, *callbacks, steps=50, **settings):
    pl.seed_everything(0, verbose=False)
    module = Distillation(
        student=mlp(16), teachers={"big": FromFolder(str(folder))}, objective={"soft": Term(loss, teacher="big.logits")}
    )
    fitting = trainer(*callbacks, steps=steps)
    fitting.fit(module, datamodule=VectorClassification(DATASET, batch_size=512, **settings))
    return module, fitting


def test_a_student_learns_from_a_teacher_that_may_be_stored(taught, tmp_path):
    folder, _ = taught
    weights, told = {}, None
    for mode in ("off", "on"):
        cache = TeacherCache(tmp_path, mode)
        module, _ = distilled(folder, KLDivergence(temperature=2.0), cache, steps=8)  # two epochs of four batches
        weights[mode], told = module.student.state_dict(), cache.told()
    assert (told["rows_computed"], told["rows_read"]) == (2000, 2000)
    for name, value in weights["off"].items():
        torch.testing.assert_close(value, weights["on"][name], atol=1e-5, rtol=0)


def test_a_loss_that_compares_rows_sees_full_batches_alone(taught):
    folder, _ = taught
    for loss, expected in ((KLDivergence(), [464, 512, 512, 512]), (Comparing(), [512, 512, 512])):
        _, fitting = distilled(folder, loss, steps=1)
        assert sorted(len(batch["id"]) for batch in fitting.datamodule.train_dataloader()) == expected


def test_batches_are_those_of_the_rows_in_another_order_each_epoch(taught):
    folder, _ = taught
    _, fitting = distilled(folder, KLDivergence(), steps=1)
    data = fitting.datamodule
    rows = load(DATASET, "embedded", "train")
    loader = data.train_dataloader()
    orders = []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        batches = list(loader)
        orders.append(torch.cat([batch["id"] for batch in batches]).tolist())
        for batch in batches:
            assert set(batch) == {"id", "draw", "inputs", "labels"} and not batch["draw"].any()
            expected = torch.tensor([rows[place]["features"] for place in batch["id"]])
            assert batch["inputs"].keys() == {"features"} and torch.equal(batch["inputs"]["features"], expected)
            labels = [data.labels[number] for number in batch["labels"]]
            assert labels == [rows[place]["label"] for place in batch["id"]]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(2000)) and orders[0] != orders[1]
    # resumed in the middle of an epoch, the rest comes
    loader.batch_sampler.set_epoch(2)
    (first, *rest) = [batch["id"].tolist() for batch in loader]
    again = data.train_dataloader()
    again.load_state_dict({"epoch": 2, "position": 1})
    assert [batch["id"].tolist() for batch in again] == rest and first not in rest
    assert torch.cat([batch["id"] for batch in data.val_dataloader()]).tolist() == list(range(1000))


def test_fewer_training_rows_keep_all_labels(taught):
    folder, _ = taught
    _, fitting = distilled(folder, KLDivergence(), steps=1, train_rows=7)
    data = fitting.datamodule
    assert len(data.items["train"]) == 7 and len(data.labels) == 20
    assert len(data.example()["id"]) == 2 and len(data.speed_batch()["id"]) == 7


def test_a_network_of_text_is_told(tmp_path):
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "num_labels": 20,
    }
    with quiet():
        BertForSequenceClassification(BertConfig(vocab_size=9, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="BertForSequenceClassification has no input 'features'"):
        distilled(tmp_path, KLDivergence(), steps=1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"label": "clas"}, r"no field 'clas'"),
        ({"features": "feature"}, r"no field 'feature'.*Did you mean 'features'"),
        ({"features": "label"}, r"The field 'label' of 'synthetic/gaussian_tree' is no vector"),
        ({"dataset": "synthetic/gaussian_tre"}, r"Did you mean 'synthetic/gaussian_tree'"),
    ],
)
def test_mistakes_are_told(arguments, told):
    with pytest.raises(UserError, match=told):
        trainer(steps=1).fit(
            Supervised(student=mlp(4)), datamodule=VectorClassification(**{"dataset": DATASET} | arguments)
        )


def test_images_are_vectors_too():
    data = VectorClassification("vision/digits", features="image", value_range=[0, 255])
    rows = load("vision/digits", "embedded", "test")[:7]
    data.number = {str(digit): digit for digit in range(10)}
    vectors = torch.stack([item["features"] for item in data.encode(rows)])
    expected = torch.tensor([[value / 255 * 2 - 1 for value in row["image"].flatten().tolist()] for row in rows])
    torch.testing.assert_close(vectors, expected)
    with pytest.raises(ValueError, match="lowest and the highest"):
        VectorClassification("vision/digits", features="image", value_range=[255, 0])


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"eval_batch_size": 0}, {"train_rows": 0}])
def test_sizes_below_one(wrong):
    with pytest.raises(ValueError, match="at least"):
        VectorClassification(DATASET, **wrong)
