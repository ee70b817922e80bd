"""Runs with a teacher cache: the weights of a run without it, whatever happens to the store."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdbench import cli
from kdbench.data.registry import load
from kdbench.data.target_file import write_targets
from kdbench.methods.ensemble import EnsembleDistillation
from kdbench.suite import cache, chain, experiment, fit, runs

ROOT = Path(__file__).parent.parent.parent
ROWS, BATCH, LAST = 500, 64, 52  # 8 steps an epoch, one of them short
RUN = [
    *("--config", "experiments/distilbert_ro/markov.yaml"),
    *("--data.train_rows", f"{ROWS}", "--data.batch_size", f"{BATCH}"),
    *("--data.draws", "1"),
    *("--trainer.max_steps", "20", "--stages.markov_cased.trainer.max_steps", "3"),
    *("--stages.markov_uncased.trainer.max_steps", "3"),
]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("KDBENCH_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


def plan(*arguments, of=RUN):
    parsed = cli.parse([*of, *arguments], {"seed"}, set())
    changes = [*parsed.overrides, ("seed_everything", int(parsed.options.get("seed", 0)))]
    return chain.plan(experiment.read(*parsed.configs, overrides=changes), fresh=True)


def run(*arguments):
    """Fit anew; return the weights and what the record says of the cache."""
    stage = plan(*arguments)
    record = fit.fit(stage, quiet=True)
    return torch.load(stage.folder / runs.CHECKPOINT, weights_only=True)["state_dict"], record["cache"]


def difference(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.fixture(scope="module")
def plain(home):
    weights, told = run("--cache.mode", "off")
    assert told == {"mode": "off", "off": "it is switched off"}
    return weights


@pytest.fixture(scope="module")
def filled(plain):
    """The store after one run; each test works on a copy of it."""
    weights, told = run("--cache.mode", "auto")
    assert difference(weights, plain) < 1e-5
    assert told["rows_computed"] == 2 * ROWS, "the first epoch, for each of two teachers"
    assert told["rows_read"] >= 2 * (ROWS + 3 * BATCH + LAST), "all later ones; one batch of the eight is short"
    assert told["teachers_loaded"] == 2
    return runs.targets()


@pytest.fixture
def store(filled, tmp_path, monkeypatch):
    shutil.copytree(filled, tmp_path / "targets")
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "targets"))
    return tmp_path / "targets"


def test_the_next_run_loads_no_teacher_and_ends_with_equal_weights(store, plain):
    weights, told = run()
    assert told["rows_computed"] == told["teachers_loaded"] == 0
    assert difference(weights, plain) < 1e-5


def test_another_seed_shares_what_the_teachers_said(store):
    _, told = run("--seed", "1")
    assert told["rows_computed"] == 0


def test_a_flipped_byte_in_each_file_changes_no_weight(store, plain):
    for block in store.glob("*/*.safetensors"):
        content = bytearray(block.read_bytes())
        content[len(content) // 2] ^= 1
        block.write_bytes(content)
    for card in store.glob("*/card.json"):
        card.write_text("{")
    weights, told = run()
    assert told["rows_computed"] == 2 * ROWS
    assert difference(weights, plain) < 1e-5


def test_a_file_cut_short_is_computed_again(store, plain):
    block = max(store.glob("*/*.safetensors"), key=lambda path: path.stat().st_size)
    block.write_bytes(block.read_bytes()[:5000])
    weights, told = run()
    assert told["rows_computed"] == ROWS
    assert told["teachers_loaded"] == 1
    assert difference(weights, plain) < 1e-5


def test_a_replaced_teacher_is_another_teacher(store):
    stage = plan()
    teacher = stage.parents["model.teachers.cased"].folder / "student" / "model.safetensors"
    before = teacher.read_bytes()
    changed = bytearray(before)
    changed[-1] ^= 0x40  # a sign or an exponent of one weight
    try:
        teacher.write_bytes(changed)
        _, told = run()
    finally:
        teacher.write_bytes(before)
    assert told["rows_computed"] == ROWS, "the cased teacher's rows alone"


def test_other_data_are_other_rows(store):
    _, told = run("--data.max_length", "10")
    assert told["rows_computed"] == 2 * ROWS


@pytest.mark.slow
@pytest.mark.skipif("KDBENCH_DATA" not in os.environ, reason="KDBENCH_DATA names no folder of real data")
def test_another_source_reads_nothing_of_the_first(tmp_path, monkeypatch):
    """One teacher by its weights; its vocabulary, the experiment and the store stay, the sentences are others."""
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "targets"))
    words = [
        "--config",
        "experiments/distilbert_ro/single_cased.yaml",
        "--trainer.max_steps",
        "3",
        "--cache.mode",
        "on",
    ]
    small = [
        "--stages.teacher_cased.trainer.max_steps",
        "2",
        "--stages.teacher_cased.model.student.config.hidden_size",
        "32",
    ]
    parsed = cli.parse([*words, *small], set(), set())
    first = chain.plan(experiment.read(*parsed.configs, overrides=parsed.overrides))
    assert fit.fit(first, quiet=True)["cache"]["rows_computed"] == 3 * 32
    teacher = first.parents["model.teachers.cased"].folder / "student"
    node = f"{{class_path: FromFolder, init_args: {{folder: {teacher}}}}}"
    for source, computed in (("local", 3 * 32), ("embedded", 0)):
        fixed = ["--model.teachers.cased", node, "--model.student", node, "--data.source", source]
        parsed = cli.parse([*words, *fixed], set(), set())
        record = fit.fit(chain.plan(experiment.read(*parsed.configs, overrides=parsed.overrides)), quiet=True)
        assert record["cache"]["rows_computed"] == computed, source


class Shuffling(EnsembleDistillation):
    """A family that changes its batches in the step."""

    def prepare(self, batch):
        return batch | {"inputs": {name: value.flip(0) for name, value in batch["inputs"].items()}}


def test_batches_that_the_step_changes_are_never_looked_up(store):
    _, told = run("--model.class_path", f"{__name__}.Shuffling", "--trainer.max_steps", "2")
    assert "changes its batches" in told["off"]
    assert "rows_read" not in told


def test_without_end_nothing_comes_back(store):
    _, told = run("--data.draws", "null")
    assert "without end" in told["off"]


def test_rows_that_come_once_are_not_kept_unless_asked(store, monkeypatch, tmp_path):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "empty"))
    _, told = run("--trainer.max_steps", "6")
    assert "no row comes twice" in told["off"]
    _, told = run("--trainer.max_steps", "6", "--cache.mode", "on")
    assert told["rows_computed"] in (2 * 6 * BATCH, 2 * (5 * BATCH + LAST))


ONE_TEACHER = [
    *("--model.teachers.uncased", "null", "--model.align", "null"),
    *("--model.objective.soft.teacher", "cased.logits", "--model.objective.soft.combine", "null"),
]


@pytest.mark.parametrize(("form", "near"), [(("--cache.dtype", "float16"), 2e-2), (("--cache.top_k", "20"), 2e-2)])
def test_a_smaller_form_takes_less_room_and_stays_near(store, form, near):
    plain, whole = run(*ONE_TEACHER)
    weights, told = run(*ONE_TEACHER, *form)
    again, read = run(*ONE_TEACHER, *form)
    assert read["rows_computed"] == 0
    assert difference(weights, again) == 0.0, "fresh values pass through the form in which they are kept"
    assert 0 < difference(weights, plain) < near
    assert told["megabytes"] < whole["megabytes"]


def test_top_k_says_where_it_cannot_be(store, caplog):
    run("--cache.top_k", "20", "--trainer.max_steps", "2", "--cache.mode", "on")
    assert caplog.text.count("kept whole") == 2


def test_filled_ahead_of_time(tmp_path, monkeypatch, plain, capsys):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "ahead"))
    cache.show_filled(cache.fill(plan(), quiet=True))
    assert f"{2 * ROWS} rows computed, 0 found" in capsys.readouterr().out
    weights, told = run()
    assert told["rows_computed"] == told["teachers_loaded"] == 0
    assert difference(weights, plain) < 1e-5
    cache.show()
    assert "synthetic/hidden_markov (embedded)" in " ".join(capsys.readouterr().out.split())
    cache.prune(0)
    assert "0.00 MB kept" in capsys.readouterr().out
    assert not list((tmp_path / "ahead").iterdir())


def test_a_teacher_may_be_a_file_of_targets(tmp_path):
    random = torch.Generator().manual_seed(0)
    rows = load("synthetic/hidden_markov", "embedded", "train")
    logits = [torch.randn(len(row["words"]) + 2, 65, generator=random) for row in rows]  # two special tokens, 65 pieces
    write_targets(tmp_path / "soft.safetensors", range(len(rows)), {"logits": logits})
    teacher = [
        *("--model.teachers.cased", f"{{class_path: FromTargets, init_args: {{file: {tmp_path}/soft.safetensors}}}}"),
        *("--model.objective.hidden", "null", "--trainer.max_steps", "3"),
    ]
    stage = plan(*ONE_TEACHER, *teacher)
    record = fit.fit(stage, quiet=True)
    assert record["metrics"]["test/accuracy@student"] >= 0
    assert not [name for name in record["metrics"] if name.endswith("@cased")]
    write_targets(tmp_path / "soft.safetensors", range(len(rows)), {"logits": [-each for each in logits]})
    assert plan(*ONE_TEACHER, *teacher).id != stage.id, "other targets are another run"


def test_what_top_k_leaves_out_is_logged(store):
    stage = plan(*ONE_TEACHER, "--cache.top_k", "20", "--trainer.log_every_n_steps", "10")
    fit.fit(stage, quiet=True)
    (log,) = stage.folder.glob("logs/*/metrics.csv")
    lines = [line for line in csv.DictReader(log.open()) if line["train/soft_tail_mass"]]
    assert len(lines) == 2
    for line in lines:
        assert 0 < float(line["train/soft_tail_mass"]) < 1
        assert float(line["train/soft_tail_bound"]) > 0


@pytest.mark.slow
def test_two_processes_share_one_store(store):
    command = [
        *(sys.executable, "-m", "kdbench.cli", "fit", "--quiet", *RUN, "--data.batch_size", "128", "--fresh"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"),
        *("--model.optimizer.lr", "2e-3"),
    ]
    shutil.rmtree(store)
    for computed in (True, False):
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr
        assert (", 0 computed" not in told.stdout) == computed, told.stdout


def test_what_would_fill_the_store_is_kept_only_when_asked_for(tmp_path, monkeypatch, plain):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "targets"))
    weights, told = run("--cache.limit_gb", "0.001")
    assert told["off"].startswith("their targets would take ")
    assert not list((tmp_path / "targets").glob("*/*.safetensors"))
    assert difference(weights, plain) < 1e-5
    _, told = run("--cache.limit_gb", "0.001", "--cache.mode", "on")
    assert told["rows_computed"] > 0


# ---- what frozen networks answer in a test ----

ANSWERED = [
    *("--config", "experiments/sinkd.yaml", "--stages.teacher.trainer.max_steps", "20"),
    *("--data.train_rows", "64", "--trainer.max_steps", "4"),
]


def answered(*arguments):
    """Fit anew, and return the record."""
    return fit.fit(plan(*arguments, of=ANSWERED), quiet=True)


def scores(record):
    """Return all that the test says but times."""
    return {
        name: value for name, value in record["metrics"].items() if name.startswith("test/") and "seconds" not in name
    }


@pytest.fixture(scope="module")
def unkept(home):
    record = answered("--cache.mode", "off")
    assert "answers_read" not in record["cache"]
    return record


@pytest.fixture(scope="module")
def asked(unkept):
    """The test rows, all of which the teacher answers in the first run that keeps its answers."""
    told = answered()["cache"]
    assert told["answers_read"] == 0
    assert told["answers_computed"] > 0
    return told["answers_computed"]


def test_the_next_run_reads_all_answers_and_says_the_same(unkept, asked):
    record = answered()
    assert (record["cache"]["answers_read"], record["cache"]["answers_computed"]) == (asked, 0)
    assert scores(record) == pytest.approx(scores(unkept), abs=1e-6)


def test_another_seed_reads_them_too(asked):
    told = answered("--seed", "1")["cache"]
    assert (told["answers_read"], told["answers_computed"]) == (asked, 0)


def test_another_teacher_is_asked(asked):
    told = answered("--stages.teacher.trainer.max_steps", "21")["cache"]
    assert (told["answers_read"], told["answers_computed"]) == (0, asked)


def test_a_damaged_store_is_asked_for_nothing(unkept, asked):
    for block in runs.targets().glob("*/*.safetensors"):
        content = bytearray(block.read_bytes())
        content[len(content) // 2] ^= 1
        block.write_bytes(content)
    record = answered()
    assert (record["cache"]["answers_read"], record["cache"]["answers_computed"]) == (0, asked)
    assert scores(record) == pytest.approx(scores(unkept), abs=1e-6)
