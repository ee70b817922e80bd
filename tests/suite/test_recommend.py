"""AutoDistiller on records whose best pipeline is planted, and on a small leaderboard on disk."""

import itertools
import json
import math
import re
import shlex

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdbench import cli
from kdbench.data import registry
from kdbench.errors import UserError
from kdbench.suite import recommend
from kdbench.suite.recommend import category, describe, records
from kdbench.suite.recommender import fit, leave_one_task_out, shares

GRID = {
    "pipeline.augment": ["none", "random", "mixup"],
    "pipeline.prediction": ["ce", "mse"],
    "pipeline.hint": ["none", "mse", "cosine", "mi"],
}
SIZES = [200, 300, 400, 600, 3000, 4000, 7000, 10_000]


def planted(pipeline, size):
    """The ratio without noise: a hint helps everywhere, augmentation where labels are few."""
    hint = {"none": 0.0, "mse": 0.02, "cosine": 0.03, "mi": 0.06}[pipeline["pipeline.hint"]]
    few, many = {"none": (0.0, 0.0), "random": (0.08, -0.04), "mixup": (0.03, -0.01)}[pipeline["pipeline.augment"]]
    return 0.8 + 0.02 * math.log(size / 200) + hint + (few if size < 1000 else many)


def pipelines(grid=GRID):
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def table(noise=0.003, seeds=1, sizes=SIZES):
    chance = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "task": f"task {size}",
            "ratio": planted(each, size) + noise * chance.normal(),
            "task.log_train_size": math.log(size),
            "task.classes": 2.0 + size % 3,
            "task.teacher_score": math.nan if size == 300 else 0.9,
            "model.layers": 4.0,
            "model.hidden": math.nan,
            **each,
        }
        for size in sizes
        for each in pipelines()
        for _ in range(seeds)
    )


def task(size):
    return {"task.log_train_size": math.log(size), "task.classes": 3.0, "model.layers": 4.0}


@pytest.fixture
def few_trees(monkeypatch):
    """For what does not depend on how good the forest is."""
    monkeypatch.setattr("kdbench.suite.recommender.TREES", 5)


# ---- the learner ----


@pytest.fixture(scope="module")
def recommender():
    return fit(table())


@pytest.mark.parametrize(("size", "augment"), [(220, "random"), (7000, "none")])
def test_the_best_pipeline_of_a_new_task_depends_on_its_size(recommender, size, augment):
    candidates = pd.DataFrame(pipelines())
    ranked = recommender.rank(candidates, task(size))
    assert len(ranked) == len(candidates)
    first = ranked[0]
    assert (first.pipeline["pipeline.augment"], first.pipeline["pipeline.hint"]) == (augment, "mi")
    assert candidates.loc[first.index].to_dict() == first.pipeline
    assert first.ratio == pytest.approx(planted(first.pipeline, size), abs=0.02)
    assert 0 < first.spread < 0.1
    ratios = [each.ratio for each in ranked]
    assert ratios == sorted(ratios, reverse=True)


def test_the_same_records_and_seed_recommend_the_same(recommender):
    candidates = pd.DataFrame(pipelines())
    assert fit(table()).rank(candidates, task(500)) == recommender.rank(candidates, task(500))
    assert fit(table(), seed=1).rank(candidates, task(500)) != recommender.rank(candidates, task(500))


def test_a_task_left_out_gets_better_pipelines_than_random_search():
    found = leave_one_task_out(table(), top_n=3)
    assert list(found.index) == sorted(f"task {size}" for size in SIZES)
    assert (found["candidates"] == 24).all()
    assert (found["random_rank"] == 12.5).all()
    assert (found["rank"] < 7).all()
    assert found["rank"].mean() < 4
    assert (found["best"] > found["random_best"]).all()
    assert (found["best"] <= found["possible"]).all()
    assert (found["chance"] < 0.5).all()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([0.7, 0.75, 0.8, 0.9]), min_size=5, max_size=7), st.integers(1, 4))
def test_what_random_search_finds_is_its_expectation_over_all_draws(few_trees, ratios, top_n):
    count = len(ratios)
    rows = [("held", place, ratio) for place, ratio in enumerate(ratios)]
    rows += [(other, place, 0.5 + 0.01 * place) for other in ("one", "two") for place in range(count)]
    data = pd.DataFrame(rows, columns=["task", "pipeline.number", "ratio"])
    found = leave_one_task_out(data, top_n).loc["held"]
    draws = [max(draw) for draw in itertools.combinations(ratios, top_n)]
    assert found["random_best"] == pytest.approx(np.mean(draws))
    assert found["chance"] == pytest.approx(np.mean([best >= found["best"] for best in draws]))
    places = [sum(other > each for other in ratios) + (ratios.count(each) + 1) / 2 for each in ratios]
    ranks = [np.mean(draw) for draw in itertools.combinations(places, top_n)]
    assert found["random_rank"] == pytest.approx(np.mean(ranks))
    assert min(ranks) - 1e-9 <= found["rank"] <= max(ranks) + 1e-9


def test_records_of_several_seeds_are_averaged(few_trees):
    data = table(noise=0.0, seeds=2)
    data.loc[::2, "ratio"] += 0.3
    data.loc[1::2, "ratio"] -= 0.3
    assert leave_one_task_out(data, 1)["possible"].max() == pytest.approx(
        max(planted(each, size) for each in pipelines() for size in SIZES)
    )


def test_ties_and_constant_columns_are_no_trouble(few_trees):
    data = table().assign(ratio=0.9, **{"pipeline.constant": "same", "task.constant": 1.0})
    found = leave_one_task_out(data, 2)
    assert (found["rank"] == 12.5).all()
    assert (found["best"] == found["random_best"]).all()
    assert (found["chance"] == 1).all()
    (first, *_) = fit(data).rank(data.head(24), {})
    assert (first.ratio, first.spread) == (pytest.approx(0.9), pytest.approx(0))


def test_what_cannot_be_learnt_or_ranked_is_told(few_trees):
    data = table()
    with pytest.raises(UserError, match="needs 10 records of at least 2 pipelines, and there are 9 of 9"):
        fit(data.head(9))
    with pytest.raises(UserError, match="there are 10 of 1"):
        fit(pd.concat([data.head(1)] * 10))
    with pytest.raises(UserError, match="of 0"):
        fit(data.drop(columns=list(GRID)))
    with pytest.raises(UserError, match="finite 'ratio'"):
        fit(data.assign(ratio=math.nan))
    with pytest.raises(UserError, match="there must be two, and the records have 1"):
        leave_one_task_out(data.head(24))
    with pytest.raises(UserError, match="Of the 24 pipelines of 'task 10000' no 25"):
        leave_one_task_out(data, 25)
    fitted, candidates = fit(data), pd.DataFrame(pipelines())
    with pytest.raises(UserError, match=r"'pipeline.hint' = cosin\. Did you mean 'cosine'"):
        fitted.rank(candidates.assign(**{"pipeline.hint": "cosin"}), {})
    with pytest.raises(UserError, match=r"no column 'pipeline.hint'"):
        fitted.rank(candidates.drop(columns="pipeline.hint"), {})
    with pytest.raises(UserError, match=r"no number 'task.clases'. Did you mean 'task.classes'"):
        fitted.rank(candidates, {"task.clases": 2})


# ---- shares of variance ----


def test_shares_by_hand():
    data = pd.DataFrame({"a": [0, 0, 1, 1], "b": [0, 1, 0, 1], "ratio": [1.0, 2.0, 3.0, 6.0]})
    found = shares(data, ["a", "b"])
    assert found.to_dict() == pytest.approx(
        {"a": 2.25 / 3.5, "b": 1 / 3.5, "a x b": 0.25 / 3.5, "higher order": 0, "within cells": 0}
    )


@given(st.integers(0, 1000), st.integers(1, 2))
def test_shares_against_sums_of_squares(seed, repeats):
    """Mean squares of the model with effects, its coefficients found by least squares on indicator columns."""
    levels = {"a": 3, "b": 2, "c": 2}
    cells = [cell for cell in itertools.product(*map(range, levels.values())) for _ in range(repeats)]
    data = pd.DataFrame(cells, columns=list(levels)).assign(ratio=np.random.default_rng(seed).normal(size=len(cells)))

    def explained(*groups):
        columns = [np.ones(len(data))]
        for group in groups:
            names = data[list(group)].apply(tuple, axis=1)
            columns += [(names == each).to_numpy(float) for each in names.unique()]
        design = np.column_stack(columns)
        fitted = design @ np.linalg.lstsq(design, data["ratio"], rcond=None)[0]
        return fitted.var() / data["ratio"].var(ddof=0)

    found = shares(data, list(levels))
    for name in levels:
        assert found[name] == pytest.approx(explained(name), abs=1e-9)
    for first, second in itertools.combinations(levels, 2):
        both = explained((first, second)) - explained((first,), (second,))
        assert found[f"{first} x {second}"] == pytest.approx(both, abs=1e-9)
    assert found["within cells"] == pytest.approx(1 - explained(tuple(levels)), abs=1e-9)
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()


def test_shares_find_the_planted_effects():
    data = table(noise=0.0)
    found = shares(data, ["task", *GRID])
    assert found.sum() == pytest.approx(1)
    assert found["pipeline.prediction"] == pytest.approx(0, abs=1e-12)
    assert found["task x pipeline.augment"] > 0.05, "what augmentation is worth depends on the task"
    assert found["task x pipeline.hint"] == pytest.approx(0, abs=1e-12)
    within = shares(data[data["task"] == "task 200"], list(GRID))
    assert within["pipeline.augment"] > within["pipeline.hint"] > 0


def test_shares_of_constant_columns_and_ratios():
    data = table().assign(constant="same")
    found = shares(data, ["constant", "pipeline.hint"])
    assert found["constant"] == pytest.approx(0, abs=1e-12)
    assert found.sum() == pytest.approx(1)
    assert (shares(data.assign(ratio=1 / 3), ["constant", "pipeline.hint"]) == 0).all()


def test_a_grid_with_holes_has_no_shares():
    data = table()
    with pytest.raises(UserError, match="has 24 cells: 24 hold records, 7 to 8 each"):
        shares(data.drop(index=3), list(GRID))
    with pytest.raises(UserError, match="has 192 cells: 191 hold records"):
        shares(data.drop(index=3), ["task", *GRID])
    with pytest.raises(UserError, match=r"no column 'pipeline.hin'. Did you mean 'pipeline.hint'"):
        shares(data, ["pipeline.hin"])


# ---- the records of a leaderboard ----

HINT = {"loss": {"class_path": "CosineDistance"}, "student": "hidden_states.-1", "teacher": "teacher.hidden_states.-1"}
STUDENT = {
    "class_path": "FromConfig",
    "init_args": {
        "architecture": "BertForSequenceClassification",
        "config": {"num_hidden_layers": 1, "hidden_size": 24},
    },
}
EXPERIMENT = {
    "model": {
        "class_path": "LogitDistillation",
        "init_args": {
            "student": STUDENT,
            "teacher": {"class_path": "FromRun", "init_args": {"experiment": "experiments/teacher.yaml"}},
        },
    },
    "data": {
        "class_path": "TextClassification",
        "init_args": {"dataset": "synthetic/hidden_markov", "label": "dialect"},
    },
    "trainer": {"max_steps": 10},
}
CHOICES = {
    "hint": [None, HINT],
    "temperature": [1.0, 4.0],
}
ROWS = [200, 400, 800]


def arm(hint, temperature, rows):
    changes = {"model.temperature": temperature, "data.train_rows": rows}
    if hint:
        changes["model.objective.hint"] = hint
    return {"experiment": "experiments/small.yaml", "set": changes}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A leaderboard of 4 pipelines on 3 tasks with 2 seeds; a hint is worth 0.1, a temperature of 4 0.02."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "leaderboards" / "small"
    folder.mkdir(parents=True)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "small.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    teacher = {"class_path": "Supervised", "init_args": {"student": STUDENT}}
    (tmp_path / "experiments" / "teacher.yaml").write_text(yaml.safe_dump(EXPERIMENT | {"model": teacher}))
    arms, cells, kept = {}, [], {}
    for hint, temperature, rows in itertools.product(*CHOICES.values(), ROWS):
        name = f"hint{bool(hint):d}_t{temperature:.0f}_{rows}"
        arms[name] = arm(hint, temperature, rows)
        for seed in range(2):
            ratio = 0.7 + 0.1 * bool(hint) + 0.02 * (temperature == 4) + 0.001 * seed
            run = f"small/{name}{seed}"
            kept[run] = record(ratio * 0.9)
            cells.append(["seeds", name, "own", str(seed), 0, run])
    arms["plain"] = {"experiment": "experiments/small.yaml", "set": {"model.temperature": 9.0}}
    cells += [["seeds", "plain", "own", "0", 0, "small/plain"], ["seeds", "plain", "own", "1", 0, None]]
    kept["small/plain"] = record(0.8, {"test/accuracy@teacher": None})
    claim = {
        "title": "small", "source_of_claim": "nobody", "statement": "nothing", "recipe": "none", "seeds": 2,
        "source": "embedded", "arms": arms,
        "claims": {"better": {"says": "x", "expect": "hint1_t1_200.accuracy > hint0_t1_200.accuracy"}},
        "reported": {"source": "a table", "rows": {"theirs": {"scores": {"anything": 1}}}},
    }  # fmt: skip
    (folder / "claim.yaml").write_text(yaml.safe_dump(claim))
    told = {"source": "embedded", "seeds": 2, "claims": {}, "cells": cells, "records": kept}
    (folder / "results.json").write_text(json.dumps(told))
    return tmp_path / "leaderboards"


def record(accuracy, others=None):
    others = {"test/accuracy@teacher": 0.9, "test/accuracy@other": 0.99} if others is None else others
    metrics = {"test/accuracy@student": accuracy, "parameters@student": math.e**9} | others
    curves = {"test/accuracy@student": {"values": [0.1, accuracy], "steps": [5, 10], "best": 0}}
    facts = {"seconds": 1.0, "steps": 10, "peak_memory_mb": 1, "parents": {}}
    return facts | {"metrics": metrics, "curves": curves, "references": {"other": "x"}}


def test_records_are_read_from_a_leaderboard(home):
    found = records(home, "small")
    assert len(found) == 2 * 4 * 3, "what has no teacher and what failed is no record"
    hints = {"as in the file", "loss=CosineDistance student=hidden_states.-1 teacher=teacher.hidden_states.-1"}
    assert set(found["pipeline.model.objective.hint"]) == hints
    assert set(found["pipeline.model.temperature"]) == {"1.0", "4.0"}
    assert [name for name in found if name.startswith("pipeline.")] == [
        "pipeline.model.temperature",
        "pipeline.model.objective.hint",
    ], "the size of the data is the task's"
    assert set(found["task"]) == {f"synthetic/hidden_markov dialect {rows}" for rows in ROWS}
    first = found.iloc[0]
    assert first["ratio"] == pytest.approx(0.7)
    assert first["task.log_train_size"] == pytest.approx(math.log(200))
    assert (first["task.classes"], first["task.pair"], first["task.mean_length"]) == (2, 0, 16)
    dialects = [row["dialect"] for row in registry.load("synthetic/hidden_markov", "embedded", "train")[:200]]
    part = dialects.count("A") / 200
    assert first["task.class_entropy"] == pytest.approx(-part * math.log(part) - (1 - part) * math.log(1 - part))
    assert first["task.teacher_score"] == pytest.approx(0.9), "a reference is no teacher"
    assert (first["model.layers"], first["model.hidden"]) == (1, 24)
    assert first["model.log_parameters"] == pytest.approx(9)
    grid = ["task", "pipeline.model.temperature", "pipeline.model.objective.hint"]
    found = shares(found, grid)
    assert found["pipeline.model.objective.hint"] == found.max() > 0.9


def test_trials_of_a_tuned_arm_and_other_pairs_are_records_too(home):
    augment = {"class_path": "RandomEdits", "init_args": {"delete": 0.1}}
    tuned = {
        "experiment": "experiments/small.yaml",
        "seeds": "none",
        "set": {"data.augment": augment, "model.student.config.hidden_size": 32},
        "best": {"of": [{"model.temperature": 2.0}, {"model.temperature": 3.0}], "by": "val.loss", "order": "lowest", "keep": 1},
    }  # fmt: skip
    claim = yaml.safe_load((home / "small" / "claim.yaml").read_text())
    claim |= {
        "arms": {"tuned": tuned},
        "over": {"sizes": {"data.train_rows": [100, 200]}},
        "stages": {"small": {"trainer.max_steps": 5}},
        "claims": {"good": {"says": "x", "expect": "tuned.accuracy > 0.5", "pairs": "sizes"}},
    }
    (home / "small" / "claim.yaml").write_text(yaml.safe_dump(claim))
    cells = [
        ["sizes", "tuned", "own", str(rows), trial, f"r{rows}{trial}"] for rows in (100, 200) for trial in range(2)
    ]
    told = {
        "source": "embedded",
        "seeds": 2,
        "claims": {},
        "cells": cells,
        "records": {c[-1]: record(0.8) for c in cells},
    }
    (home / "small" / "results.json").write_text(json.dumps(told))
    found = records(home, "small")
    assert found["task"].tolist() == [f"synthetic/hidden_markov dialect {rows}" for rows in (100, 100, 200, 200)]
    assert found["pipeline.model.temperature"].tolist() == ["2.0", "3.0"] * 2
    assert (found["pipeline.data.augment"] == "RandomEdits(delete=0.1)").all()
    assert not any("student" in name or "rows" in name for name in found if name.startswith("pipeline."))
    assert (found["model.hidden"] == 32).all()


def test_the_command_shows_the_pipelines_to_try(home, capsys):
    changes = {"data.dataset": "synthetic/hidden_markov", "data.label": "dialect", "data.train_rows": 300}
    ranked = recommend.recommend("small", home, changes, top=2, teacher_score=0.8)
    assert [each.pipeline["pipeline.model.temperature"] for each in ranked] == ["4.0", "1.0"]
    assert all(each.pipeline["pipeline.model.objective.hint"] != recommend.UNCHANGED for each in ranked)
    lines = capsys.readouterr().out.splitlines()
    shown = " ".join(" ".join(lines).split())
    assert "small on synthetic/hidden_markov dialect 300" in shown
    assert re.search(r"1 4.0 loss=CosineDistance .* 82.\d ± \d.\d", shown)
    told = "the 3 tasks of the records had their 2 recommended pipelines at the mean rank 1.5 of 4 (random: 2.5)"
    assert told in shown
    commands = [shlex.split(line) for line in lines if line.startswith("kdbench fit ")]
    assert len(commands) == 2
    for (_, _, *words), temperature in zip(commands, (4.0, 1.0), strict=True):
        parsed = cli.parse(words, set(), set())
        assert parsed.configs == ["experiments/small.yaml"]
        chosen = {"model.temperature": temperature, "model.objective.hint": HINT}
        assert dict(parsed.overrides) == chosen | changes, "the data are those of the new task"


def test_students_that_come_from_other_runs_are_measured_by_their_configs(home):
    root = home.parent
    below = {"class_path": "FromRun", "init_args": {"experiment": "experiments/teacher.yaml"}}
    cut = [{"class_path": "CopyLayers", "init_args": {"count": 3}}]

    def shape(origin):
        student = {
            "model": EXPERIMENT["model"] | {"init_args": {**EXPERIMENT["model"]["init_args"], "student": origin}}
        }
        (root / "experiments" / "other.yaml").write_text(yaml.safe_dump(EXPERIMENT | student))
        found = recommend._features(root, recommend.Request(("experiments/other.yaml",), {}))
        return found["model.layers"], found["model.hidden"]

    assert shape(below) == (1, 24)
    wider = {"model.student.config.hidden_size": 48}
    assert shape({**below, "init_args": below["init_args"] | {"set": wider}}) == (1, 48)
    assert shape({**below, "init_args": below["init_args"] | {"then": cut}}) == (3, 24)
    hub = shape({"class_path": "FromHub", "init_args": {"name": "some/where"}})
    assert all(math.isnan(each) for each in hub)


def test_mistakes_of_the_command_are_told(home, few_trees):
    with pytest.raises(UserError, match=r"'macro_f1' of a student and of its teacher.* Its students have accuracy"):
        records(home, "small", "macro_f1")
    with pytest.raises(UserError, match="Describe the new task by its data"):
        recommend.recommend("small", home, {})
    with pytest.raises(UserError, match="--top is at least 1"):
        recommend.recommend("small", home, {"data.train_rows": 100}, top=0)
    with pytest.raises(UserError, match=r"no field 'dialec'.* Did you mean 'dialect'"):
        recommend.recommend("small", home, {"data.label": "dialec"})
    with pytest.raises(UserError, match=r"There is no data set .* Did you mean 'synthetic/hidden_markov'"):
        recommend.recommend("small", home, {"data.dataset": "synthetic/hiden_markov"})


def test_the_numbers_of_a_task():
    rows = [
        {"first": "a b", "second": "c", "stars": 1},
        {"first": "a", "second": "", "stars": 2},
        {"first": "a", "second": "b c d", "stars": 5},
        {"first": "", "second": "", "stars": 5},
    ]
    found = describe(rows, "stars", ["first", "second"], {"bad": [1, 2], "good": [5]})
    assert found == {
        "task.log_train_size": pytest.approx(math.log(4)),
        "task.classes": 2,
        "task.mean_length": 2,
        "task.pair": 1,
        "task.class_entropy": pytest.approx(math.log(2)),
    }
    assert describe(rows, "stars", ["first"])["task.class_entropy"] == pytest.approx(1.5 * math.log(2))
    assert describe([rows[0]], "stars", ["first"])["task.class_entropy"] == 0


def test_a_setting_is_named_as_people_read_it():
    loss = {"class_path": "kdbench.losses.divergences.KLDivergence", "init_args": {"temperature": 2.0}}
    assert category(loss) == "KLDivergence(temperature=2.0)"
    assert category({"weight": 1, "loss": loss}) == "weight=1 loss=KLDivergence(temperature=2.0)"
    assert category([1, None, {"class_path": "SGD"}]) == "[1, none, SGD]"
    assert category("x y") == "x y"


def test_what_each_factor_of_a_grid_explains_is_told():
    rows = [
        {
            "task": task,
            "factor.task": task,
            "factor.loss": loss,
            "ratio": 0.5 + 0.3 * (loss == "mse") + 0.1 * (task == "b"),
        }
        for task in "ab"
        for loss in ("ce", "mse")
        for _ in range(2)
    ]
    told = recommend._importance(pd.DataFrame(rows), ["factor.loss", "factor.task"])
    assert told.startswith("Of the spread over all pipelines and tasks: loss 90.0%, task 10.0%, loss x task 0.0%")
    assert "need every cell" in recommend._importance(pd.DataFrame(rows[2:]), ["factor.loss", "factor.task"])
