"""The store of teacher targets: what is read is what was written, or it is not read at all."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.data import targets
from kdbench.data.targets import Column, names_of

ROOT = Path(__file__).parent.parent.parent
PYTHON = [sys.executable, "-c"]
KEY = {"teacher": "weights", "tap": "logits"}
PLENTY = 10**9


def column(home, decides=KEY, limit=PLENTY):
    return Column(home, decides, {"teacher": "t", "dataset": "d", "source": "embedded"}, limit)


def names(*numbers):
    return np.array([[number, number * 7 + 1] for number in numbers], dtype=np.uint64)


def value(number, tokens=1):
    """A row that tells its own name."""
    return {"values": torch.arange(3.0).add(number).repeat(tokens, 1)}


def fill(store, numbers, tokens=lambda number: 1):
    store.add(names(*numbers), [value(number, tokens(number)) for number in numbers])
    store.flush()


def check(store, numbers, tokens=lambda number: 1):
    """Every row is there and right; return how many."""
    found = store.read(names(*numbers))
    for number, row in zip(numbers, found, strict=True):
        if row is not None:
            assert torch.equal(row["values"], value(number, tokens(number))["values"])
    return sum(row is not None for row in found)


def test_rows_come_back_in_any_order_from_any_block(tmp_path):
    store = column(tmp_path)
    ragged = lambda number: number % 4 + 1  # noqa: E731
    fill(store, range(50), ragged)
    fill(store, range(50, 90), ragged)
    assert check(store, [77, 3, 49, 50, 0], ragged) == 5
    assert store.read(names(90, 12))[0] is None
    again = column(tmp_path)
    assert len(again) == 90
    assert check(again, range(90), ragged) == 90
    assert len(list(store.folder.glob("*.safetensors"))) == 2


def test_a_row_is_stored_once(tmp_path):
    store = column(tmp_path)
    fill(store, [1, 2])
    store.add(names(2, 3, 3), [value(99), value(3), value(98)])
    store.flush()
    assert check(store, [1, 2, 3]) == 3
    assert len(store) == 3


def test_parts_keep_their_types(tmp_path):
    store = column(tmp_path)
    row = {"values": torch.ones(2, 4, dtype=torch.bfloat16), "classes": torch.ones(2, 3, dtype=torch.int32)}
    store.add(names(5), [row])
    store.flush()
    (found,) = column(tmp_path).read(names(5))
    assert {part: each.dtype for part, each in found.items()} == {"values": torch.bfloat16, "classes": torch.int32}


def test_another_key_is_another_folder(tmp_path):
    fill(column(tmp_path), [1])
    other = column(tmp_path, {**KEY, "teacher": "other weights"})
    assert other.read(names(1)) == [None]
    assert len(targets.columns(tmp_path)) == 1, "a column that holds nothing takes no room"
    fill(other, [1])
    assert len(targets.columns(tmp_path)) == 2


views = st.integers(1, 6).flatmap(
    lambda longest: st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=longest), min_size=1, max_size=5)
)


def view_of(rows, padding=0, room=0, left=False):
    width = max(map(len, rows)) + room
    ids, mask = torch.full((len(rows), width), padding), torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        real = slice(width - len(row), width) if left else slice(0, len(row))
        ids[place, real], mask[place, real] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


@given(views, st.integers(0, 9), st.integers(0, 3), st.booleans())
def test_padding_is_no_part_of_a_name(rows, padding, room, left):
    plain, padded = names_of(view_of(rows)), names_of(view_of(rows, padding, room, left))
    assert (plain == padded).all()
    same = [[a == b for b in rows] for a in rows]
    assert [[bool((plain[a] == plain[b]).all()) for b in range(len(rows))] for a in range(len(rows))] == same


def test_everything_else_that_a_teacher_sees_is():
    ids = torch.tensor([[1, 2, 3]])
    plain = names_of({"input_ids": ids})
    for other in (
        {"input_ids": torch.tensor([[1, 2, 4]])},
        {"input_ids": ids.int()},
        {"pixels": ids},
        {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)},
        {"input_ids": ids.reshape(1, 1, 3)},
    ):
        assert (names_of(other) != plain).any()


@pytest.mark.parametrize("place", range(0, 700, 23))
def test_a_flipped_byte_anywhere_is_never_believed(tmp_path, place):
    fill(column(tmp_path), range(10))
    fill(column(tmp_path), range(10, 20))
    block = sorted((tmp_path / column(tmp_path).key).glob("*.safetensors"))[0]
    content = bytearray(block.read_bytes())
    content[place % len(content)] ^= 0x10
    block.write_bytes(content)
    store = column(tmp_path)
    assert check(store, range(20)) == 10, "the rows of the other block are still there"
    assert not block.exists(), "the damaged block is removed"
    fill(store, range(20))
    assert check(column(tmp_path), range(20)) == 20, "and its rows are computed again"


@pytest.mark.parametrize("damage", ["half", "empty", "text", "foreign"])
def test_a_file_that_is_no_block_of_the_column_is_removed(tmp_path, damage):
    fill(column(tmp_path), range(10))
    fill(column(tmp_path / "elsewhere", {"teacher": "another"}), range(10))
    store = column(tmp_path)
    (block,) = store.folder.glob("*.safetensors")
    (foreign,) = column(tmp_path / "elsewhere", {"teacher": "another"}).folder.glob("*.safetensors")
    content = {
        "half": block.read_bytes()[: block.stat().st_size // 2],
        "empty": b"",
        "text": b"this is no block of anything",
        "foreign": foreign.read_bytes(),
    }[damage]
    block.unlink()
    target = foreign.name if damage == "foreign" else block.name
    (store.folder / target).write_bytes(content)
    assert check(column(tmp_path), range(10)) == 0
    assert not list(store.folder.glob("*.safetensors"))


def test_a_column_sees_what_another_process_adds_and_removes(tmp_path):
    first, second = column(tmp_path), column(tmp_path)
    fill(first, range(5))
    assert second.read(names(0)) == [None]
    second.refresh()
    assert check(second, range(5)) == 5
    second.add(names(3, 6), [value(99), value(6)])
    second.flush()
    first.refresh()
    assert check(first, [3, 6]) == 2
    shutil.rmtree(first.folder)
    assert check(second, range(5)) == 5, "a mapped block can be read on"


def _write(home, numbers, started):
    store = column(home)
    started.wait()
    for number in numbers:
        store.add(names(number), [value(number)])
        if number % 10 == 0:
            store.flush()
    store.flush()


def test_two_processes_fill_one_column(tmp_path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    writers = [
        context.Process(target=_write, args=(tmp_path, numbers, started))
        for numbers in (range(120), range(119, -1, -1))
    ]
    for writer in writers:
        writer.start()
    started.set()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert check(column(tmp_path), range(120)) == 120


ENDLESS = """
import itertools, sys
from pathlib import Path
from tests.data.test_targets import column, names, value
store = column(Path(sys.argv[1]))
for number in itertools.count():
    store.add(names(number), [value(number, 40)])
    store.flush()
"""


def test_a_writer_killed_at_any_moment_leaves_whole_blocks(tmp_path):
    writer = subprocess.Popen([*PYTHON, ENDLESS, str(tmp_path)], cwd=ROOT)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("*/*.safetensors"))) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    store = column(tmp_path)
    assert check(store, range(2000), lambda number: 40) == len(store) >= 5


def test_the_least_recently_used_column_makes_room_but_not_one_that_is_read(tmp_path):
    old, used = column(tmp_path, {"teacher": "old"}), column(tmp_path, {"teacher": "used"})
    for each, when in ((old, 1_000), (used, 500)):
        fill(each, range(100))
        os.utime(each.folder / targets.CARD, (when, when))
    old.release()
    full = column(tmp_path, KEY, limit=old.bytes + used.bytes + 1)
    fill(full, range(100))
    assert not old.folder.exists()
    assert used.folder.exists(), "its lock is held, though it was used longer ago"
    assert check(full, range(100)) == 100


def test_when_nothing_can_make_room_rows_are_no_longer_kept(tmp_path, caplog):
    store = column(tmp_path, limit=10)
    fill(store, range(10))
    assert store.closed == "the limit of 0.0 GB is reached"
    assert "no longer kept" in caplog.text
    assert check(store, range(10)) == 0
    fill(store, range(10))
    assert len(caplog.records) == 1, "said once"


def test_prune_frees_as_much_as_is_asked_for(tmp_path):
    for number in range(4):
        store = column(tmp_path, {"teacher": number})
        fill(store, range(10))
        os.utime(store.folder / targets.CARD, (number, number))
        store.release()
    size = store.bytes
    assert targets.prune(tmp_path, size + 1) == 2 * size
    assert [each.card["decides"]["teacher"] for each in targets.columns(tmp_path)] == [2, 3]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_the_keeping_not_the_run(tmp_path):
    small = tmp_path / "disk"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        store = column(small)
        for number in range(200):
            fill(store, [number], lambda number: 400)
        assert store.closed == "No space left on device"
        assert check(column(small), range(200), lambda number: 400) == len(store) > 0
        assert not [path for path in store.folder.iterdir() if "safetensors." in path.name], "no litter"
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
