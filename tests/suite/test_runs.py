import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.errors import UserError
from kdbench.files import write_text
from kdbench.suite import runs

ROOT = Path(__file__).parent.parent.parent
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), plain, min_size=2, max_size=5))
def test_the_digest_does_not_see_the_order_of_keys(config):
    turned = dict(reversed(list(config.items())))
    assert runs.digest(config) == runs.digest(turned)
    assert len(runs.digest(config)) == 10


def test_a_nan_never_reaches_a_record(tmp_path):
    runs.write_record(tmp_path, {"metrics": {"a": float("nan"), "b": float("inf"), "c": 1.5}})
    assert json.loads((tmp_path / "record.json").read_text())["metrics"] == {"a": None, "b": None, "c": 1.5}


def test_a_failed_write_leaves_the_file_before_it_and_no_litter(tmp_path):
    write_text(tmp_path / "a.txt", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "\ud800")
    assert (tmp_path / "a.txt").read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_damaged_record_is_one_sentence(tmp_path):
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        runs.read_record(tmp_path)


WRITER = """
import pathlib, sys, time
from kdbench.suite import runs
home, number = pathlib.Path(sys.argv[1]), int(sys.argv[2])
while not (home / "go").exists():
    time.sleep(0.01)
for turn in range(5):
    record = {"writer": number, "turn": turn, "numbers": [number] * 5000, "end": [number, turn]}
    for folder in (home / "paper" / str(number), home / "paper" / "shared"):
        runs.write_record(folder, record)
"""


def _is_whole(record):
    number = record["writer"]
    return record["numbers"] == [number] * 5000 and record["end"] == [number, record["turn"]]


def test_sixty_four_processes_write_records_at_once_and_a_reader_sees_whole_ones(tmp_path):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, str(number)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for number in range(64)
    ]
    (tmp_path / "go").touch()
    folders = [tmp_path / "paper" / str(number) for number in range(64)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        for folder in [tmp_path / "paper" / "shared", *folders]:
            record = runs.read_record(tmp_path / "paper" / "shared")
            each = runs.read_record(folder)
            assert all(_is_whole(one) for one in (record, each) if one is not None)
            seen |= {tuple(record["end"])} if record is not None else set()
    assert [writer.communicate()[1] for writer in writers] == [""] * 64
    assert len(seen) > 1, "the reader read while others wrote"
    assert [runs.read_record(folder)["end"] for folder in folders] == [[number, 4] for number in range(64)]
    assert runs.read_record(tmp_path / "paper" / "shared")["turn"] == 4
    left = {path.name for path in (tmp_path / "paper").rglob("*") if path.is_file()}
    assert left == {"record.json"}, "no litter"
