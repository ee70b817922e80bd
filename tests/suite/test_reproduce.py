"""A very small table: two arms, one task, two seeds."""

import json
from pathlib import Path

import pytest
import yaml

from kdbench.errors import UserError
from kdbench.suite import reproduce

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
        "cased": {"experiment": "experiments/distilbert_ro/teacher_cased.yaml", "seeded": False},
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
    "overrides": {"teacher_cased": TINY, "single_cased": {"trainer.max_steps": 3}, "upos": {"trainer.max_steps": 2}},
    "reported": {"source": "a table", "rows": {"theirs": {"upos": 98.0}}},
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "runs"))
    (tmp_path / "boards" / "small").mkdir(parents=True)
    (tmp_path / "boards" / "small" / "claim.yaml").write_text(yaml.safe_dump(CLAIM))
    return tmp_path / "boards"


def test_the_plan_shares_what_the_arms_share(home):
    cells = reproduce.plan(CLAIM, range(2), "embedded")
    assert len(cells) == 1 + 2 + 2 * 2
    teachers = {cell.stage.folder for cell in cells if cell.arm == "cased" and cell.task == "pretraining"}
    for cell in cells:
        if cell.arm == "single" and cell.task == "pretraining":
            assert {parent.folder for parent in cell.stage.parents.values()} == teachers
    tuned = {(cell.arm, cell.seed): cell.stage for cell in cells if cell.task == "upos"}
    assert len({stage.folder for stage in tuned.values()}) == 4
    for seed in (0, 1):
        reference = tuned["single", seed].parents["model.references.cased"]
        assert reference.folder == tuned["cased", seed].folder, "compared with the teacher's run of the same seed"


@pytest.mark.slow
def test_a_small_table_is_made_and_made_again_from_the_records_alone(home, capsys):
    reproduce.reproduce("small", None, None, home)
    page, results = home / "small" / "README.md", home / "small" / "results.json"
    first = page.read_bytes(), results.read_bytes()
    text = page.read_text()
    assert "These figures rest on embedded" in text
    assert "| theirs | 98.0 |" in text
    assert "| single to cased |" in text
    assert " ± " in text
    values = json.loads(results.read_text())["arms"]["single"]["upos"]
    assert list(values) == ["0", "1"]
    assert "7 runs, 7 found, 0 to do" not in capsys.readouterr().out
    reproduce.reproduce("small", None, None, home)
    assert "7 runs, 7 found, 0 to do" in capsys.readouterr().out
    assert (page.read_bytes(), results.read_bytes()) == first


def test_an_unknown_paper_names_the_nearest(home):
    with pytest.raises(UserError, match="Did you mean 'small'"):
        reproduce.reproduce("smal", None, None, home)
