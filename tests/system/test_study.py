"""Studies: from an experiment file to a record, pictures and a claim's page."""

import itertools
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from kdbench import cli
from kdbench.errors import UserError
from kdbench.studies.study import Picture
from kdbench.suite import plots

ROOT = Path(__file__).parent.parent.parent
GEOMETRY = "experiments/sinkd/geometry.yaml"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "runs"))


def test_a_study_leaves_numbers_and_pictures(tmp_path, capsys):
    cli.run(["fit", "--config", GEOMETRY])
    (record,) = (tmp_path / "runs").rglob("record.json")
    told = json.loads(record.read_text())
    assert told["metrics"]["test/kl_at_8"] > told["metrics"]["test/kl_at_2"] > 0
    assert told["data"] == {"dataset": None, "source": None}
    assert ElementTree.parse(record.parent / "gradients.svg").getroot().tag.endswith("svg")
    assert "sinkhorn_gradient_at_8" in capsys.readouterr().out
    cli.run(["fit", "--config", GEOMETRY])
    assert "finished before" in capsys.readouterr().out
    cli.run(["fit", "--config", GEOMETRY, "--study.separations", "[1.0]"])
    assert len(list((tmp_path / "runs").rglob("record.json"))) == 2


def test_a_study_says_what_is_wrong(capsys):
    with pytest.raises(UserError, match=r"no argument 'separation'\. Did you mean 'separations'"):
        cli.run(["fit", "--config", GEOMETRY, "--study.separation", "3"])
    with pytest.raises(UserError, match="separations"):
        cli.run(["fit", "--config", GEOMETRY, "--study.separations", "wide"])


@pytest.mark.parametrize("verb", ["test", "validate", "predict", "cache"])
def test_a_study_has_nothing_to_test(verb):
    with pytest.raises(UserError, match="is a study"):
        cli.run([verb, "--config", GEOMETRY])


def test_a_claim_rests_on_a_study_and_shows_its_pictures(tmp_path):
    arms = {"geometry": {"experiment": GEOMETRY, "seeds": "none"}}
    claim = {
        **dict.fromkeys(("title", "source_of_claim", "statement", "recipe"), "text"),
        "seeds": 2,
        "source": "embedded",
        "arms": arms,
        "claims": {"grows": {"says": "It grows.", "expect": "geometry.kl_at_4 < geometry.kl_at_8", "judged": "every"}},
        "reported": {"source": "nowhere", "rows": {"theirs": {"scores": {"x": 1}}}},
    }
    folder = tmp_path / "leaderboards" / "small"
    folder.mkdir(parents=True)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (folder / "claim.yaml").write_text(yaml.safe_dump(claim, sort_keys=False))
    cli.run(["reproduce", "small", "--leaderboards", str(folder.parent)])
    page = (folder / "README.md").read_text()
    assert "**holds** | It grows." in page
    assert "(geometry_gradients.svg)" in page
    drawn = (folder / "geometry_gradients.svg").read_bytes()
    (folder / "geometry_gradients.svg").unlink()
    cli.run(["leaderboard", "--leaderboards", str(folder.parent)])
    assert (folder / "geometry_gradients.svg").read_bytes() == drawn, "the pictures come from the records"
    assert "Gradients of disjoint distributions" in (folder.parent / "index.html").read_text()


def test_names_of_lines_do_not_meet():
    lines = {name: [0.0, 1.0 + place / 1000] for place, name in enumerate("abcdefgh")}
    drawn = ElementTree.fromstring(plots.lines(Picture("many", "x", "y", [0, 1], lines)))
    places = sorted(float(each.get("y")) for each in drawn.iter() if each.get("class", "").startswith("name"))
    assert len(places) == 8
    assert all(right - left >= plots.LINE - 0.11 for left, right in itertools.pairwise(places))
