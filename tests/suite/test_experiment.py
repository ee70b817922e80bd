"""The rules of layering, each of which differs from jsonargparse's own."""

import pytest

from kdbench.errors import UserError
from kdbench.suite import experiment
from kdbench.suite.experiment import expand, merge, override

KL = {"class_path": "KLDivergence", "init_args": {"temperature": 2.0}}


def test_dicts_merge_deeply_and_siblings_survive():
    below = {"losses": {"kl": dict(KL), "hint": {"class_path": "CosineDistance"}}}
    above = {"losses": {"kl": {"init_args": {"temperature": 9.0}}, "extra": {"class_path": "JensenShannon"}}}
    merged = merge(below, above)
    assert list(merged["losses"]) == ["kl", "hint", "extra"]
    assert merged["losses"]["kl"] == {"class_path": "KLDivergence", "init_args": {"temperature": 9.0}}
    assert below["losses"]["kl"] == KL, "the layers themselves are not changed"


def test_the_same_class_keeps_its_arguments_and_another_replaces_the_node():
    assert merge(KL, {"class_path": "KLDivergence"}) == KL
    assert merge(KL, {"class_path": "JensenShannon"}) == {"class_path": "JensenShannon"}
    dotted = {"class_path": "kdbench.losses.divergences.KLDivergence", "init_args": {"direction": "reverse"}}
    assert merge(KL, dotted)["init_args"] == {"temperature": 2.0, "direction": "reverse"}


def test_null_deletes_and_lists_replace():
    assert merge({"a": {"b": 1, "c": 2}, "l": [1, 2]}, {"a": {"b": None}, "l": [3]}) == {"a": {"c": 2}, "l": [3]}
    assert merge({}, {"a": {"b": None}}) == {"a": {}}


def test_overrides_enter_class_nodes_by_themselves():
    config = {
        "model": {"class_path": "EnsembleDistillation", "init_args": {"objective": {"soft": {"weight": 5, "loss": KL}}}}
    }
    changed = override(config, "model.objective.soft.weight", 0.5)
    changed = override(changed, "model.objective.soft.loss.temperature", 4)
    soft = changed["model"]["init_args"]["objective"]["soft"]
    assert soft["weight"] == 0.5
    assert soft["loss"]["init_args"]["temperature"] == 4
    assert config["model"]["init_args"]["objective"]["soft"]["weight"] == 5
    gone = override(config, "model.objective.soft", None)
    assert gone["model"]["init_args"]["objective"] == {}


def test_an_override_may_name_a_class_or_enter_one_that_was_named_alone():
    config = {"model": {"loss": "KLDivergence"}}
    assert override(config, "model.loss.temperature", 3)["model"]["loss"] == {
        "class_path": "KLDivergence",
        "init_args": {"temperature": 3},
    }
    assert expand(override({"model": {"loss": KL}}, "model.loss", "JensenShannon"))["model"]["loss"] == {
        "class_path": "kdbench.losses.divergences.JensenShannon"
    }


def test_an_override_reaches_into_lists():
    assert override({"a": [{"b": 1}, {"b": 2}]}, "a.1.b", 3) == {"a": [{"b": 1}, {"b": 3}]}
    with pytest.raises(UserError, match="no place in a list"):
        override({"a": [1]}, "a.5", 3)


def test_a_path_through_a_plain_value_is_one_sentence():
    with pytest.raises(UserError, match="plain value"):
        override({"a": [[1]]}, "a.0.0.b", 1)


def test_short_names_become_dotted_paths():
    node = expand({"optimizer": {"class_path": "AdamW"}, "loss": "CrossEntropy", "name": "plain"})
    assert node == {
        "optimizer": {"class_path": "torch.optim.AdamW"},
        "loss": {"class_path": "kdbench.losses.language.CrossEntropy"},
        "name": "plain",
    }
    with pytest.raises(UserError, match="Did you mean 'KLDivergence'"):
        expand({"class_path": "KLDivergenc"})


def test_a_file_lies_over_its_base(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "a.yaml").write_text(
        "model: {class_path: Supervised, init_args: {weight_decay: 0.1}}\n"
    )
    (tmp_path / "experiments" / "b.yaml").write_text("base: a.yaml\ntrainer: {max_steps: 3}\n")
    read = experiment.read(tmp_path / "experiments" / "b.yaml", overrides=[("model.weight_decay", 0.2)])
    assert read.name == "b"
    assert read.root == tmp_path
    assert read.config["trainer"]["max_steps"] == 3
    assert read.config["trainer"]["use_distributed_sampler"] is False, "the shared defaults lie below every file"
    assert read.config["model"]["init_args"] == {"weight_decay": 0.2}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("model: [", "is not YAML"),
        ("- 1", "must hold keys"),
        ("modl: {}", "Did you mean 'model'"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, fault):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=fault):
        experiment.read(file)


def test_a_missing_file_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "distilbert_ro.yaml").write_text("model: {}\n")
    with pytest.raises(UserError, match=r"Did you mean 'experiments/distilbert_ro\.yaml'"):
        experiment.read("experiments/distilbert_rs.yaml")
