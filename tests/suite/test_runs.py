import json
import multiprocessing
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.errors import UserError
from kdbench.files import write_text
from kdbench.suite import runs

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


def _hold(folder, started):
    with runs.lock(folder):
        started.set()
        time.sleep(0.5)


def test_a_second_process_waits_for_the_lock(tmp_path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "run", started))
    other.start()
    assert started.wait(20)
    began = time.monotonic()
    with runs.lock(tmp_path / "run"):
        assert time.monotonic() - began > 0.3
    other.join()
