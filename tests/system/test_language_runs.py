"""Language models, mixtures and quantisation from the command line: what does not go together is told before training."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from kdbench import cli
from kdbench.errors import UserError

ROOT = Path(__file__).parent.parent.parent
TEACHER = "experiments/lm_kd_baselines/teacher.yaml"
FLAT = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "runs"))


def fit(config, **settings):
    """Run ``kdbench fit``; two underscores of a setting stand for a dot."""
    words = [word for key, value in settings.items() for word in (f"--{key.replace('__', '.')}", json.dumps(value))]
    cli.run(["fit", "--quiet", "--config", config, *words])


def origin(architecture, **config):
    return {"class_path": "FromConfig", "init_args": {"architecture": architecture, "config": config}}


def test_a_draft_of_another_vocabulary(tmp_path):
    with pytest.raises(UserError, match="has another vocabulary than the student: what one of them writes"):
        fit(
            "experiments/distillspec/decode.yaml",
            model__student=origin("GPT2LMHeadModel", n_layer=1, n_embd=16, n_head=2, n_positions=40),
            data__tokenizer="TrainCharacters",
            stages__teacher__trainer__max_steps=1,
            stages__teacher__data__batch_size=4,
        )


def test_a_tokenizer_without_merges(tmp_path):
    file = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(file))
    with pytest.raises(UserError, match=r"told by merges, and this tokenizer \(WordLevel\) has none"):
        fit("experiments/data_mixture_inference/tokenizer.yaml", study__tokenizer=str(file))


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"first": 0.5, "second": 0.5, "neutral": 0.5, "harmful": 0.0}, r"the shares sum to 1\.5: those of a mixture sum to 1"),
        ({"first": 1.5, "second": -0.5, "neutral": 0.0, "harmful": 0.0}, "second"),
        ({"first": 0.5, "third": 0.5}, "'third'"),
    ],
)  # fmt: skip
def test_mixtures_that_are_none(shares, said):
    with pytest.raises(UserError, match=said):
        fit("experiments/regmix/proxy.yaml", data__weights=shares)


def test_an_empty_calibration_set():
    with pytest.raises(
        UserError, match=r"OutlierSuppression has no batch to look at: trainer\.limit_train_batches leaves one or more"
    ):
        fit(
            "experiments/outlier_suppression_plus.yaml",
            model__student=origin("BertForSequenceClassification", **FLAT),
            data__tokenizer={"class_path": "TrainWordLevel", "init_args": {"lowercase": True}},
            trainer__limit_train_batches=0,
        )


def test_layers_that_cannot_be_folded():
    with pytest.raises(UserError, match=r"The layers of MobileBertForSequenceClassification .* cannot be folded: take"):
        fit(
            "experiments/outlier_suppression_plus.yaml",
            model__student=origin("MobileBertForSequenceClassification", **FLAT),
            data__tokenizer={"class_path": "TrainWordLevel", "init_args": {"lowercase": True}},
        )
