"""The leaderboards from claim files and records alone: pages, index and HTML, the same bytes every time."""

import json
import random
import re
import subprocess
import sys

import leaderboard_sample as sample
import pytest
import yaml

from kdbench.cli import run
from kdbench.errors import UserError
from kdbench.suite import claim_file, entries, leaderboard, plots, results, wandb_records
from kdbench.suite.tables import Number, Tables


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(sample.ROOT)
    return sample.write(tmp_path / "boards")


def rewritten(home, paper, change):
    file = home / paper / "results.json"
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))


def everything(home):
    return {
        str(path.relative_to(home)): path.read_bytes() for path in sorted(home.rglob("*.*")) if path.suffix != ".yaml"
    }


def test_all_is_written(home):
    written = leaderboard.render(home)
    assert {str(path.relative_to(home)) for path in written} == {
        "README.md",
        "index.html",
        "other/README.md",
        "small/README.md",
        "small/real/README.md",
    }


def test_the_index_counts_and_links(home):
    leaderboard.render(home)
    text = (home / "README.md").read_text()
    counts = "2 holds, 1 not shown, 1 contradicted, 1 void"
    row = f"ensemble, supervised | {counts} | {{}} | 5 | 26 | 0.07 | cpu, 1 thread; cpu, 2 threads |"
    assert f"| [small](small/README.md) | {row.format('embedded')}" in text
    assert f"| &emsp;[real](small/real/README.md) | {row.format('local')}" in text
    assert "| [other](other/README.md) | ensemble, supervised | not run yet | embedded | - |" in text
    assert "10 claims were judged: 4 holds, 2 not shown, 2 contradicted, 2 void" in text
    assert "these figures rest on embedded data" in text


def test_a_page_has_its_one_form(home):
    leaderboard.render(home)
    page = (home / "small" / "README.md").read_text()
    heads = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert heads == [
        "Verdicts",
        "Equations and the code that computes them",
        "Where paper and code differ",
        "Measured here",
        "Loyalty to the teachers",
        "Size, own task, speed",
        "Shown beside, not judged",
        "Reported by the paper",
        "How it was made",
    ]
    for part in (
        "[All papers](../README.md) · part [real](real/README.md)",
        "**These figures rest on embedded data.**",
        "| student | 80.00 ± 1.58 |",
        "| Theirs | 98.00 (unverified) |",
        "| Alone | 90 to 91 |",
        r"`T² KL(p \|\| q)`",
        "kdbench reproduce small --seeds 5 --source embedded",
        "| student | 1.00 | 4.00 | 42.00 ± 1.58 | 22.00 ± 1.58 | 2.20 ± 0.16 |",
    ):
        assert part in page, part
    assert (
        "[All papers](../../README.md) · part of [small](../README.md)" in (home / "small/real/README.md").read_text()
    )
    other = (home / "other" / "README.md").read_text()
    assert "Not run yet." in other
    assert "## Measured here" not in other


def test_what_claims_read_of_own_runs_stands_in_a_table_for_arms_that_have_it(home):
    file = home / "small" / "claim.yaml"
    told = yaml.safe_load(file.read_text())
    values = ("student.val.loss.at(200)", "student.label_loyalty@teacher", "student.accuracy", "student.tags.macro_f1")
    told["report"] = {f"v{place}": {"shows": "x", "value": value} for place, value in enumerate(values)}
    file.write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True))
    (table,) = Tables(claim_file.load(file), results.read(file.parent)).own()
    assert table.head == ("val.loss.at(200)", "label_loyalty@teacher")
    shown = {row.label: [str(cell[0]) for cell in row.cells] for row in table.rows}
    assert shown == {
        "teacher": ["1.50", "-"],
        "student": ["1.50 ± 0.00", "0.902 ± 0.002"],
        "plain": ["1.50 ± 0.00", "0.902 ± 0.002"],
    }
    assert [type(each.cells[0][0].runs[0][1]) for each in table.rows] == [str] * 3
    leaderboard.render(home)
    page = (file.parent / "README.md").read_text()
    assert "| plain | 1.50 ± 0.00 | 0.902 ± 0.002 |" in page
    assert page.count("These figures rest on embedded data.") == 1


def test_a_row_is_a_value_where_there_are_more_values_than_arms(home):
    file = home / "small" / "claim.yaml"
    told = yaml.safe_load(file.read_text())
    told["report"] = {
        f"at_{step}": {"shows": "x", "value": f"plain.val.loss.at({step})"} for step in (100, 200, 250, 300)
    }
    file.write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True))
    (table,) = Tables(claim_file.load(file), results.read(file.parent)).own()
    assert table.head == ("teacher", "student", "plain")
    assert [row.label for row in table.rows] == [f"val.loss.at({step})" for step in (100, 200, 250, 300)]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.0264, 0.0284), "0.0274 ± 0.0014"),
        ((99.5, 100.5), "100.00 ± 0.71"),
        ((13094, 13096), "13,095 ± 1"),
        ((0.0, 0.0), "0.00 ± 0.00"),
        ((-1.5e-9, -2.5e-9), "-2.00e-09 ± 7.07e-10"),
        ((0.5,), "0.500"),
    ],
)
def test_a_number_shows_three_digits_or_more(values, text):
    runs = tuple((str(place), "run", value) for place, value in enumerate(values))
    assert str(Number("x", 1, runs)) == text


def test_a_mean_tells_that_not_every_pair_has_a_value(home):
    file = home / "small" / "claim.yaml"
    told = yaml.safe_load(file.read_text())
    told["report"] = {"fast": {"shows": "x", "value": "student.val.loss.first_below(1.6)"}}
    file.write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True))
    runs = json.loads((file.parent / "results.json").read_text())
    runs["records"]["distilbert_ro/student0"]["curves"]["val/loss@student"]["values"] = [2.0, 1.9, 1.8]
    (file.parent / "results.json").write_text(json.dumps(runs))
    (table,) = Tables(claim_file.load(file), results.read(file.parent)).own()
    shown = {row.label: str(row.cells[0][0]) for row in table.rows}
    assert shown == {"teacher": "200.00", "student": "200.00 ± 0.00 (4 of 5)", "plain": "200.00 ± 0.00"}


def test_an_equation_links_to_its_line(home):
    leaderboard.render(home)
    page = (home / "small" / "real" / "README.md").read_text()
    number = int(re.search(r"\[`kl_divergence`\]\(\.\./\.\./\.\./kdbench/losses/divergences\.py#L(\d+)\)", page)[1])
    lines = (sample.ROOT / "kdbench/losses/divergences.py").read_text().splitlines()
    assert lines[number - 1].startswith("def kl_divergence(")


def test_the_same_records_give_the_same_bytes_in_any_order(home):
    leaderboard.render(home)
    first = everything(home)

    def shuffle(told):
        names = list(told["records"])
        random.Random(0).shuffle(names)
        told["records"] = {name: dict(reversed(told["records"][name].items())) for name in names}

    for paper in ("small", "small/real"):
        rewritten(home, paper, shuffle)
    leaderboard.render(home)
    second = everything(home)
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == {"small/results.json", "small/real/results.json"}


def test_only_the_chosen_pages_are_written_with_their_parts(home):
    written = {str(path.relative_to(home)) for path in leaderboard.render(home, ["small"])}
    assert written == {"README.md", "index.html", "small/README.md", "small/real/README.md"}
    with pytest.raises(UserError, match="Did you mean 'small'"):
        leaderboard.render(home, ["smal"])


def test_a_failed_run_is_a_dash_and_not_a_crash(home):
    def fail(told):
        for cell in told["cells"]:
            if cell[1] == "plain" and cell[2] == "tags":
                cell[5] = None

    rewritten(home, "small", fail)
    leaderboard.render(home)
    page = (home / "small" / "README.md").read_text()
    assert "| plain | - |" in page
    assert "Failed, and counted as such" in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda told: told.pop("cells"), "damaged .'cells'.: 'kdbench reproduce small/real' makes it anew"),
        (lambda told: told["cells"].append(1), "damaged"),
        (lambda told: told["records"].clear(), "damaged .there is no record of distilbert_ro/plain0"),
        (lambda told: told["cells"][0].__setitem__(1, "teecher"), "another claim file .it has the arm 'teecher'"),
        (
            lambda told: [r["metrics"].clear() for r in told["records"].values()],
            "no record of 'student.parameters' has",
        ),
    ],
)
def test_bad_results_are_one_sentence(home, change, said):
    rewritten(home, "small/real", change)
    with pytest.raises(UserError, match=said):
        leaderboard.render(home)


def test_no_claim_file_at_all_is_said(tmp_path):
    with pytest.raises(UserError, match=r"There is no claim\.yaml in"):
        leaderboard.render(tmp_path)


def test_the_command_renders_without_torch(home):
    code = (
        "import sys; from kdbench.cli import run; run(['leaderboard', '--leaderboards', sys.argv[1]]);"
        "print(sorted({'torch', 'lightning', 'transformers', 'wandb'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(home)], cwd=sample.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert f"Written: {home / 'index.html'}" in done.stdout
    with pytest.raises(UserError, match=r"leave 'data\.source' out"):
        run(["leaderboard", "--data.source", "local"])


def test_the_html_page_says_the_numbers_without_a_script(home):
    leaderboard.render(home)
    page = (home / "index.html").read_text()
    assert "A Small Paper &lt;of&gt; Nobody" in page
    assert page.count("<strong>These figures rest on embedded data.</strong>") == 1
    assert "http" not in re.sub(r'"(source_of_claim)".*', "", page), "the page asks for nothing"
    assert re.search(r'data-key="macro_f1@student" data-scale="100">80\.00 <i>± 1\.58</i></a>', page)
    assert page.count('class="interval"') == 2 * (2 * 6 + 1), "a claim of two comparisons has two; in table and section"
    assert '98.00<abbr class="unverified" title="unverified">?</abbr>' in page
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])
    assert data.keys() == {"small", "small/real"}
    assert len(data["small"]["records"]) == len(data["small"]["runs"]) == 26
    place = data["small"]["runs"].index("distilbert_ro/upos/studenttags3")
    own, parents, fact, shape, values = data["small"]["records"][place]
    assert own["steps"] == 300
    assert data["small"]["facts"][fact]["hardware"]["threads"] == 2
    assert data["small"]["runs"][parents["model.student"]] == "distilbert_ro/teacher_cased/teacher0"
    metrics = dict(zip(data["small"]["names"][shape], values, strict=True))
    assert metrics["test/macro_f1@student"] == pytest.approx(0.81)
    assert metrics["val/loss@student"] == 1.25
    assert metrics["val/loss@student, curve"] == "2, 1.5, 1.25"
    pair, margins, runs = data["small"]["evidence"]["claims.better"][3]
    assert (pair, margins) == ("3", [pytest.approx(0.1)])
    assert [data["small"]["runs"][run] for run in runs] == [
        f"distilbert_ro/upos/{arm}tags3" for arm in ("student", "plain")
    ]


def test_a_claim_over_items_names_the_runs_of_the_first_seed(home):
    claim = {"says": "Per item.", "expect": "teacher.right == 1", "pairs": "items:query"}
    told = sample.CLAIM | {"claims": sample.CLAIM["claims"] | {"items": claim}}
    (home / "small" / "claim.yaml").write_text(yaml.safe_dump(told, allow_unicode=True))
    right = {query: {"right@student": 1.0} for query in "abc"}
    rewritten(home, "small", lambda found: found.update(items={"items:query": {"teacher": {"own": right}}}))
    entry = entries.read(home, "small")
    found = Tables(entry.file, entry.results).evidence(entry.file.claims["items"])
    assert [(each.pair, each.values) for each in found] == [(query, (0.0,)) for query in "abc"]
    assert {each.runs for each in found} == {("distilbert_ro/teacher_cased/teacher0",)}
    assert str(entry.verdicts["items"].answer) == "holds"


def test_labels_of_a_plot_never_overlap():
    random.seed(1)
    for _ in range(20):
        points = [
            plots.Point(f"arm_number_{n}", random.choice([1.0, 1.1, 2.0]), 0.02, random.gauss(50, 1), 0.3, n == 0)
            for n in range(8)
        ]
        drawing = plots.scatter(points, "size", "score")
        found = re.findall(r'class="label" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)<', drawing)
        assert len(found) == 8
        boxes = []
        for x, y, anchor, text in found:
            width = len(text) * plots.LETTER
            left = float(x) - {"start": 0, "middle": width / 2, "end": width}[anchor]
            boxes.append((left, left + width, float(y)))
        for place, (left, right, y) in enumerate(boxes):
            assert left >= plots.LEFT
            assert right <= plots.WIDTH
            for other_left, other_right, other_y in boxes[:place]:
                assert left >= other_right or other_left >= right or abs(y - other_y) >= plots.LINE - 0.11


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([54.74, 55.31], [54.6, 54.8, 55.0, 55.2, 55.4]),
        ([1.0], None),
        ([0.0, 1e-9], None),
        ([-3, 7], [-5, -2.5, 0, 2.5, 5, 7.5, 10]),
    ],
)
def test_ticks_are_round_and_reach_over_all_values(values, said):
    found = plots.ticks(values)
    assert found[0] < min(values)
    assert found[-1] > max(values)
    assert said is None or found == said


class Summary(dict):
    """What a W&B run knows of itself."""


class Run:
    """What is asked of a W&B run."""

    def __init__(self, name, summary, state="finished"):
        self.name, self.summary, self.state = name, Summary(summary), state


class Api:
    """What is asked of W&B."""

    def __init__(self, *runs):
        self.all = runs

    def runs(self, path, filters):
        assert filters == {"state": "finished"}
        self.path = path
        return iter(self.all)


def test_records_of_weights_and_biases_are_read_by_name(home):
    early, late = sample.record("distilbert_ro", "student", 0), sample.record("distilbert_ro", "student", 0)
    early["finished"], late["metrics"]["test/loss@student"] = "2025-12-31T00:00:00Z", float("nan")
    api = Api(
        Run("a", {"record": json.dumps(late)}),
        Run("b", {"record": json.dumps(early)}),
        Run("c", {"loss": 1.0}),
        Run("d", {"record": json.dumps(sample.record("distilbert_ro", "plain", 0))}, state="crashed"),
    )
    found = wandb_records.records("somebody/project", api)
    assert api.path == "somebody/project"
    assert found.keys() == {"distilbert_ro/student0"}
    assert found["distilbert_ro/student0"]["metrics"]["test/loss@student"] is None
    assert found["distilbert_ro/student0"]["finished"] == late["finished"]


@pytest.mark.parametrize(
    ("project", "summary", "said"),
    [
        ("project", {}, "takes entity/project here, not 'project'"),
        ("a/b", {"record": "{"}, "The record of the W&B run 'x' is damaged"),
        ("a/b", {"record": "{}"}, "has no 'experiment'"),
    ],
)
def test_what_cannot_be_read_of_weights_and_biases_is_one_sentence(project, summary, said):
    with pytest.raises(UserError, match=re.escape(said)):
        wandb_records.records(project, Api(Run("x", summary)))


def test_runs_that_lie_elsewhere_are_gathered_and_never_written_as_runs(home, tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_RUNS", str(tmp_path / "runs"))
    from kdbench.suite import reproduce

    file = claim_file.load(home / "other" / "claim.yaml")
    logged = {}
    for cell in reproduce.plan(file):
        for stage in cell.stage.walk():
            arm = "teacher" if "teacher" in stage.name else cell.arm
            task = None if cell.task == "own" else cell.task
            logged[results.name_of(stage)] = sample.record(stage.name, arm, int(cell.pair), 1, task) | {"id": stage.id}
    lost = next(name for name in logged if name.startswith("distilbert_ro/upos/"))
    api = Api(*(Run(name, {"record": json.dumps(told)}) for name, told in logged.items() if name != lost))
    said = list(wandb_records.gather(home, ["other"], "somebody/project", api))
    assert said[-1] == f"other: {len(logged) - 1} of its {len(logged)} runs are in somebody/project"
    found = results.read(home / "other")
    assert found.records.keys() == logged.keys() - {lost}
    assert [cell[-1] for cell in found.cells].count(None) == 1
    assert not (tmp_path / "runs").exists()

    api = Api(Run(lost, {"record": json.dumps(logged[lost])}))
    list(wandb_records.gather(home, ["other"], "somebody/project", api))
    assert results.read(home / "other").records.keys() == logged.keys(), "what was gathered before is kept"
    leaderboard.render(home)
    assert "Not run yet" not in (home / "other" / "README.md").read_text()
