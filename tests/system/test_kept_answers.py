"""What frozen networks answer in a test is kept: the next run reads it, and its scores are those of a run without."""

from pathlib import Path

import pytest

from kdbench import cli
from kdbench.suite import chain, experiment, fit, runs

ROOT = Path(__file__).parent.parent.parent
RUN = [
    *("--config", "experiments/sinkd.yaml", "--stages.teacher.trainer.max_steps", "20"),
    *("--data.train_rows", "64", "--trainer.max_steps", "4"),
]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("KDBENCH_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


def run(*arguments):
    """Fit anew, and return the record."""
    parsed = cli.parse([*RUN, *arguments], {"seed"}, set())
    changes = [*parsed.overrides, ("seed_everything", int(parsed.options.get("seed", 0)))]
    return fit.fit(chain.plan(experiment.read(*parsed.configs, overrides=changes), fresh=True), quiet=True)


def scores(record):
    """Return all that the test says but times."""
    return {
        name: value for name, value in record["metrics"].items() if name.startswith("test/") and "seconds" not in name
    }


@pytest.fixture(scope="module")
def plain(home):
    record = run("--cache.mode", "off")
    assert "answers_read" not in record["cache"]
    return record


@pytest.fixture(scope="module")
def rows(plain):
    """The test rows, all of which the teacher answers in the first run that keeps its answers."""
    told = run()["cache"]
    assert told["answers_read"] == 0
    assert told["answers_computed"] > 0
    return told["answers_computed"]


def test_the_next_run_reads_all_answers_and_says_the_same(plain, rows):
    record = run()
    assert (record["cache"]["answers_read"], record["cache"]["answers_computed"]) == (rows, 0)
    assert scores(record) == pytest.approx(scores(plain), abs=1e-6)


def test_another_seed_reads_them_too(rows):
    told = run("--seed", "1")["cache"]
    assert (told["answers_read"], told["answers_computed"]) == (rows, 0)


def test_another_teacher_is_asked(rows):
    told = run("--stages.teacher.trainer.max_steps", "21")["cache"]
    assert (told["answers_read"], told["answers_computed"]) == (0, rows)


def test_a_damaged_store_is_asked_for_nothing(plain, rows):
    for block in runs.targets().glob("*/*.safetensors"):
        content = bytearray(block.read_bytes())
        content[len(content) // 2] ^= 1
        block.write_bytes(content)
    record = run()
    assert (record["cache"]["answers_read"], record["cache"]["answers_computed"]) == (0, rows)
    assert scores(record) == pytest.approx(scores(plain), abs=1e-6)
