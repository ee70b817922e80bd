"""Studies: from an experiment file to a record, pictures and a claim's page."""

import itertools
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from kdbench import cli
from kdbench.data.cards import CARDS
from kdbench.errors import UserError
from kdbench.metrics.pictures import HeatMap, Picture
from kdbench.suite import chain, experiment, plots

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


def test_the_content_of_its_data_sets_is_part_of_the_id_of_a_study(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path / "data"))
    cards = [CARDS["en/sst2"], CARDS["ro/rosts"]]
    files = [tmp_path / "data" / card.local / name for card in cards for name in card.files]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("rows")
    categories = {"english": "en/sst2", "romanian": "ro/rosts:text"}
    asked = tmp_path / "study.yaml"
    told = {"class_path": "MixtureInference", "init_args": {"categories": categories, "source": "local"}}
    asked.write_text(yaml.safe_dump({"study": told}))
    seen = [chain.plan(experiment.read(asked)).id]
    for file in files:
        file.write_text("other rows")
        seen.append(chain.plan(experiment.read(asked)).id)
    assert len(set(seen)) == 1 + len(files)
    for file in files:
        file.write_text("rows")
    assert chain.plan(experiment.read(asked)).id == seen[0]
    from_hub = chain.plan(experiment.read(asked, overrides=[("study.source", "hub")]))
    assert from_hub.hub() == [card.hub.id for card in cards]


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


def test_a_heat_map_has_a_cell_for_each_value_as_dark_as_it_is_high():
    shown = HeatMap("likeness", "theirs", "ours & more", ["a", "b"], ["c<", "d"], [[0.0, 0.25], [1.0, 2.0]])
    drawn = list(ElementTree.fromstring(plots.picture(shown)).iter())
    cells = [each for each in drawn if each.get("class") == "cell"]
    assert [float(each.get("fill-opacity")) for each in cells] == pytest.approx([0.0, 0.225, 0.9, 0.9])
    columns, rows = ([float(each.get(key)) for each in cells] for key in ("x", "y"))
    assert columns[0] == columns[2] < columns[1] == columns[3]
    assert rows[0] == rows[1] > rows[2] == rows[3], "the first row is the lowest"
    texts = [each.text for each in drawn if each.tag.endswith("text")]
    assert texts == ["c<", "0.00", "0.25", "d", "1.00", "2.00", "a", "b", "theirs", "ours & more"]


def test_a_test_leaves_pictures_too(tmp_path):
    network = {"class_path": "FromConfig", "init_args": {"architecture": "ConvNet", "config": {"widths": [4, 8]}}}
    taps = ["stages.1", "stages.2"]
    model = {"student": network, "others": {"cnn": network}, "layers": {"student": taps, "cnn": taps}}
    experiment = {
        "fit": False,
        "model": {"class_path": "LayerSimilarity", "init_args": model},
        "data": {"class_path": "ImageClassification", "init_args": {"dataset": "vision/digits"}},
    }
    file = tmp_path / "similarity.yaml"
    file.write_text(yaml.safe_dump(experiment))
    cli.run(["fit", "--quiet", "--config", str(file)])
    (record,) = (tmp_path / "runs").rglob("record.json")
    told = json.loads(record.read_text())
    assert told["pictures"]["cka_cnn"]["cells"][1][0] == pytest.approx(told["metrics"]["test/cka_2_1@cnn"], abs=1e-4)
    assert ElementTree.parse(record.parent / "cka_cnn.svg").getroot().tag.endswith("svg")
