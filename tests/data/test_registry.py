import json
import os
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from kdbench.data import registry
from kdbench.data.cards import CARDS, Hub
from kdbench.data.readers import romanian
from kdbench.data.registry import SPLITS, fingerprint, hub_ids, load, local_file
from kdbench.errors import UserError

FIELDS = {
    "ro/text": {"text"},
    "ro/rrt": {"words", "upos", "xpos"},
    "ro/ronec": {"words", "ner"},
    "ro/laroseda": {"title", "content", "stars"},
    "ro/rosts": {"first", "second", "score"},
    "ro/moroco": {"text", "dialect"},
    "en/text": {"text"},
    "en/sst2": {"text", "label"},
    "en/stsb": {"first", "second", "score"},
    "en/banking77": {"text", "label"},
    "en/python_docs": {"text", "topic"},
    "en/tinyshakespeare": {"text"},
    "en/gsm8k": {"question", "answer"},
    "en/dolly": {"prompt", "response"},
    "hi/stsb": {"first", "second", "score"},
    "mt/text": {"text"},
    "synthetic/markov_language": {"text"},
    "code/stdlib_functions": {"query", "code", "package"},
    "code/synthconl": {"query", "code", "query_kind", "code_kind", "package"},
    "synthetic/letters": {"text"},
    "synthetic/letters_2": {"text"},
    "synthetic/letters_cyrillic": {"text"},
    "synthetic/hidden_markov": {"text", "words", "states", "dialect", "capitals"},
    "synthetic/skewed_lengths": {"text", "words", "states", "dialect", "capitals"},
    "synthetic/state_groups": {"text", "words", "states", "dialect", "group", "half", "eighth"},
    "synthetic/state_groups_shifted": {"text", "words", "states", "dialect", "group", "half", "eighth"},
    "synthetic/state_pairs": {"first", "second", "same"},
    "synthetic/gaussian_tree": {"features", "label", "clean"},
    "synthetic/class_templates": {"image", "label"},
    "synthetic/class_templates_20": {"image", "label"},
    "synthetic/painted_scenes": {"image", "label", "texture", "place"},
    "vision/digits": {"image", "label"},
    "vision/cifar10": {"image", "label"},
    "vision/cifar100": {"image", "label"},
    "vision/imagenet": {"image", "label"},
    "vision/coco_latents": {"latent", "prompt"},
    "synthetic/ring": {"point", "mode"},
    "synthetic/markov_domains": {"text", "domain"},
    "text/pile_domains": {"text", "domain"},
    "mixtures/pile": {"size", "mixture", "losses"},
}
TASKS = {"text", "tagging", "classification", "similarity", "retrieval", "density", "mixtures"}
UNFIXED = {"code/stdlib_functions"}  # how many rows there are depends on the interpreter: tests/data/test_stdlib.py
EMBEDDED = [name for name, card in CARDS.items() if card.embedded and name not in UNFIXED]
WITH_HUB = [name for name, card in CARDS.items() if card.hub]
WITH_LOCAL = [name for name, card in CARDS.items() if card.local]


def python(code, **environment):
    """Run a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=Path(registry.__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- cards ----


def test_cards_are_complete_and_frozen():
    assert set(CARDS) == set(FIELDS)
    for name, card in CARDS.items():
        assert card.name == name and card.licence and card.task in TASKS
        assert ("embedded" in card.loaders) == bool(card.embedded)
        assert set(card.splits) <= set(card.loaders) and (name in UNFIXED) == (
            "embedded" in set(card.loaders) - set(card.splits)
        )
        assert card.embedded[-1:] in ("", ".") and "\n" not in card.description
        assert ("local" in card.loaders) == (card.local is not None) == bool(card.files)
        assert ("hub" in card.loaders) == (card.hub is not None)
    with pytest.raises(FrozenInstanceError):
        CARDS["ro/rrt"].licence = "none"


def test_every_loader_exists():
    for name, card in CARDS.items():
        for source in card.loaders:
            assert callable(registry._loader(name, source)[1])


def test_importing_the_registry_is_light():
    heavy = "{'torch', 'datasets', 'transformers', 'lightning', 'pandas', 'pyarrow', 'numpy'}"
    modules = "kdbench.data.registry, kdbench.data.readers.romanian_hub, kdbench.data.readers.english_hub"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    assert python(code).strip() == "[]"


# ---- embedded ----


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_rows(name):
    texts = {}
    for split, size in zip(SPLITS, CARDS[name].splits["embedded"], strict=True):
        rows = load(name, "embedded", split)
        assert len(rows) == size
        assert all(set(row) == FIELDS[name] for row in rows)
        texts[split] = {json.dumps(row, sort_keys=True, default=registry._array_digest) for row in rows}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["validation"]


def test_embedded_labels_are_those_of_the_published_sets():
    def values(name, field):
        return [row[field] for split in SPLITS for row in load(name, "embedded", split)]

    assert {tag for tags in values("ro/rrt", "upos") for tag in tags} <= romanian.UPOS
    assert {tag for tags in values("ro/ronec", "ner") for tag in tags} <= romanian.NER
    assert set(values("ro/laroseda", "stars")) == romanian.STARS
    assert set(values("ro/moroco", "dialect")) == romanian.DIALECTS
    assert all(0 <= score <= 5 for score in values("ro/rosts", "score"))


def test_embedded_rows_and_fingerprints_are_the_same_in_another_process():
    code = (
        "import json; from kdbench.data.registry import *\n"
        "print(json.dumps([fingerprint('ro/rosts', 'embedded'), load('ro/rosts', 'embedded', 'test')[0]]))"
    )
    here = [fingerprint("ro/rosts", "embedded"), load("ro/rosts", "embedded", "test")[0]]
    assert json.loads(python(code, PYTHONHASHSEED="7")) == here


# ---- mistakes: one sentence that says what to do ----


def says(*arguments):
    with pytest.raises(UserError) as raised:
        load(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_unknown_names():
    assert "Did you mean 'ro/rrt'?" in says("ro/rtt", "embedded", "train")
    assert "Did you mean 'embedded'?" in says("ro/rrt", "embeded", "train")
    assert "choose one of train, validation, test" in says("ro/rrt", "embedded", "dev")
    with pytest.raises(UserError, match="kdbench list data"):
        fingerprint("nothing", "embedded")
    with pytest.raises(UserError, match="no data set"):
        hub_ids("ro/tex")


def test_a_source_that_the_set_lacks():
    message = "'synthetic/hidden_markov' has no source '{}': choose embedded."
    for source in ("local", "hub"):
        assert says("synthetic/hidden_markov", source, "train") == message.format(source)
    with pytest.raises(UserError, match="has no source 'hub'"):
        hub_ids("synthetic/hidden_markov")


@pytest.mark.parametrize("name", WITH_LOCAL)
def test_local_without_folder(name, tmp_path, monkeypatch):
    monkeypatch.delenv("KDBENCH_DATA", raising=False)
    assert f"needs KDBENCH_DATA: set it to the folder that holds '{CARDS[name].local}'" in says(name, "local", "train")
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    assert f"There is no folder {tmp_path / CARDS[name].local}:" in says(name, "local", "train")
    (tmp_path / CARDS[name].local).mkdir(parents=True)
    assert f"There is no file {tmp_path / CARDS[name].local}" in says(name, "local", "train")
    with pytest.raises(UserError, match="There is no file"):
        fingerprint(name, "local")


@pytest.mark.parametrize("name", WITH_HUB)
def test_hub_offline(name, tmp_path):
    code = (
        "from kdbench.data.registry import load; from kdbench.errors import UserError\n"
        f"try: load({name!r}, 'hub', 'train')\n"
        "except UserError as error: print(error)"
    )
    printed = python(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert printed.startswith(f"The data set '{CARDS[name].hub.id}' could not be fetched")
    assert printed.count("\n") == 1 and "connect this machine to the network, or choose " in printed


# ---- fingerprints ----


def made_files(folder, card):
    for name in card.files:
        (folder / card.local / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / card.local / name).write_text(f"content of {name}")


def test_local_fingerprint_follows_every_file(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    card = CARDS["ro/rosts"]
    made_files(tmp_path, card)
    seen = {fingerprint(card.name, "local")}
    for name in card.files:
        path = tmp_path / card.local / name
        path.write_text(path.read_text().replace("content", "CONTENT"))  # of the same size
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 1_000_000))
        seen.add(fingerprint(card.name, "local"))
    assert len(seen) == 1 + len(card.files)
    os.utime(path, ns=(0, 0))
    assert fingerprint(card.name, "local") in seen  # the content decides, not the time
    moved = tmp_path / "moved"
    made_files(moved, card)
    monkeypatch.setenv("KDBENCH_DATA", str(moved))
    assert fingerprint(card.name, "local") in seen  # nor the place


def test_local_file_takes_the_gzipped_form(tmp_path):
    (tmp_path / "a.json.gz").touch()
    assert local_file(tmp_path, "a.json") == tmp_path / "a.json.gz"
    (tmp_path / "a.json").touch()
    assert local_file(tmp_path, "a.json") == tmp_path / "a.json"


def test_fingerprints_differ_by_set_and_source_and_need_no_network():
    prints = [
        fingerprint(name, source) for name in CARDS for source in ("embedded", "hub") if source in CARDS[name].loaders
    ]
    assert len(set(prints)) == len(prints)
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in prints)


def test_hub_ids_for_a_dry_run():
    assert hub_ids("ro/rosts") == ["dumitrescustefan/ro_sts"]
    assert isinstance(CARDS["ro/rosts"].hub, Hub)
