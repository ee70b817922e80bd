"""Mistakes, full disks, signals and rivals, as a user meets them: the exit code, one sentence, and a run that goes on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from walk import files_named

from kdbench.data.registry import load
from kdbench.errors import UserError
from kdbench.losses.divergences import KLDivergence
from kdbench.methods.base import Distillation
from kdbench.methods.objective import Objective, Term
from kdbench.models.origins import FromConfig, FromFolder

ROOT = Path(__file__).parent.parent.parent
FLAGSHIP = "experiments/distilbert_ro.yaml"
CASED = "experiments/distilbert_ro/teacher_cased.yaml"
SMALL = {
    "model.student.config.hidden_size": 32,
    "model.student.config.intermediate_size": 32,
    "data.batch_size": 4,
    "data.max_length": 16,
    "trainer.max_steps": 2,
}
SMALL_CHAIN = {
    **{
        f"stages.{stage}.{key}": value for stage in ("teacher_cased", "teacher_uncased") for key, value in SMALL.items()
    },
    "data.batch_size": 4,
    "data.max_length": 16,
    "trainer.max_steps": 2,
}


def words(settings):
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def start(*arguments, folder, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "kdbench.cli", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KDBENCH_RUNS": str(folder), **environment},
    )


def fit(*arguments, folder, **environment):
    process = start("fit", "--quiet", *arguments, folder=folder, **environment)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def small(**settings):
    """Return the arguments of a very small fit of the cased teacher; two underscores stand for a dot."""
    return ["--config", CASED, *words(SMALL | {key.replace("__", "."): value for key, value in settings.items()})]


def mistake(*arguments, folder, **environment):
    code, _, err = fit(*arguments, folder=folder, **environment)
    assert code == 2, err
    return one_sentence(err)


def one_sentence(err):
    assert "Traceback" not in err
    (line,) = err.strip().splitlines()
    assert line.startswith("kdbench: ")
    return line.removeprefix("kdbench: ")


def ends_well(*arguments, folder, **environment):
    code, out, err = fit(*arguments, folder=folder, **environment)
    assert code == 0, err
    run = Path(re.search(r"Run folder: (.+)", out).group(1))
    assert litter(run) == []
    FromFolder(folder=str(run / "student")).build()
    return run, json.loads((run / "record.json").read_text())


def litter(folder):
    return [str(path) for path in folder.rglob(".*") if path.name != ".lock"]


def until(found, process, seconds=200):
    end = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The runs of a very small flagship: two teachers and their student."""
    folder = tmp_path_factory.mktemp("finished")
    ends_well("--config", FLAGSHIP, *words(SMALL_CHAIN), folder=folder)
    return folder


@pytest.fixture
def again(finished, tmp_path):
    """A copy of those runs, to be damaged."""
    return shutil.copytree(finished, tmp_path / "runs")


def teacher(folder, name="teacher_cased"):
    (run,) = (folder / "distilbert_ro" / name).iterdir()
    return run


# ---- data ----

TREE = "".join(f"{place}\t{word}\t_\t{tag}\t_\t_\t_\t_\t_\t_\n" for place, word, tag in
               [(1, "Ana", "PROPN"), (2, "are", "VERB"), (3, "mere", "NOUN"), (4, ".", "PUNCT")])  # fmt: skip
SPLITS = ("train", "dev", "test")
STUDENT = {
    "class_path": "FromConfig",
    "init_args": {
        "architecture": "BertModel",
        "config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    },
}
TOKENIZER = {"class_path": "TrainWordPiece", "init_args": {"vocab_size": 100, "lowercase": True}}
TASKS = {"rrt": ("upos", "tagging"), "rosts": ("similarity", "similarity")}


@pytest.fixture
def data(tmp_path):
    """A data folder with small copies of two sets, as their authors publish them."""
    folder = tmp_path / "data" / "ro"
    for part in SPLITS:
        rrt, rosts = folder / "rrt" / f"ro_rrt-ud-{part}.conllu", folder / "rosts" / f"RO-STS.{part}.tsv"
        rrt.parent.mkdir(parents=True, exist_ok=True)
        rosts.parent.mkdir(parents=True, exist_ok=True)
        rrt.write_text(f"{TREE}\n" * 4, encoding="utf-8")
        rosts.write_text("".join(f"{score}.0\tO fată cântă.\tUn băiat râde.\n" for score in range(6)), encoding="utf-8")
    return folder


def local(name, data):
    file, task = TASKS[name]
    head = {"then": [{"class_path": "AddHead", "init_args": {"task": task}}]}
    student = STUDENT | {"init_args": STUDENT["init_args"] | head}
    settings = {"data.source": "local", "data.batch_size": 4, "trainer.max_steps": 2}
    settings |= {"model.student": yaml.safe_dump(student), "data.tokenizer": yaml.safe_dump(TOKENIZER)}
    return {
        "arguments": ["--config", f"experiments/distilbert_ro/{file}.yaml", *words(settings)],
        "environment": {"KDBENCH_DATA": str(data.parent)},
    }


def replace(old, new):
    def damage(path):
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return damage


DAMAGED = {
    "a cut line": (
        "rrt/ro_rrt-ud-train.conllu",
        replace("are\t_\tVERB\t_\t_\t_\t_\t_\t_", "are\t_\tVERB"),
        "{file}, line 2: no word of 10 tab-separated columns; replace it with the published data.",
    ),
    "a label outside the set": (
        "rrt/ro_rrt-ud-dev.conllu",
        replace("NOUN", "SUBST"),
        "{file}, line 3: the label 'SUBST' is none of ADJ,",
    ),
    "a score outside the range": (
        "rosts/RO-STS.test.tsv",
        replace("5.0\t", "7.5\t"),
        "{file}, line 6: '7.5' is no score from 0 to 5; replace it with the published data.",
    ),
    "foreign bytes": (
        "rosts/RO-STS.dev.tsv",
        lambda path: path.write_bytes(b"1.0\tO fat\xff\tUn om\n"),
        "{file}, line 1: not UTF-8 text; replace it with the published data.",
    ),
    "an empty split": (
        "rosts/RO-STS.dev.tsv",
        lambda path: path.write_text(""),
        "The split 'validation' of 'ro/rosts' from the source 'local' has no row: complete its data.",
    ),
    "a missing file": (
        "rosts/RO-STS.train.tsv",
        lambda path: path.unlink(),
        "There is no file {file} (nor the same with .gz): put the published file there.",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_whole_local_data_are_fitted(name, data, tmp_path):
    given = local(name, data)
    _, record = ends_well(*given["arguments"], folder=tmp_path / "runs", **given["environment"])
    assert record["data"] == {"dataset": f"ro/{name}", "source": "local"}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_local_data_name_the_file_and_the_line(name, data, tmp_path):
    file, damage, sentence = DAMAGED[name]
    damage(data / file)
    given = local(file.partition("/")[0], data)
    told = mistake(*given["arguments"], folder=tmp_path / "runs", **given["environment"])
    assert told.startswith(sentence.format(file=data / file))


ENTRY = {"tokens": ["Ana", "."], "ner_tags": ["B-PERSON", "O"], "space_after": [False, False]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokens": 5}, "tokens is 5"),
        ({"tokens": ["Ana", None]}, "None is no text"),
        ({"ner_tags": None}, "ner_tags is None"),
        ({"ner_tags": [["O"], "O"]}, "the label ['O'] is none of B-DATETIME,"),
        ({"space_after": [False]}, "2 words, but tags or spaces for 1"),
    ],
)
def test_values_of_another_kind_name_the_entry(change, sentence, tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    file = tmp_path / "ro" / "ronec" / "test.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([ENTRY, ENTRY]))
    assert len(load("ro/ronec", "local", "test")) == 2
    file.write_text(json.dumps([ENTRY, ENTRY | change]))
    with pytest.raises(UserError) as raised:
        load("ro/ronec", "local", "test")
    assert str(raised.value).startswith(f"{file}, entry 2: {sentence}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"model.student": "{class_path: FromHub, init_args: {name: readerbench/RoBERT-base}}"},
            "'readerbench/RoBERT-base' cannot be loaded from the Hugging Face hub",
        ),
        ({"data.source": "hub"}, "The data set 'wikimedia/wikipedia' could not be fetched"),
    ],
    ids=["network", "data"],
)
def test_the_hub_without_a_network(settings, sentence, tmp_path):
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    told = mistake("--config", CASED, *words(settings), folder=tmp_path / "runs", **environment)
    assert told.startswith(sentence)
    assert "network" in told


# ---- settings that do not go together ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"model.objective.soft.loss.temperature": 0},
            "model.objective.soft.loss: temperature must be positive, got 0.0.",
        ),
        (
            {"model.objective.soft.loss.temperature": -2},
            "model.objective.soft.loss: temperature must be positive, got -2.0.",
        ),
        (
            {f"model.objective.{term}.weight": 0 for term in ("soft", "masked", "hidden")},
            "the weights of the objective's terms sum to nothing: there is nothing to learn.",
        ),
        (
            {"model.objective.soft.teacher_weights": "[0, 0]"},
            "model.objective.soft: the teachers' weights must be >= 0 and sum to more than 0, got [0.0, 0.0].",
        ),
        ({"model.optimizer.lr": -1}, "model.optimizer: Invalid learning rate: -1.0."),
        ({"trainer.max_steps": -5}, "trainer: `max_steps` must be a non-negative integer or -1"),
    ],
    ids=["zero temperature", "negative temperature", "no weights", "no teacher weights", "optimizer", "trainer"],
)
def test_impossible_numbers_are_told_before_a_teacher_is_fitted(settings, sentence, tmp_path):
    told = mistake("--config", FLAGSHIP, *words(SMALL_CHAIN | settings), folder=tmp_path)
    assert told.startswith(sentence)
    assert list(tmp_path.iterdir()) == [], "nothing was fitted, and nothing is left behind"


@pytest.mark.slow
def test_a_setting_that_only_the_data_contradict(tmp_path):
    told = mistake(*small(trainer__val_check_interval=100000), folder=tmp_path)
    assert told.startswith("trainer: `val_check_interval` (100000) must be less than or equal to the number of the")


@pytest.mark.slow
def test_vocabularies_that_differ_need_an_alignment(again):
    told = mistake("--config", FLAGSHIP, *words(SMALL_CHAIN | {"model.align": "null"}), folder=again)
    assert re.fullmatch(
        r"The teacher 'uncased' has another vocabulary than the student \(1500 and 2000 pieces\): say how they meet, for "
        r"example 'align: \{uncased: shared_words\}'\.",
        told,
    )


@pytest.mark.slow
def test_a_single_teacher_with_another_vocabulary_names_the_family_that_can(again, tmp_path):
    def from_run(name):
        return {"class_path": "FromRun", "init_args": {"experiment": f"experiments/distilbert_ro/{name}.yaml"}}

    arguments = {
        "student": from_run("teacher_cased"),
        "teacher": from_run("teacher_uncased"),
        "labels": "masked_labels",
    }
    content = {
        "model": {"class_path": "LogitDistillation", "init_args": arguments},
        "data": {"class_path": "MaskedLanguageModeling", "init_args": {"dataset": "ro/text"}},
    }
    file = tmp_path / "other.yaml"
    file.write_text(yaml.safe_dump(content))
    told = mistake("--config", str(file), *words(SMALL_CHAIN), folder=again)
    assert told.startswith("The teacher 'teacher' has another vocabulary than the student")
    assert told.endswith("use EnsembleDistillation with 'align: {teacher: shared_words}'.")


# ---- checkpoints ----


@pytest.mark.slow
@pytest.mark.parametrize("name", ["of another architecture", "damaged", "of a finished run"])
def test_a_checkpoint_that_cannot_be_resumed(name, again):
    run = teacher(again)
    (run / "record.json").unlink()
    checkpoint = run / "checkpoints" / "last.ckpt"
    if name == "damaged":
        checkpoint.write_bytes(checkpoint.read_bytes()[:20000])
        sentence = f"The checkpoint '{checkpoint}' is damaged "
    elif name == "of a finished run":
        sentence = f"'{run}' holds the weights of a finished run without its record: "
    else:
        shutil.copy(teacher(again, "teacher_uncased") / "checkpoints" / "last.ckpt", checkpoint)
        sentence = (
            f"The checkpoint in '{run}' belongs to another architecture (size mismatch for student.bert.embeddings"
        )
    told = mistake(*small(), folder=again)
    assert told.startswith(sentence)
    assert told.endswith("remove it, and the same command starts anew.")
    checkpoint.unlink()
    assert ends_well(*small(), folder=again)[0] == run


@pytest.mark.slow
def test_a_finished_run_whose_checkpoint_was_removed(again):
    (teacher(again) / "checkpoints" / "last.ckpt").unlink()
    process = start("test", *small(), folder=again)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 2, err
    assert one_sentence(err).endswith("make a new attempt with 'kdbench fit --fresh'.")


class Elsewhere(Distillation):
    """A module on a device whose values are not looked at in every step."""

    device = torch.device("cuda")


def test_a_term_that_was_not_looked_at_yet_reaches_no_checkpoint():
    module = Elsewhere(student=FromConfig("BertForMaskedLM", {}))
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module.objective = Objective({"soft": Term(KLDivergence(), teacher="one.logits")})
    batch = {"id": torch.tensor([3, 4])}
    module._total({"soft": torch.tensor(1.0)}, batch, False)
    module.on_save_checkpoint({})
    module._total({"soft": torch.tensor(float("inf"))}, batch, False)  # no reading of the value, so no error yet
    with pytest.raises(UserError, match=r"The term 'soft' became inf at step 0 \(example ids \[3, 4\]\)"):
        module.on_save_checkpoint({})


# ---- a full disk ----


class Disk:
    """A file system of a size that changes."""

    def __init__(self, folder):
        self.folder = folder

    def leave(self, free):
        """Leave about so many free bytes."""
        state = os.statvfs(self.folder)
        used = (state.f_blocks - state.f_bfree) * state.f_frsize
        subprocess.run(["mount", "-o", f"remount,size={used + free}", self.folder], check=True)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no command mount")
    if made.returncode:
        pytest.skip(f"no file system may be mounted here: {made.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", folder], check=True)


def intact(run):
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    FromFolder(folder=str(run / "student")).build()
    return json.loads((run / "record.json").read_text()), weights["global_step"]


@pytest.mark.slow
@pytest.mark.parametrize("during", ["the second checkpoint", "the export"])
def test_a_full_disk_leaves_what_was_there_and_the_run_goes_on_with_more_space(during, disk, finished):
    old = disk.folder / "distilbert_ro" / "teacher_cased" / "old"
    shutil.copytree(teacher(finished), old)
    before = intact(old)
    weights = (old / "checkpoints" / "last.ckpt").stat().st_size
    size = 3 * weights  # of a checkpoint while it learns, with two moments of each weight
    student = sum(path.stat().st_size for path in (old / "student").iterdir())
    steps, free = (202, size * 3 // 2) if during == "the second checkpoint" else (3, size + student // 2)
    disk.leave(free)
    told = mistake(*small(trainer__max_steps=steps), folder=disk.folder)
    assert "cannot be written (No space left on device)" in told
    assert "make room" in told
    assert intact(old) == before
    (run,) = (path for path in old.parent.iterdir() if path != old)
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert last == (200 if during == "the second checkpoint" else 3)
    assert litter(disk.folder) == []
    assert not (run / "record.json").exists()
    disk.leave(4 * size)
    _, record = ends_well(*small(trainer__max_steps=steps), folder=disk.folder)
    assert (record["steps"], record["resumed"]) == (steps, True)


# ---- kills, signals, rivals ----


@pytest.mark.slow
@pytest.mark.parametrize("when", ["checkpoints/last.ckpt", "student"])
def test_a_run_killed_while_it_writes_its_product_is_resumed(when, tmp_path):
    process = start("fit", "--quiet", *small(), folder=tmp_path)
    until(lambda: list(tmp_path.glob(f"distilbert_ro/teacher_cased/*/{when}")), process)
    process.kill()
    process.wait()
    run = teacher(tmp_path)
    assert not (run / "record.json").exists()
    for left in (".record.json.k1ll3d", "checkpoints/.last.ckpt.4711"):  # what a kill in mid-write leaves
        (run / left).write_text("half")
    (run / ".student.k1ll3d").mkdir()
    (run / ".student.k1ll3d" / "model.safetensors").write_text("half")
    assert ends_well(*small(), folder=tmp_path)[0] == run


@pytest.mark.slow
def test_ctrl_c_and_the_polite_kill_end_with_one_sentence_and_are_resumed(tmp_path):
    arguments = small(trainer__max_steps=1200)

    def stamp():
        return [path.stat().st_mtime_ns for path in files_named(tmp_path, "last.ckpt")]

    for number, code, sentence in (
        (signal.SIGINT, 130, "interrupted; the same command resumes."),
        (signal.SIGTERM, 143, "terminated; the same command resumes."),
    ):
        seen = stamp()
        process = start("fit", "--quiet", *arguments, folder=tmp_path)
        until(lambda seen=seen: stamp() != seen, process)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert one_sentence(err) == sentence
    run, record = ends_well(*arguments, folder=tmp_path)
    assert (record["steps"], record["resumed"]) == (1200, True)
    assert len(list((run / "logs").iterdir())) == 3


@pytest.mark.slow
def test_of_two_equal_commands_one_fits_and_the_other_shows_its_run(tmp_path):
    rivals = [start("fit", "--quiet", *small(trainer__max_steps=100), folder=tmp_path) for _ in range(2)]
    told = [rival.communicate(timeout=240) for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0, 0], told
    run = teacher(tmp_path)
    for out, _ in told:
        assert out.strip().endswith(f"Run folder: {run}")
    assert told[0][0].split("Run folder")[0] == told[1][0].split("Run folder")[0], "both show the same table"
    assert len(list(tmp_path.rglob("record.json"))) == len(list(tmp_path.rglob("attempt-*"))) == 1
    assert litter(run) == []
