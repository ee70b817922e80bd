"""Tables of items: what a claim reads of single rows, through results.json and back."""

from pathlib import Path

import pytest
import yaml

from kdbench.errors import UserError
from kdbench.suite import claim_file, results
from kdbench.suite.chain import Stage
from kdbench.suite.experiment import Request
from kdbench.suite.runs import ITEMS, write_record

ROOT = Path(__file__).parent.parent.parent
CLAIM = {
    "title": "rows",
    "source_of_claim": "nobody",
    "statement": "nothing",
    "recipe": "none",
    "seeds": 1,
    "source": "embedded",
    "arms": {
        name: {"experiment": "experiments/distilbert_ro/teacher_cased.yaml", "seeds": "none"} for name in ("new", "old")
    },
    "claims": {"better": {"says": "x", "expect": "new.correct > old.correct", "pairs": "items:id"}},
    "reported": {"source": "a table", "rows": {"theirs": {"scores": {"anything": 1}}}},
}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "claim.yaml").write_text(yaml.safe_dump(CLAIM))
    cells = []
    for place, name in enumerate(("old", "new")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        facts = {"seconds": 1.0, "steps": 1, "peak_memory_mb": 1, "metrics": {}, "parents": {}, "finished": "now"}
        write_record(folder, facts)
        rows = [f"{row},{float(row % 4 != 0 or place)}" for row in range(120)]
        (folder / ITEMS).write_text("\n".join(["id,correct", *rows]) + "\n")
        stage = Stage(name, {}, name, folder, {})
        cells.append(results.Cell("seeds", name, results.OWN, "0", 0, Request((), {}), stage))
    return claim_file.load(tmp_path / "claim.yaml"), cells


def test_a_claim_over_rows_is_judged_from_the_tables_and_from_results_json_alike(asked, tmp_path):
    file, cells = asked
    found = results.gather(file, cells)
    verdict = found.verdicts(file)["better"]
    assert verdict.answer == "holds"
    assert len(verdict.pairs) == 120
    assert verdict.intervals[0].mean == pytest.approx(0.25)
    assert verdict.intervals[0].method == "bootstrap"
    results.write(tmp_path, found, found.verdicts(file))
    again = results.read(tmp_path)
    assert again.verdicts(file) == found.verdicts(file)


def test_a_column_that_is_not_there_is_named(asked):
    file, cells = asked
    for cell in cells:
        table = cell.stage.folder / ITEMS
        table.write_text(table.read_text().replace("correct", "corect"))
    with pytest.raises(UserError, match=r"no column 'correct'.* Did you mean 'corect'"):
        results.gather(file, cells)
