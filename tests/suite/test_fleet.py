"""Fleets: the runs of an experiment over the values of a setting are planned, found and fitted, and handed to one study."""

import json
import shutil
from pathlib import Path

import pytest

from kdbench import cli
from kdbench.errors import UserError
from kdbench.suite import chain, experiment, fit, runs, workers

ROOT = Path(__file__).parent.parent.parent
REGRESSION = "experiments/regmix/regression.yaml"
SMALL = {
    "stages.proxy.model.student.config": {"hidden_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1},
    "stages.proxy.trainer": {"max_steps": 2, "val_check_interval": 2},
    "stages.proxy.data.train_rows": 100,
}
MIXTURES = [{"first": 0.5, "second": 0.5}, {"first": 0.2, "neutral": 0.8}, {"second": 0.6, "harmful": 0.4}]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "runs"))


def plan(changes=None, file=REGRESSION):
    return chain.plan(experiment.read(file, overrides=list((SMALL | (changes or {})).items())))


def over(table):
    """Return the change that lets the fleet go over other settings."""
    return {
        "study.proxies": {
            "class_path": "FromRuns",
            "init_args": {"experiment": "experiments/regmix/proxy.yaml"} | table,
        }
    }


def fleet(stage):
    return [parent for place, parent in stage.parents.items() if place.startswith("study.proxies.")]


def data_of(stage):
    return stage.config["data"]["init_args"]


def given(stage):
    return stage.config["study"]["init_args"]["proxies"]["init_args"]


# ---- the plan ----


def test_a_fleet_is_one_stage_for_each_value():
    changes = {"study.proxies.over.data.weights.count": 20}
    stage = plan(changes)
    assert [each.name for each in stage.walk()] == ["regmix/proxy"] * 20 + ["regmix/regression"]
    assert len({each.id for each in stage.walk()}) == 21
    assert given(stage)["runs"] == [str(each.folder) for each in fleet(stage)]
    assert {"data.weights": [data_of(each)["weights"] for each in fleet(stage)]} == given(stage)["settings"]
    assert "over" not in given(stage)
    assert plan(changes).id == stage.id
    again = chain.Stage.from_json(json.loads(json.dumps(stage.as_json())))
    assert again == stage


def test_values_are_drawn_with_the_seed_of_the_stage_that_asks():
    one, other = plan(), plan({"seed_everything": 1})
    assert given(one)["settings"] != given(other)["settings"]
    assert {each.config["seed_everything"] for each in fleet(other)} == {0}, "the seed of the proxies is their own"


def test_a_change_of_the_proxies_is_another_fleet_and_another_study():
    one, other = plan(), plan({"stages.proxy.trainer.max_steps": 3})
    assert {each.id for each in fleet(one)}.isdisjoint(each.id for each in fleet(other))
    assert one.id != other.id


def test_the_folders_of_the_runs_are_no_part_of_the_id(tmp_path, monkeypatch):
    here = plan()
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "elsewhere"))
    assert plan().id == here.id


def test_every_combination_of_several_keys_is_a_run():
    found = fleet(plan(over({"over": {"data.weights": MIXTURES, "data": {"batch_size": [4, 8]}}})))
    assert len({each.id for each in found}) == 6
    assert {data_of(each)["batch_size"] for each in found} == {4, 8}


def test_a_source_goes_down_through_a_study():
    changes = {"data": {"init_args": {"source": "hub", "dataset": "text/pile_domains"}}}
    stage = plan(changes | {"stages.proxy.data.dataset": "text/pile_domains"}, "experiments/regmix.yaml")
    (study,) = stage.parents.values()
    assert {data_of(each)["source"] for each in fleet(study)} == {"hub"}
    assert fleet(study)[0].hub() == ["sail/regmix-data-sample"]


def test_a_plan_shows_a_fleet_in_one_line(capsys):
    cli.run(["fit", "--config", "experiments/regmix.yaml", "--dry-run"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "regmix" in line]
    assert lines[0].startswith("1-64. regmix/proxy  0 found, 64 to fit")
    assert [line.split("  ")[0] for line in lines[1:]] == ["65. regmix/regression", "66. regmix"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"over": None}, r"'study\.proxies' is a FromRuns without 'over': name a key and its values"),
        ({"over": {"data.weights": []}}, r"over\.data\.weights holds the values of a setting: a list of one or more"),
        ({"over": {"data.weights": "all"}}, "a list of one or more, or a class that draws them"),
        ({"over": {"data.weights": {"class_path": "TrainWords"}}}, "a list of one or more, or a class that draws them"),
        ({"over": {"data.weights": {"class_path": "TemperedMixtures"}}}, r"over\.data\.weights: .*missing 2 required"),
        (
            {
                "over": {
                    "data.weights": {"class_path": "TemperedMixtures", "init_args": {"prior": {"first": 2}, "count": 3}}
                }
            },
            "prior: the shares sum to 2",
        ),
        (
            {
                "over": {
                    "data.weights": {"class_path": "TemperedMixtures", "init_args": {"prior": {"first": 1}, "count": 3}}
                }
            },
            "of 300 draws 1 different mixtures keep the limits, and 3 are asked for",
        ),
    ],
)
def test_a_fleet_that_goes_over_nothing_is_told(table, message):
    with pytest.raises(UserError, match=message) as raised:
        plan(over(table))
    assert "\n" not in str(raised.value)


# ---- the runs ----


def test_a_fleet_is_fitted_where_it_is_missing_and_read_by_its_study():
    three = over({"over": {"data.weights": MIXTURES}})
    stage = plan(three)
    with pytest.raises(UserError, match="3 proxies, 16 of them unseen, are too few: learn from 10 or more, and rank 2"):
        fit.fit(stage, quiet=True)
    assert all(each.finished for each in fleet(stage))
    assert stage.record is None
    times = [(each.folder / runs.RECORD).stat().st_mtime_ns for each in fleet(stage)]
    shutil.rmtree(fleet(stage)[1].folder)
    with pytest.raises(UserError, match="too few"):
        fit.fit(plan(three), quiet=True)
    assert [
        (each.folder / runs.RECORD).stat().st_mtime_ns == time for each, time in zip(fleet(stage), times, strict=True)
    ] == [
        True,
        False,
        True,
    ]


@pytest.mark.slow
def test_a_failed_run_stops_the_study_and_no_other_run():
    stage = plan(over({"over": {"data.weights": [*MIXTURES, {"frist": 1.0}]}}))
    failed = workers.fit_all([stage])
    lost = fleet(stage)[3].folder
    assert set(failed) == {lost, stage.folder}
    assert "there is no domain 'frist'" in failed[lost]
    assert failed[stage.folder] == "it is made from 'regmix/proxy', which failed"
    assert all(each.finished for each in fleet(stage)[:3])


# ---- what is checked before the first step ----


def test_the_first_of_a_fleet_is_checked_for_all():
    stage = plan(over({"over": {"data.weights": MIXTURES}}))
    assert stage.alike() == {each.folder for each in fleet(stage)[1:]}


def test_an_experiment_that_goes_on_from_itself_is_checked_twice(tmp_path):
    """Stages of one name but of other settings each speak for themselves: nothing is fitted before the second is checked."""
    proxy = "experiments/regmix/proxy.yaml"
    changes = {"trainer.max_steps": 2, "data.train_rows": 100, "model.optimizer.lr": 1e-3}
    student = {"class_path": "FromRun", "init_args": {"experiment": proxy, "set": changes}}
    asked = {"model.student": student, "model.weight_decay": "much"} | changes
    stage = chain.plan(experiment.read(proxy, overrides=list(asked.items())))
    assert [each.name for each in stage.walk()] == ["regmix/proxy"] * 2
    with pytest.raises(UserError, match="weight_decay"):
        fit.fit(stage, quiet=True)
    assert not list(tmp_path.rglob("record.json"))
