"""Sweeps without Slurm: grids, draws, labels, the plan, what is to be done again, and what a person may get wrong."""

import json
import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdbench import cli
from kdbench.errors import UserError
from kdbench.suite import grid, plan_file, runs, slurm, sweep, sweep_status
from kdbench.suite.experiment import Request
from kdbench.suite.plan_file import Run
from kdbench.suite.sweep_status import State

ROOT = Path(__file__).parent.parent.parent
SINGLE = "experiments/distilbert_ro/single_cased.yaml"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KDBENCH_SWEEPS", str(tmp_path / "sweeps"))
    return tmp_path


def command(*words):
    cli.run(["sweep", *words])


def arms(*settings, seeds=1, samples=None, sample_seed=0, options=None, word="distilbert_ro/single_cased"):
    return sweep.of_experiment(word, [], {}, grid.parse(settings, seeds), samples, sample_seed, options)


def finish(entry, **record):
    runs.write_record(Path(entry.folder), {"metrics": {}, "references": {}} | record)


# ---- the grid ----


def test_a_grid_is_every_value_with_every_other():
    found = grid.parse(["a.b=1e-4,1e-3", "c.d=x,[1, 2]"], 1).settings()
    assert found == [
        {"a.b": 1e-4, "c.d": "x"},
        {"a.b": 1e-4, "c.d": [1, 2]},
        {"a.b": 1e-3, "c.d": "x"},
        {"a.b": 1e-3, "c.d": [1, 2]},
    ]


def test_a_run_is_called_by_what_makes_it_different():
    asked = Request((SINGLE,), {})
    told = ["model.optimizer.lr=1e-3", "model.objective.soft.weight=2", "model.objective.hidden.weight=1"]
    (label, request), *_ = grid.parse(told, 2).requests(asked)
    assert label == "lr=0.001 soft.weight=2 hidden.weight=1 seed=0"
    assert request.changes["seed_everything"] == 0


def test_draws_repeat_with_their_seed_and_never_twice():
    found = grid.parse(["a.b=int(1,8)", "c.d=1,2"], 1)
    first = found.settings(16, 3)
    assert first == found.settings(16, 3) != found.settings(16, 4)
    assert len({json.dumps(each) for each in first}) == 16


def test_draws_stay_in_their_range():
    found = grid.parse(["a.lr=log(1e-5,1e-2)", "a.rate=uniform(0,1)", "a.n=2,3"], 1).settings(200, 0)
    assert all(1e-5 <= each["a.lr"] <= 1e-2 and 0 <= each["a.rate"] <= 1 and each["a.n"] in (2, 3) for each in found)
    small = sum(each["a.lr"] < 10**-3.5 for each in found)
    assert 70 < small < 130, "half of them below the geometric middle"
    assert all(float(f"{each['a.lr']:.4g}") == each["a.lr"] for each in found)


plain = st.one_of(st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text())
values = st.one_of(plain, st.lists(plain, max_size=2), st.dictionaries(st.text(), plain, max_size=2))


@given(st.dictionaries(st.from_regex(r"[a-z]+(\.[a-z_0-9]+)+", fullmatch=True), values, max_size=4), st.integers(0, 9))
def test_the_words_of_a_run_ask_for_it_exactly(changes, seed):
    request = Request(("a.yaml", "b=c.yaml"), changes | {"seed_everything": seed})
    assert plan_file.request(request.words()) == request


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_on_the_command_line_is_the_number_of_the_sweep(number):
    found = cli.parse([f"--a.b={json.dumps(number)}"], set(), set())
    assert found.overrides == [("a.b", number)]
    assert isinstance(found.overrides[0][1], float)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (["data.batch_size"], "no setting: write --set key=value"),
        (["=1"], "no setting"),
        (["a.b="], "empty value"),
        (["a.b=[1"], "not YAML"),
        (["a.b=1,1"], "names 1 twice"),
        (["a.b=1", "a.b=2"], "given twice"),
        (["seed_everything=1"], "--seeds N"),
        (["a.b=logg(1,2)"], "Did you mean 'log'"),
        (["a.b=log(0,1)"], "above 0"),
        (["a.b=log(2,1)"], "smaller one first"),
        (["a.b=uniform(1)"], "two numbers"),
        (["a.b=int(1,2.5)"], "whole numbers"),
    ],
)
def test_a_setting_that_is_none_is_one_sentence(told, why):
    with pytest.raises(UserError, match=why.replace("(", r"\(")) as caught:
        grid.parse(told, 1)
    assert "\n" not in str(caught.value)


def test_more_draws_than_settings_are_refused():
    with pytest.raises(UserError, match="more than the 4 settings"):
        grid.parse(["a.b=1,2", "c.d=1,2"], 1).settings(5)
    with pytest.raises(UserError, match="--samples N"):
        grid.parse(["a.b=uniform(0,1)"], 1).settings()
    with pytest.raises(UserError, match="--seeds is at least 1"):
        grid.parse(["a.b=1"], 0)


# ---- the plan ----


def test_what_runs_are_made_from_comes_first_and_once(here):
    plan = plan_file.entries(arms("model.optimizer.lr=1e-3,1e-4", seeds=2))
    assert [each.level for each in plan] == [0, 1, 1, 1, 1]
    assert plan[0].stage == f"distilbert_ro/teacher_cased/{plan[0].id}"
    assert [each.label for each in plan[1:]] == [
        f"lr={lr} seed={seed}" for lr in ("0.001", "0.0001") for seed in (0, 1)
    ]
    for each in plan:
        found = each.find()
        assert (found.name, found.id, str(found.folder)) == (each.experiment, each.id, each.folder)


def test_what_is_there_is_no_entry(here):
    teacher = plan_file.entries(arms("model.optimizer.lr=1e-3"))[0]
    finish(teacher)
    assert [each.level for each in plan_file.entries(arms("model.optimizer.lr=1e-3"))] == [0]


def test_levels_follow_the_chain(here):
    changes = {"model.student.experiment": SINGLE}
    upos = "experiments/distilbert_ro/upos.yaml"
    asked = [Run.of("upos", Request((upos,), changes)), Run.of("single", Request((SINGLE,), {}))]
    plan = plan_file.entries(asked)
    assert [(each.label.partition("/")[0], each.level) for each in plan] == [
        ("distilbert_ro", 0),
        ("upos", 2),
        ("single", 1),
    ]
    assert plan[2].stage is None, "a run that another is made from is a run"


def test_a_stage_that_a_changed_file_no_longer_makes_is_refused(here):
    plan = plan_file.entries(arms("model.optimizer.lr=1e-3"))
    changed = plan_file.Entry(1, "x", plan[1].experiment, "0123456789", plan[1].folder, 1, plan[1].words)
    with pytest.raises(UserError, match="has changed since"):
        changed.find()


def test_a_plan_is_read_as_it_was_written(here):
    plan = plan_file.entries(arms("model.optimizer.lr=1e-5", seeds=2))
    plan_file.write(here, plan)
    assert plan_file.read(here / "runs.jsonl") == plan == plan_file.settled(here, plan)
    first = json.loads((here / "runs.jsonl").read_text().splitlines()[1])
    assert first.keys() == {"index", "label", "experiment", "id", "folder", "level", "words"}
    assert plan_file.entry(here / "runs.jsonl", 2).label == "lr=1e-05 seed=1"
    with pytest.raises(UserError, match="0 to 2"):
        plan_file.entry(here / "runs.jsonl", 3)
    with pytest.raises(UserError, match="another sweep"):
        plan_file.settled(here, plan_file.entries(arms("model.optimizer.lr=1e-4", seeds=2)))


@pytest.mark.parametrize("damage", ["{", "[]", '{"index": 1}', '{"index": 7, "label": "a"}'])
def test_a_damaged_plan_names_its_line(here, damage):
    plan_file.write(here, plan_file.entries(arms("model.optimizer.lr=1e-3")))
    file = here / "runs.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n" + damage + "\n")
    with pytest.raises(UserError, match="damaged in line 2"):
        plan_file.read(file)


def test_the_plan_of_a_claim_is_that_of_reproduce(here):
    plan = plan_file.entries(sweep.of_paper("distilbert_ro", 1, "embedded", Path("leaderboards"), None))
    assert len({each.folder for each in plan}) == len(plan)
    level = {each.folder: each.level for each in plan}
    for each in plan:
        for parent in each.find().parents.values():
            assert level[str(parent.folder)] < each.level
    with pytest.raises(UserError, match=r"trainer\.num_nodes"):
        sweep.of_paper("distilbert_ro", 1, "embedded", Path("leaderboards"), slurm.Options(nodes=2))


# ---- what is to be done ----


def test_a_record_alone_decides_what_is_done(here):
    plan = plan_file.entries(arms("model.optimizer.lr=1e-3,1e-4", seeds=2))
    folder = here / "sweep"
    plan_file.write(folder, plan)
    finish(plan[0])
    (folder / "5_1.log").write_text("much\nkdbench: it went wrong\n")
    lock = Path(plan[2].folder) / ".lock"
    lock.mkdir(parents=True)
    (lock / "token").write_text("")
    stale = Path(plan[3].folder) / ".lock"
    stale.mkdir(parents=True)
    (stale / "token").write_text("")
    os.utime(stale / "token", (time.time() - 1000,) * 2)
    found = {each.index: (state, why) for each, state, why in sweep_status.states(folder, plan)}
    assert found == {
        0: (State.DONE, ""),
        1: (State.FAILED, "kdbench: it went wrong"),
        2: (State.RUNNING, ""),
        3: (State.MISSING, ""),
        4: (State.MISSING, ""),
    }


def test_retry_fits_what_failed_or_is_missing(here, monkeypatch, capsys):
    given = []

    def fit_all(stages, jobs, title, labels, wandb):
        stages = list(stages)
        given.append([labels[stage.folder] for stage in stages])
        if not stages:
            return {}
        for stage in stages[1:]:
            runs.write_record(stage.folder, {"metrics": {"test/accuracy@student": 0.5}, "references": {}})
        return {stages[0].folder: "it went wrong"}

    monkeypatch.setattr("kdbench.suite.workers.fit_all", fit_all)
    monkeypatch.setattr(sweep, "check", lambda asked: None)
    folder = here / "sweep"
    with pytest.raises(UserError, match="1 of 3 runs failed"):
        sweep.start(folder, arms("model.optimizer.lr=1e-3", seeds=2))
    assert "lr=0.001" in capsys.readouterr().out
    found = sweep_status.states(folder, plan_file.opened(folder))
    assert [state for _, state, _ in found] == [State.FAILED, State.DONE, State.DONE]
    assert found[0][2] == "it went wrong"
    with pytest.raises(UserError, match="1 of 1 runs failed"):
        sweep.retry(folder)
    assert [len(each) for each in given] == [3, 1]
    assert given[1] == [found[0][0].label]
    sweep.retry(folder, index=1)
    assert given[2] == [], "it is done"
    with pytest.raises(UserError, match="no index 3"):
        sweep.retry(folder, index=3)


def test_the_table_shows_means_over_seeds(here, capsys):
    plan = plan_file.entries(arms("model.optimizer.lr=1e-3,1e-4", seeds=2))
    for each, score in zip(plan[1:], (0.5, 0.7, 0.25, 0.25), strict=True):
        finish(each, metrics={"test/accuracy@student": score, "test/loss": 1.0, "parameters@student": 5.0})
    sweep_status.show_results(plan)
    told = capsys.readouterr().out
    assert "60.00 ± 14.14" in told and "25.00 ± 0.00" in told and "lr=0.0001" in told


# ---- Slurm ----


def test_a_dry_run_shows_the_script_and_the_lines_and_submits_nothing(here, monkeypatch, capsys):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("nothing is submitted"))
    options = slurm.Options(
        partition="gpu", nodes=2, gpus_per_node=4, time="1:00:00", array_limit=3, container="image.sqsh"
    )
    plan = plan_file.entries(arms("model.optimizer.lr=1e-3", seeds=4, options=options))
    slurm.submit(Path("sweeps/x"), plan, plan, options, ["--wandb", "p"], dry_run=True)
    told = capsys.readouterr().out
    assert (ROOT / "slurm/sweep.sbatch").read_text() in told
    first, second = (line for line in told.splitlines() if " sbatch --parsable" in line)
    assert "KDBENCH_CONTAINER=image.sqsh" in first
    assert "--array=0%3" in first and "--nodes=1 --ntasks-per-node=1 --gpus-per-node=1" in first
    assert "--array=1-4%3" in second and "--nodes=2 --ntasks-per-node=4 --gpus-per-node=4" in second
    assert "--dependency=afterok:<job 0> --kill-on-invalid-dep=yes" in second and "--partition=gpu" in second
    assert second.endswith("sweeps/x/sweep.sbatch sweeps/x/runs.jsonl --wandb p")


def test_the_processes_of_a_run_belong_to_it_and_not_to_its_teachers(here):
    one, two, all_ = (
        plan_file.entries(arms("model.optimizer.lr=1e-3", options=options))
        for options in (None, slurm.Options(nodes=2), slurm.Options(nodes=2, stages_too=True))
    )
    assert slurm.Options(gpus_per_node=1).world == {}
    assert one[0].id == two[0].id != all_[0].id
    assert len({each[1].id for each in (one, two, all_)}) == 3
    assert two[1].find().config["trainer"]["num_nodes"] == 2
    assert all_[0].find().config["trainer"]["devices"] == 1


def test_indices_are_told_in_spans():
    assert slurm._compact([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


def test_without_sbatch_one_sentence(here, monkeypatch):
    monkeypatch.setenv("PATH", str(here))
    plan = plan_file.entries(arms("model.optimizer.lr=1e-3"))
    with pytest.raises(UserError, match="no sbatch here"):
        slurm.submit(here, plan, plan, slurm.Options())
    monkeypatch.chdir(here)
    with pytest.raises(UserError, match="slurm/ and experiments/"):
        slurm.submit(here, plan, plan, slurm.Options())


def test_what_is_retried_waits_for_what_still_runs_below_it(here, monkeypatch):
    (here / "sbatch").write_text(f'#!/bin/sh\necho "$@" >> {here}/asked\necho 13\n')
    (here / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "queued", lambda folder: {0: slurm.Queued("12", "RUNNING")})
    plan = plan_file.entries(arms("model.optimizer.lr=1e-3", seeds=2))
    slurm.submit(here, plan, plan[2:], slurm.Options())
    asked = (here / "asked").read_text()
    assert "--array=2 " in asked and "--dependency=afterok:12_0 " in asked
    assert (here / "sweep.sbatch").read_text() == (ROOT / "slurm/sweep.sbatch").read_text()


def test_what_sbatch_refuses_is_told_and_what_it_took_is_remembered(here, monkeypatch):
    (here / "sbatch").write_text(
        '#!/bin/sh\ncase "$*" in *dependency*) echo "sbatch: error: Invalid account" >&2; exit 1;; *) echo 12;; esac\n'
    )
    (here / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "queued", lambda folder: {})
    plan = plan_file.entries(arms("model.optimizer.lr=1e-3"))
    with pytest.raises(UserError, match=r"refuses level 1: Invalid account\. Submitted before it: 12"):
        slurm.submit(here, plan, plan, slurm.Options(account="x"), ["--wandb", "p"])
    assert slurm.before(here) == (slurm.Options(account="x"), ["--wandb", "p"])


# ---- the command line ----


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["distilbert_ro/single_case", "--set", "a.b=1"], "Did you mean 'distilbert_ro/single_cased'"),
        (["distilbert_roo"], "without --set.*Did you mean 'distilbert_ro"),
        (["distilbert_ro", "--partition", "x", "--set", "a.b=1"], "goes with --slurm"),
        (["distilbert_ro", "--trainer.max_steps", "3"], "leave 'trainer.max_steps' out"),
        (["--status", "/nowhere/at/all"], "no sweep"),
        (["--retry", "experiments"], "no sweep"),
        (["distilbert_ro", "--set", "model.optimizr.lr=1,2"], "optimizr"),
        (["distilbert_ro", "--set", "trainer.max_stepss=1,2", "--slurm", "--dry-run"], "Did you mean 'max_steps'"),
        (["distilbert_ro", "--set", "a.b=1", "--slurm", "--nodes", "0"], "--nodes is at least 1"),
        (["distilbert_ro", "--set", "a.b=1", "--index", "1"], "goes with --retry"),
        ([], "Name one experiment"),
    ],
)
def test_a_mistake_is_one_sentence(here, words, why):
    with pytest.raises(UserError, match=why) as caught:
        command(*words)
    assert "\n" not in str(caught.value)


def test_fit_takes_a_plan_with_an_index_and_nothing_else(here):
    plan_file.write(here, plan_file.entries(arms("model.optimizer.lr=1e-3")))
    for words, why in (
        (["--plan", f"{here}/runs.jsonl"], "belong together"),
        (["--plan", f"{here}/runs.jsonl", "--index", "9"], "no index 9"),
        (["--plan", f"{here}/none.jsonl", "--index", "0"], "There is no"),
        (["--plan", f"{here}/runs.jsonl", "--index", "0", "--trainer.max_steps", "3"], "leave 'trainer.max_steps' out"),
    ):
        with pytest.raises(UserError, match=why):
            cli.run(["fit", *words])


def test_a_dry_run_of_a_plan_shows_the_stage(here, capsys):
    plan = plan_file.entries(arms("model.optimizer.lr=1e-3"))
    plan_file.write(here, plan)
    cli.run(["fit", "--plan", f"{here}/runs.jsonl", "--index", "0", "--dry-run"])
    assert capsys.readouterr().out.count("to fit") == 1


def test_the_sweep_of_wandb_is_the_grid(here):
    file = here / "sweep.yaml"
    words = [
        "distilbert_ro/single_cased",
        "--set",
        "model.optimizer.lr=log(1e-5,1e-2)",
        "--set",
        "data.batch_size=8,16",
    ]
    command(*words, "--samples", "5", "--seeds", "2", "--wandb", "mine", "--wandb-sweep", str(file))
    told = yaml.safe_load(file.read_text())
    assert (told["program"], told["method"], told["run_cap"]) == ("kdbench", "random", 10)
    assert told["command"] == [
        *("kdbench", "fit", "--config", SINGLE, "--wandb", "mine", "--quiet", "${args}"),
    ]
    assert told["parameters"] == {
        "model.optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
        "data.batch_size": {"values": [8, 16]},
        "seed": {"values": [0, 1]},
    }
    assert "wandb agent" in file.read_text()
    assert not (here / "sweeps").exists()
