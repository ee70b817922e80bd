"""A very small claim: two arms, one task, two seeds; and a tuned arm over two mixtures."""

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb_offline import Offline

from kdbench.errors import UserError
from kdbench.suite import claim_file, leaderboard, reproduce, results
from kdbench.suite.claims import OWN

ROOT = Path(__file__).parent.parent.parent
TINY = {"model.student.config.hidden_size": 32, "trainer.max_steps": 3}
CLAIM = {
    "title": "small",
    "source_of_claim": "nobody",
    "statement": "nothing",
    "recipe": "three steps",
    "seeds": 2,
    "source": "embedded",
    "arms": {
        "cased": {"experiment": "experiments/distilbert_ro/teacher_cased.yaml", "seeds": "none"},
        "single": {"experiment": "experiments/distilbert_ro/single_cased.yaml", "teachers": ["cased"]},
    },
    "tasks": {
        "upos": {
            "experiment": "experiments/distilbert_ro/upos.yaml",
            "metric": "macro_f1",
            "shown": "macro-F1",
            "loyalty": ["label_loyalty", "probability_loyalty"],
        }
    },
    "stages": {"teacher_cased": TINY, "single_cased": {"trainer.max_steps": 3}, "upos": {"trainer.max_steps": 2}},
    "claims": {
        "smaller": {
            "says": "It is smaller.",
            "expect": "single.parameters < single.parameters@cased",
            "judged": "every",
        },
        "perfect": {"says": "It makes no mistake.", "expect": "single.upos.macro_f1 > 0.99", "judged": "every"},
        "built_on": {"says": "And so on.", "expect": "single.upos.macro_f1 > 0.5", "premise": ["perfect"]},
    },
    "report": {"gap": {"shows": "Gap", "value": "cased.upos.macro_f1 - single.upos.macro_f1"}},
    "budget": [{"equal": "steps", "arms": ["single", "cased"], "within": 10}],
    "reported": {
        "source": "a table",
        "rows": {"theirs": {"arm": "single", "scores": {"upos": 98.0}, "unverified": ["upos"]}},
    },
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "runs"))
    write(tmp_path / "boards", CLAIM)
    return tmp_path / "boards"


def write(home, claim):
    (home / "small").mkdir(parents=True, exist_ok=True)
    (home / "small" / "claim.yaml").write_text(yaml.safe_dump(claim))
    return claim_file.load(home / "small" / "claim.yaml")


def test_the_plan_shares_what_the_arms_share(home):
    cells = list(reproduce.plan(claim_file.load(home / "small" / "claim.yaml")))
    assert len(cells) == 1 + 2 + 2 * 2
    teachers = {cell.stage.folder for cell in cells if cell.arm == "cased" and cell.task == OWN}
    for cell in cells:
        if cell.arm == "single" and cell.task == OWN:
            assert {parent.folder for parent in cell.stage.parents.values()} == teachers
    tuned = {(cell.arm, cell.pair): cell.stage for cell in cells if cell.task == "upos"}
    assert len({stage.folder for stage in tuned.values()}) == 4
    for seed in ("0", "1"):
        reference = tuned["single", seed].parents["model.references.cased"]
        assert reference.folder == tuned["cased", seed].folder, "compared with the teacher's run of the same seed"


def test_seeds_of_a_chain_reach_its_stages(home):
    arms = CLAIM["arms"] | {"single": CLAIM["arms"]["single"] | {"seeds": "chain"}}
    cells = list(reproduce.plan(write(home, CLAIM | {"arms": arms})))
    own = [cell.stage for cell in cells if cell.arm == "single" and cell.task == OWN]
    assert len({stage.parents["model.student"].folder for stage in own}) == 2, "each seed has a teacher of its own"


def test_a_tuned_arm_and_other_pairs_have_a_run_for_each_trial_and_value(home):
    arms = {
        "tuned": {
            "experiment": "experiments/distilbert_ro/teacher_cased.yaml",
            "seeds": "none",
            "best": {
                "of": [{"trainer.max_steps": 2}, {"trainer.max_steps": 3}],
                "by": "val.loss",
                "order": "lowest",
                "keep": 1,
            },
        }
    }
    changed = {
        "arms": arms,
        "tasks": None,
        "over": {"rates": {"data.rate": [0.1, 0.2, 0.3]}},
        "claims": {"low": {"says": "x", "expect": "tuned.cross_entropy < 9", "pairs": "rates"}},
        "report": None,
        "budget": None,
        "reported": {"source": "a table", "rows": {"theirs": {"scores": {"anything": 1}}}},
    }
    claim = {key: value for key, value in (CLAIM | changed).items() if value is not None} | {
        "stages": {"teacher_cased": TINY}
    }
    cells = list(reproduce.plan(write(home, claim)))
    assert [(cell.pairs, cell.pair, cell.trial) for cell in cells] == [
        *(("seeds", "0", trial) for trial in (0, 1)),
        *(("rates", str(rate), trial) for rate in (0.1, 0.2, 0.3) for trial in (0, 1)),
    ]
    assert len({cell.stage.folder for cell in cells}) == 8


@pytest.mark.slow
def test_a_small_claim_is_judged_and_judged_again_from_the_records_alone(home, capsys):
    verdicts = reproduce.reproduce("small", None, None, home)
    assert {name: str(verdict.answer) for name, verdict in verdicts.items()} == {
        "smaller": "holds",
        "perfect": "contradicted",
        "built_on": "void",
    }
    assert reproduce.contradicted(verdicts)
    page, told = home / "small" / "README.md", home / "small" / "results.json"
    first = page.read_bytes(), told.read_bytes()
    text = page.read_text()
    for part in (
        "These figures rest on embedded",
        "| theirs | 98.00 (unverified) |",
        "| single to cased |",
        " ± ",
        "| **contradicted** | It makes no mistake. | `single.upos.macro_f1 > 0.99` | 0 of 2 pairs |",
        "`built_on`: Void: its premise 'perfect' is contradicted.",
        "2 seeds show almost nothing",
        "| Gap |",
        "kdbench reproduce small --seeds 2 --source embedded",
    ):
        assert part in text, part
    values = results.read(home / "small").values(claim_file.load(home / "small" / "claim.yaml"))["seeds"]["single"]
    assert list(values["upos"]) == list(values[OWN]) == ["0", "1"]
    assert values[OWN]["0"]["run/steps"] == 3
    assert all(math.isfinite(value) for value in values["upos"]["1"].values() if value is not None)
    assert "7 runs, 7 found, 0 to do" not in capsys.readouterr().out
    reproduce.reproduce("small", None, None, home)
    assert "7 runs, 7 found, 0 to do" in capsys.readouterr().out
    assert (page.read_bytes(), told.read_bytes()) == first
    leaderboard.render(home)
    assert page.read_bytes() == first[0], "the page is that of the leaderboard"


@pytest.mark.slow
def test_a_run_that_fails_is_a_failed_pair_and_not_the_end(home, capsys):
    arms = CLAIM["arms"] | {
        "broken": {"experiment": "experiments/distilbert_ro/teacher_cased.yaml", "set": {"model.optimizer.lr": 1e30}}
    }
    claims = {"learns": {"says": "It learns.", "expect": "broken.cross_entropy < cased.cross_entropy"}}
    changed = {"arms": arms, "claims": claims, "tasks": None, "report": None, "budget": None, "seeds": 1}
    changed["reported"] = {"source": "a table", "rows": {"theirs": {"scores": {"anything": 1}}}}
    write(home, {key: value for key, value in (CLAIM | changed).items() if value is not None})
    verdicts = reproduce.reproduce("small", None, None, home)
    assert str(verdicts["learns"].answer) == "not shown"
    assert verdicts["learns"].failed == ("0",)
    assert "failed: " in capsys.readouterr().out
    assert "Failed, and counted as such: 0" in (home / "small" / "README.md").read_text()


@pytest.mark.slow
def test_a_value_that_a_run_does_not_have_is_noted_while_others_are_to_come(home, capfd):
    claims = {"rises": {"says": "It rises.", "expect": "shape.kl_at_2 < shape.kl_at_9"}}
    changed = {"arms": {"shape": {"experiment": "experiments/sinkd/geometry.yaml"}}, "claims": claims}
    changed |= dict.fromkeys(("tasks", "report", "budget", "stages"))
    changed["reported"] = {"source": "a table", "rows": {"theirs": {"scores": {"anything": 1}}}}
    write(home, {key: value for key, value in (CLAIM | changed).items() if value is not None})
    fault = "claims.rises: no record of 'shape.kl_at_9' has 'kl_at_9'. Did you mean 'kl_at_8'?"
    with pytest.raises(UserError, match=re.escape(fault)):
        reproduce.reproduce("small", None, None, home)
    first, note, second = capfd.readouterr().err.splitlines()
    assert (first[:4], note, second[:4]) == ("1/2 ", f"note: {fault}", "2/2 ")


def test_an_unknown_paper_names_the_nearest(home):
    with pytest.raises(UserError, match="Did you mean 'small'"):
        reproduce.reproduce("smal", None, None, home)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "leaderboards").glob("*/claim.yaml")), ids=lambda path: path.parent.name
)
def test_every_claim_file_of_the_project_is_whole_and_can_be_planned(path, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path))
    file = claim_file.load(path)
    if file.source == "embedded":
        assert list(reproduce.plan(file))


@pytest.mark.slow
def test_two_at_once_fit_nothing_twice_and_agree(home, tmp_path):
    """The second process waits for the lock of a run and then finds its record."""
    command = [sys.executable, "-m", "kdbench.cli", "reproduce", "small", "--leaderboards"]
    shutil.copytree(home, tmp_path / "boards2")
    both = [
        subprocess.Popen([*command, str(place)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for place in (home, tmp_path / "boards2")
    ]
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    attempts = [len(list(folder.glob("attempt-*"))) for folder in (tmp_path / "runs").glob("**/logs")]
    assert attempts == [1] * 7, "each run was begun once"
    first, second = ((place / "small" / "results.json").read_bytes() for place in (home, tmp_path / "boards2"))
    assert first == second


@pytest.mark.slow
def test_a_fresh_start_makes_new_attempts_of_everything(home):
    assert reproduce.reproduce("small", 1, None, home).keys() == CLAIM["claims"].keys()
    first = [cell.stage.folder for cell in reproduce.plan(claim_file.load(home / "small" / "claim.yaml"))]
    reproduce.reproduce("small", 1, None, home, fresh=True)
    again = results.read(home / "small")
    assert all(run.endswith("-2") for *_, run in again.cells)
    assert all(place.exists() for place in first[:1]), "the old runs stay"
    teachers = {record["parents"].get("model.student") for record in again.records.values()} - {None}
    assert all(name.endswith("-2") for name in teachers), "also what the runs are made from"


@pytest.mark.slow
def test_strict_tells_of_a_contradiction_by_its_exit_code(home, tmp_path):
    command = [sys.executable, "-m", "kdbench.cli", "reproduce", "small", "--seeds", "1", "--leaderboards", str(home)]
    first = subprocess.run([*command, "--wandb", "trial"], capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    logged = [Offline(file).run for file in (tmp_path / "runs").rglob("*.wandb")]
    assert {(run.run_group, run.job_type) for run in logged} == {("distilbert_ro", arm) for arm in CLAIM["arms"]}
    assert len(logged) == 4, "two arms and their task"
    again = subprocess.run([*command, "--strict"], capture_output=True, text=True)
    assert again.returncode == 3, "'perfect' is contradicted"
    assert "4 runs, 4 found, 0 to do" in again.stdout
