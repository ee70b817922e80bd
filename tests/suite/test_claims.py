"""Claim files: every fault in one line, all at once; and verdicts from values that are known."""

import copy
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdbench.errors import UserError
from kdbench.suite import claim_file, claims
from kdbench.suite.statistics import EVERY, Answer, Share

ROOT = Path(__file__).parent.parent.parent
TEACHER, STUDENT = "experiments/distilbert_ro/teacher_cased.yaml", "experiments/distilbert_ro.yaml"
GOOD = {
    "title": "small",
    "source_of_claim": "nobody",
    "statement": "nothing",
    "recipe": "three steps",
    "seeds": 5,
    "source": "embedded",
    "arms": {
        "teacher": {"experiment": TEACHER, "seeds": "none"},
        "student": {"experiment": STUDENT, "set": {"trainer.max_steps": 3}, "teachers": ["teacher"]},
        "plain": {"experiment": STUDENT, "stages": {"teacher_cased": {"trainer.max_steps": 3}}, "fit": True},
    },
    "tasks": {
        "upos": {
            "experiment": "experiments/distilbert_ro/upos.yaml",
            "metric": "macro_f1",
            "shown": "macro-F1",
            "loyalty": ["label_loyalty"],
            "arms": ["teacher", "student"],
        }
    },
    "claims": {
        "better": {"says": "The student is better.", "expect": "student.accuracy > plain.accuracy"},
        "keeps": {
            "says": "It keeps 92%.",
            "expect": "student.upos.macro_f1 >= 0.92 * teacher.upos.macro_f1",
            "judged": "4 of 5",
            "premise": ["better"],
        },
        "exact": {"says": "Nothing differs.", "expect": "teacher.mismatches == 0", "pairs": "items:query"},
    },
    "report": {"gap": {"shows": "The gap", "value": "teacher.accuracy - student.accuracy"}},
    "budget": [{"equal": "steps", "arms": ["student", "plain"]}],
    "reported": {
        "source": "Table 2",
        "rows": {"Theirs": {"arm": "student", "scores": {"upos": 98.0}, "unverified": ["upos"]}},
    },
    "equations": [
        {"says": "Soft targets", "equation": "T^2 KL(p || q)", "code": "kdbench/losses/divergences.py:kl_divergence"}
    ],
    "differences": ["The code is followed."],
}
BEST = {
    "of": [{"model.optimizer.lr": 1e-3}, {"model.optimizer.lr": 1e-2}],
    "by": "val.loss",
    "order": "lowest",
    "keep": 1,
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def changed(place, value, file=GOOD):
    """Return the file with one place (keys joined by /) changed; ``...`` deletes it."""
    file = copy.deepcopy(file)
    *above, last = place.split("/")
    node = file
    for key in above:
        node = node.setdefault(key, {}) if isinstance(node, dict) else node[int(key)]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return file


def load(tmp_path, file):
    path = tmp_path / "claim.yaml"
    path.write_text(yaml.safe_dump(file) if not isinstance(file, str) else file, encoding="utf-8")
    return claim_file.load(path)


def test_a_good_file_is_read_whole(tmp_path):
    file = load(tmp_path, GOOD)
    assert list(file.arms) == ["plain", "student", "teacher"]
    assert file.arms["student"].teachers == ("teacher",)
    assert (file.arms["teacher"].seeds, file.arms["plain"].seeds, file.arms["plain"].fit) == ("none", "own", True)
    assert file.tasks["upos"].arms == ("teacher", "student")
    assert file.level == 0.95
    assert file.claims["better"].judged is None
    assert file.claims["keeps"].judged == Share(4, 5)
    assert file.claims["exact"].judged == EVERY, "what is exact is judged on every pair"
    assert file.claims["exact"].pairs == "items:query"
    assert file.budget == (claims.Budget("steps", ("student", "plain")),)
    assert file.reported.rows["Theirs"] == claims.Row({"upos": 98.0}, "student", ("upos",))
    soft = claims.Equation("Soft targets", "T^2 KL(p || q)", "kdbench/losses/divergences.py:kl_divergence")
    assert file.equations == (soft,)
    assert file.differences == ("The code is followed.",)
    assert file.warnings == ()


def test_an_experiment_is_found_beside_the_leaderboards(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "here.yaml").write_text("model: {}\n")
    home = tmp_path / "leaderboards" / "paper"
    home.mkdir(parents=True)
    arms = {"a": {"experiment": "experiments/here.yaml", "stages": {"here": {"trainer.max_steps": 1}}}}
    kept = {key: GOOD[key] for key in ("title", "source_of_claim", "statement", "recipe", "seeds", "source")}
    table = {"source": "Table 1", "rows": {"theirs": {"scores": {"anything": "12 ± 3"}}}}
    said = {"c": {"says": "It is.", "expect": "a.x > 0"}}
    (home / "claim.yaml").write_text(yaml.safe_dump(kept | {"arms": arms, "claims": said, "reported": table}))
    monkeypatch.chdir(home)
    assert claim_file.load(home / "claim.yaml").arms["a"].experiment == "experiments/here.yaml"
    assert claim_file.load("claim.yaml").reported.rows["theirs"].scores == {"anything": "12 ± 3"}


FAULTS = [
    ("titel", "small", "the file: there is no key 'titel'. Did you mean 'title'?"),
    ("title", ..., "the file: 'title' is missing."),
    ("title", " ", "the file: 'title' must be a text, not ' '."),
    ("seeds", 0, "the file: 'seeds' must be a whole number above 0, not 0."),
    ("seeds", True, "the file: 'seeds' must be a whole number above 0, not True."),
    ("level", 95, "the file: 'level' must be a number between 0 and 1, not 95."),
    ("source", "lokal", "source: there is no 'lokal'. Did you mean 'local'? Choose embedded, local, hub, run."),
    ("reported", ..., "the file: 'reported' is missing."),
    ("reported/source", ..., "reported: 'source' is missing."),
    ("reported/rows/Theirs/arm", "studnt", "reported.rows.Theirs.arm: there is no 'studnt'. Did you mean 'student'?"),
    (
        "reported/rows/Theirs/scores",
        {"xpos": 1},
        "reported.rows.Theirs.unverified: there is no 'upos'. Did you mean 'xpos'?",
    ),
    ("reported/rows/Theirs/unverified", ["ner"], "reported.rows.Theirs.unverified: there is no 'ner'."),
    ("equations", [], "the file: 'equations' must be a list of tables, not []."),
    ("equations/0/equation", ..., "equation 1: 'equation' is missing."),
    ("equations/0/kode", "x", "equation 1: there is no key 'kode'. Did you mean 'code'?"),
    (
        "equations/0/code",
        "kdbench.losses.hints",
        "equation 1: 'kdbench.losses.hints' is not 'kdbench/<room>/<file>.py:<function or class>'.",
    ),
    (
        "equations/0/code",
        "kdbench/losses/hint.py:cosine_distance",
        "equation 1: There is no 'kdbench/losses/hint.py'. Did you mean 'kdbench/losses/hints.py'?",
    ),
    (
        "equations/0/code",
        "kdbench/losses/divergences.py:kl_divergenc",
        "equation 1: 'kdbench/losses/divergences.py' has no 'kl_divergenc'. Did you mean 'kl_divergence'?",
    ),
    (
        "differences",
        "The code is followed.",
        "the file: 'differences' must be a list of texts, not 'The code is followed.'.",
    ),
    ("differences", [" "], "the file: 'differences' must be a list of texts, not [' ']."),
    ("claims", ..., "the file: 'claims' is missing."),
    ("claims/better/expect", ..., "claims.better: 'expect' is missing."),
    ("claims/better/says", 3, "claims.better: 'says' must be a text, not 3."),
    ("claims/better/expected", "x", "claims.better: there is no key 'expected'. Did you mean 'expect'?"),
    (
        "claims/better/expect",
        "studnt.x > 1",
        "claims.better: 'studnt.x': there is no arm 'studnt'. Did you mean 'student'?",
    ),
    (
        "claims/better/expect",
        "student.uposs.x > 1",
        "'student.uposs.x': there is no task 'uposs'. Did you mean 'upos'?",
    ),
    ("claims/better/expect", "student.upos > 1", "'upos' is a task: write which metric of it, student.upos.<metric>."),
    ("claims/better/expect", "plain.upos.x > 1", "the task 'upos' does not list the arm 'plain'."),
    ("claims/better/expect", "student.x", "claims.better: 'student.x' compares nothing"),
    (
        "claims/better/judged",
        "3 of 7",
        "'judged' must be mean, every, or k of n with k more than half of n, not '3 of 7'.",
    ),
    ("claims/better/judged", "6 of 5", "not '6 of 5'."),
    ("claims/better/judged", "median", "not 'median'."),
    ("claims/exact/judged", "mean", "claims.exact: '==' is exact and no matter of means: judge it on 'every' pair."),
    ("claims/better/premise", ["keep"], "claims.better.premise: there is no 'keep'. Did you mean 'keeps'?"),
    ("claims/better/premise", ["keeps"], "claims.better: its premises lead back to it."),
    ("claims/better/premise", ["better"], "claims.better: its premises lead back to it."),
    ("claims/better/pairs", "seed", "claims.better.pairs: there is no 'seed'. Did you mean 'seeds'?"),
    ("claims/better/pairs", "items:id", "pairs of items:id need arms of one run: give 'student' seeds: none."),
    ("report/gap/value", "teacher.x > 1", "report.gap: 'teacher.x > 1' compares"),
    ("report/gap/value", "teachr.x", "report.gap: 'teachr.x': there is no arm 'teachr'. Did you mean 'teacher'?"),
    ("report/gap/shows", ..., "report.gap: 'shows' is missing."),
    ("arms", {}, "the file: 'arms' must be a table of one name or more, not {}."),
    ("arms", ..., "the file: 'arms' is missing."),
    ("arms/teacher", [1], "arms.teacher must be a table of one name or more, not [1]."),
    ("arms/teacher/experiment", ..., "arms.teacher: 'experiment' is missing."),
    (
        "arms/teacher/experiment",
        f"{STUDENT}x",
        f"arms.teacher: There is no config file '{STUDENT}x'. Did you mean '{STUDENT}'?",
    ),
    (
        "arms/teacher/set",
        {"model.optimizer": {"class_path": "AdmW"}},
        "arms.teacher: There is no class 'AdmW'. Did you mean 'AdamW'?",
    ),
    ("arms/teacher/seeds", "one", "arms.teacher.seeds: there is no 'one'."),
    ("arms/teacher/fit", "no", "arms.teacher: 'fit' must be true or false, not 'no'."),
    ("arms/teacher/source", "hubb", "arms.teacher.source: there is no 'hubb'. Did you mean 'hub'?"),
    ("arms/student/teachers", ["teachr"], "arms.student.teachers: there is no 'teachr'. Did you mean 'teacher'?"),
    ("arms/student/teachers", "teacher", "arms.student: 'teachers' must be a list of names, not 'teacher'."),
    (
        "arms/plain/stages",
        {"teacher_case": {"a": 1}},
        "arms.plain.stages: there is no 'teacher_case'. Did you mean 'teacher_cased'?",
    ),
    (
        "arms/plain/stages/teacher_cased",
        3,
        "arms.plain.stages: 'teacher_cased' must be a table of one name or more, not 3.",
    ),
    ("arms/two-words", {"experiment": TEACHER}, "arms.two-words: a name is letters, digits and _"),
    (
        "arms/val",
        {"experiment": TEACHER},
        "arms.val: a name is letters, digits and _, and none of own, val, train, test, run.",
    ),
    ("arms/plain/best", BEST | {"keep": 3}, "arms.plain.best: it keeps 3 of 2 trials."),
    ("arms/plain/best", BEST | {"order": "least"}, "arms.plain.best.order: there is no 'least'."),
    (
        "arms/plain/best",
        BEST | {"by": "accuracy"},
        "'by' must be one validation metric such as val.loss, never one of the test.",
    ),
    ("arms/plain/best", BEST | {"by": "val.loss + val.x"}, "'by' must be one validation metric"),
    ("arms/plain/best", BEST | {"by": "val.loss +"}, "arms.plain.best: 'trial.val.loss +' cannot be read"),
    ("arms/plain/best", {"of": [{"a": 1}], "by": "val.loss", "order": "lowest"}, "arms.plain.best: 'keep' is missing."),
    ("arms/plain/best", BEST | {"of": []}, "arms.plain.best: 'of' must be a list of tables, not []."),
    ("tasks/upos/metric", ..., "tasks.upos: 'metric' is missing."),
    ("tasks/upos/experiment", "x.yaml", "tasks.upos: There is no config file 'x.yaml'."),
    ("tasks/upos/arms", ["techer"], "tasks.upos.arms: there is no 'techer'. Did you mean 'teacher'?"),
    ("tasks/own", GOOD["tasks"]["upos"], "tasks.own: a name is letters, digits and _, and none of own"),
    ("stages", {"upso": {"a": 1}}, "stages: there is no 'upso'. Did you mean 'upos'?"),
    ("over", {"mixtures": {"a": 1}}, "over.mixtures must be one key with its list of values, not {'a': 1}."),
    ("over", {"mixtures": {"a": [1], "b": [2]}}, "over.mixtures must be one key"),
    (
        "budget/0/equal",
        "step",
        "budget 1.equal: there is no 'step'. Did you mean 'steps'? Choose steps, seconds, examples.",
    ),
    ("budget/0/arms", ["x"], "budget 1.arms: there is no 'x'. Choose"),
    ("budget/0/within", -1, "budget 1: 'within' must be a number, 0 or more, not -1."),
]


@pytest.mark.parametrize(("place", "value", "fault"), FAULTS, ids=[fault[:60] for _, _, fault in FAULTS])
def test_each_fault_is_one_line_that_mends_it(tmp_path, place, value, fault):
    with pytest.raises(UserError) as told:
        load(tmp_path, changed(place, value))
    lines = str(told.value).splitlines()
    assert all(line.startswith(f"{tmp_path / 'claim.yaml'}: ") for line in lines)
    assert any(fault in line for line in lines), lines
    assert all(line.endswith((".", "?")) and ".." not in line.replace(str(tmp_path), "") for line in lines)


def test_all_faults_come_at_once(tmp_path):
    file = changed("titel", "x", changed("seeds", -1, changed("arms/teacher/experiment", "x.yaml")))
    file = changed("claims/better/expect", "studnt.x > 1", changed("claims/exact/expect", "1 <", file))
    with pytest.raises(UserError) as told:
        load(tmp_path, file)
    assert len(str(told.value).splitlines()) == 5


def test_arms_that_are_tuned_need_equal_numbers_of_trials(tmp_path):
    more = BEST | {"of": [*BEST["of"], {"model.optimizer.lr": 1e-1}]}
    with pytest.raises(UserError, match="same number of trials, and have 'plain' 3, 'student' 2"):
        load(tmp_path, changed("arms/plain/best", more, changed("arms/student/best", BEST)))
    file = load(tmp_path, changed("arms/plain/best", BEST, changed("arms/student/best", BEST)))
    assert file.warnings == ()


@pytest.mark.parametrize("text", ["", "- 1", "3", "a: [", "title"])
def test_a_file_that_is_no_table_is_one_line(tmp_path, text):
    with pytest.raises(UserError):
        load(tmp_path, text)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([TEACHER, "own"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=2),
    max_leaves=5,
)
places = st.sampled_from(
    [place for place, _, _ in FAULTS if place.split("/")[0] in GOOD and "best" not in place] + list(GOOD)
)


@given(st.lists(st.tuples(places, plain), min_size=1, max_size=3))
def test_whatever_stands_in_a_file_it_is_read_or_told(tmp_path_factory, changes):
    file = GOOD
    for place, value in changes:
        try:
            file = changed(place, value, file)
        except (TypeError, ValueError, KeyError, IndexError):  # the place is gone
            return
    try:
        load(tmp_path_factory.mktemp("any"), file)
    except UserError as error:
        assert str(error)


def test_what_weakens_a_file_is_told_and_permitted(tmp_path):
    assert load(tmp_path, changed("seeds", 3)).warnings == (
        "3 seeds show almost nothing: 5 or more for what is judged.",
    )
    (warning,) = load(tmp_path, changed("arms/student/best", BEST)).warnings
    assert warning == "'better' compares the tuned 'student' with 'plain', which had one trial."


def values(student, plain, teacher=0.9, upos=(0.8, 0.8, 0.8, 0.8, 0.8)):
    """Return values over seeds, and of one run over three queries."""
    runs = {
        "student": {
            "own": {str(seed): {"accuracy@student": each} for seed, each in enumerate(student)},
            "upos": {str(seed): {"macro_f1@student": each} for seed, each in enumerate(upos)},
        },
        "plain": {"own": {str(seed): {"accuracy@student": each} for seed, each in enumerate(plain)}},
        "teacher": {
            "own": {"0": {"accuracy@student": teacher}},
            "upos": {str(seed): {"macro_f1@student": 0.85} for seed in range(5)},
        },
    }
    return {"seeds": runs, "items:query": {"teacher": {"own": {f"q{place}": {"mismatches": 0} for place in range(3)}}}}


BETTER, WORSE = (0.8, 0.81, 0.79, 0.8, 0.82), (0.7, 0.72, 0.71, 0.7, 0.69)
EQUAL_STEPS = {arm: {"steps": [300] * 5} for arm in ("student", "plain", "teacher")}


def answers(verdicts):
    return {name: str(verdict.answer) for name, verdict in verdicts.items()}


def test_the_verdicts_come_in_the_order_of_the_file(tmp_path):
    file = load(tmp_path, yaml.safe_dump(GOOD, sort_keys=False))
    verdicts = claims.judge(file, values(BETTER, WORSE), EQUAL_STEPS)
    assert answers(verdicts) == {"better": "holds", "keeps": "holds", "exact": "holds"}
    assert verdicts["keeps"].evidence.startswith("5 of 5 pairs")
    assert verdicts["exact"].pairs == ("q0", "q1", "q2")
    assert verdicts["better"].intervals[0].mean == pytest.approx(0.1)


def test_a_premise_that_does_not_hold_makes_void(tmp_path):
    file = load(tmp_path, GOOD)
    verdicts = claims.judge(file, values(WORSE, BETTER), EQUAL_STEPS)
    assert answers(verdicts) == {"better": "contradicted", "exact": "holds", "keeps": "void"}
    assert verdicts["keeps"].notes[0] == "Void: its premise 'better' is contradicted."
    assert verdicts["keeps"].satisfied == 5, "what was found is shown all the same"
    verdicts = claims.judge(file, values(BETTER, (0.8, 0.7, 0.85, 0.75, 0.83)), EQUAL_STEPS)
    assert answers(verdicts)["better"] == "not shown"
    assert answers(verdicts)["keeps"] == "void"


def test_void_passes_on(tmp_path):
    third = {"says": "On top.", "expect": "student.accuracy > 0", "premise": ["keeps"]}
    file = load(tmp_path, changed("claims/aaa", third))
    assert claims.judge(file, values(WORSE, BETTER), EQUAL_STEPS)["aaa"].answer is Answer.VOID


@pytest.mark.parametrize(
    ("budgets", "within", "fault"),
    [
        (
            {"student": [300, 300], "plain": [400, 400]},
            0,
            "the steps over the chain are not equal: student 300, plain 400",
        ),
        ({"student": [300, 301], "plain": [300, 300]}, 0, "not equal: student 300 to 301, plain 300"),
        ({"student": [300]}, 0, "the records do not say the steps of 'plain'"),
        ({"student": [300], "plain": [315]}, 0.05, None),
        ({"student": [300], "plain": [316]}, 0.05, "not equal"),
    ],
)
def test_budgets_must_be_equal(tmp_path, budgets, within, fault):
    file = load(tmp_path, changed("budget/0/within", within))
    verdict = claims.judge(file, values(BETTER, WORSE), {arm: {"steps": each} for arm, each in budgets.items()})[
        "better"
    ]
    assert (verdict.answer is Answer.VOID) is bool(fault)
    if fault:
        assert fault in verdict.notes[0]


def test_a_budget_is_no_matter_of_claims_about_one_of_its_arms(tmp_path):
    file = load(tmp_path, changed("claims/better/expect", "student.accuracy > 0.5"))
    assert claims.judge(file, values(BETTER, WORSE), {})["better"].answer is Answer.HOLDS


def test_one_run_stands_beside_every_pair(tmp_path):
    file = load(tmp_path, changed("claims/better/expect", "teacher.accuracy > student.accuracy"))
    verdict = claims.judge(file, values(BETTER, WORSE), EQUAL_STEPS)["better"]
    assert (verdict.answer, len(verdict.pairs)) == (Answer.HOLDS, 5)


def test_a_claim_about_one_run_is_shown_by_every_pair_and_never_by_a_mean(tmp_path):
    for judged, answer in (("every", Answer.HOLDS), ("mean", Answer.NOT_SHOWN)):
        file = changed("claims/better", {"says": "x", "expect": "teacher.accuracy > 0.5", "judged": judged})
        assert claims.judge(load(tmp_path, file), values(BETTER, WORSE), EQUAL_STEPS)["better"].answer is answer


@pytest.mark.parametrize("gone", [{}, {"accuracy@student": None}, {"accuracy@student": math.nan}, {"other": 1.0}])
def test_a_failed_pair_is_never_dropped(tmp_path, gone):
    found = values(BETTER, WORSE)
    found["seeds"]["plain"]["own"]["3"] = gone
    verdict = claims.judge(load(tmp_path, GOOD), found, EQUAL_STEPS)["better"]
    assert (verdict.answer, verdict.failed) == (Answer.NOT_SHOWN, ("3",))
    del found["seeds"]["plain"]["own"]["3"]
    assert claims.judge(load(tmp_path, GOOD), found, EQUAL_STEPS)["better"].failed == ("3",)


def test_pairs_stand_in_the_order_of_their_numbers(tmp_path):
    many = [0.8 + 0.001 * seed for seed in range(12)]
    verdict = claims.judge(load(tmp_path, GOOD), values(many, many), EQUAL_STEPS)["better"]
    assert verdict.pairs == tuple(map(str, range(12)))


def test_few_pairs_are_told(tmp_path):
    verdicts = claims.judge(load(tmp_path, GOOD), values(BETTER[:3], WORSE[:3]), EQUAL_STEPS)
    assert verdicts["better"].answer is Answer.HOLDS, "a gap that is large beside its spread"
    assert "3 pairs show almost nothing: 5 or more are asked for." in verdicts["better"].notes
    nothing = claims.judge(load(tmp_path, GOOD), {}, {})
    assert set(answers(nothing).values()) == {"not shown", "void"}
    assert nothing["better"].notes == ("There is no run yet.",)


def test_a_value_that_no_record_holds_is_told_with_the_nearest(tmp_path):
    file = changed("claims/better/expect", "student.acuracy > plain.accuracy@teacher")
    with pytest.raises(UserError) as told:
        claims.judge(load(tmp_path, changed("report/gap/value", "plain.val.loss", file)), values(BETTER, WORSE), {})
    assert str(told.value).splitlines() == [
        "claims.better: no record of 'student.acuracy' has 'acuracy'. Did you mean 'accuracy'?",
        "claims.better: no record of 'plain.accuracy@teacher' has 'accuracy@teacher'. Did you mean 'accuracy'?",
        "report.gap: no record of 'plain.val.loss' has 'val/loss'.",
    ]


def test_curves_are_read_in_every_pair(tmp_path):
    file = changed("claims/better/expect", "student.accuracy.area > plain.accuracy.best")
    found = values(BETTER, WORSE)
    for seed in range(5):
        found["seeds"]["student"]["own"][str(seed)] = {"accuracy@student": {"values": [0, 1], "steps": [0, 2 + seed]}}
        found["seeds"]["plain"]["own"][str(seed)] = {"accuracy@student": {"values": [0.4, 0.1], "best": 0}}
    verdict = claims.judge(load(tmp_path, file), found, EQUAL_STEPS)["better"]
    assert verdict.answer is Answer.HOLDS
    assert verdict.intervals[0].mean == pytest.approx(0.1)


def test_the_best_trials_are_chosen_by_validation_and_stand_by_their_mean(tmp_path):
    arm = load(tmp_path, changed("arms/student/best", BEST | {"keep": 2})).arms["student"]
    trials = [{"val/loss": loss} for loss in (0.3, math.nan, 0.1, 0.2)] + [{}]
    assert arm.best.chosen(trials) == [2, 3]
    highest = load(tmp_path, changed("arms/student/best", BEST | {"order": "highest"})).arms["student"].best
    assert highest.chosen(trials) == [0]
    curve = {"val/loss": {"values": [0.05, 0.5], "best": 0}}
    early = load(tmp_path, changed("arms/student/best", BEST | {"by": "val.loss.best"})).arms["student"].best
    assert early.chosen([{"val/loss": {"values": [0.1, 0.1], "best": 0}}, curve]) == [1]

    file = load(tmp_path, changed("arms/student/best", BEST | {"keep": 2}))
    found = values(BETTER, WORSE)
    for seed in range(5):
        found["seeds"]["student"]["own"][str(seed)] = [{"accuracy@student": 0.7}, {"accuracy@student": 0.9}]
    verdict = claims.judge(file, found, EQUAL_STEPS)["better"]
    assert verdict.intervals[0].mean == pytest.approx(0.8 - sum(WORSE) / 5)
    found["seeds"]["student"]["own"]["2"] = []
    assert claims.judge(file, found, EQUAL_STEPS)["better"].failed == ("2",)


def test_pairs_may_be_mixtures(tmp_path):
    file = changed("over", {"mixtures": {"data.seed": [0, 1, 2, 3, 4]}}, changed("arms/plain/seeds", "none"))
    said = {"says": "Ten times nearer.", "expect": "log10(teacher.mse) - log10(plain.mse) < -1", "pairs": "mixtures"}
    file = load(tmp_path, changed("claims/better", said, file))
    runs = {
        arm: {"own": {str(place): {"mse@student": error * (1 + place)} for place in range(5)}}
        for arm, error in (("teacher", 1e-5), ("plain", 1e-2))
    }
    verdict = claims.judge(file, values(BETTER, WORSE) | {"mixtures": runs}, EQUAL_STEPS)["better"]
    assert (verdict.answer, len(verdict.pairs)) == (Answer.HOLDS, 5)
    assert verdict.intervals[0].mean == pytest.approx(2)


def test_a_value_that_is_shown_has_an_interval_and_names_what_failed(tmp_path):
    file = load(tmp_path, GOOD)
    found = values((*BETTER[:4], None), WORSE)
    interval, failed = claims.measure(file, file.report["gap"], found)
    assert interval.mean == pytest.approx(0.1)
    assert (interval.pairs, failed) == (4, ("4",))
    assert claims.measure(file, file.report["gap"], {}) == (None, ())


def test_a_grid_stands_for_an_arm_for_each_combination(tmp_path):
    grid = {
        "experiment": STUDENT,
        "set": {"trainer.max_steps": 3},
        "grid": {
            "a": {"half": {"set": {"model.objective.soft.weight": 0.5}}, "none": None},
            "b": {"long": {}, "short": {"stages": {"teacher_cased": {"trainer.max_steps": 2}}}},
        },
    }
    file = changed("arms/pipe", grid)
    file = changed("claims/grid", {"says": "So.", "expect": "mean(pipe_half_*.x) > mean(pipe_none_*.x)"}, file)
    file = load(tmp_path, changed("budget", [{"equal": "steps", "arms": ["pipe_*"]}], file))
    names = ["pipe_half_long", "pipe_half_short", "pipe_none_long", "pipe_none_short"]
    assert [name for name in file.arms if name.startswith("pipe")] == names
    arm = file.arms["pipe_half_short"]
    assert arm.set == {"trainer.max_steps": 3, "model.objective.soft.weight": 0.5}
    assert arm.stages == {"teacher_cased": {"trainer.max_steps": 2}}
    assert arm.says == "half, short"
    assert arm.levels == {"a": "half", "b": "short"}
    assert file.budget[0].arms == tuple(names)
    with pytest.raises(UserError, match=r"arms\.pipe\.grid: it holds factors"):
        load(tmp_path, changed("arms/pipe/grid", {"a": 3}, changed("arms/pipe", grid)))
