import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdbench.errors import UserError
from kdbench.suite import locks, runs

ROOT = Path(__file__).parent.parent.parent
WAITS = "kdbench: another process works on '{}'; waiting for it.\n"
ELSEWHERE = {"host": "elsewhere", "pid": 1, "started": "1"}

BEGIN = """
import os, pathlib, sys, time
from kdbench.suite import locks
folder = pathlib.Path(sys.argv[1])
locks.BEAT, locks.STALE, locks.POLL = map(float, sys.argv[2:5])
"""
COUNT = """
for _ in range(20):
    with locks.held(folder):
        number = int((folder / "count").read_text())
        time.sleep(0.001)
        (folder / "count").write_text(str(number + 1))
"""
OWN = """
with locks.held(folder):
    print("in", flush=True)
    time.sleep(60)
"""
ALONE = """
with locks.held(folder):
    os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
    time.sleep(0.03)
    os.unlink(folder / "inside")
"""
OFTEN = """
for _ in range(500):
    with locks.held(folder):
        pass
"""
FORK = """
with locks.held(folder):
    child = os.fork()
    if child == 0:
        sys.exit(0)
    os.waitpid(child, 0)
    time.sleep(3 * locks.BEAT)
    print(len(list((folder / ".lock").iterdir())))
"""


def start(script, folder, beat=0.05, stale=60.0, poll=0.01):
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + script, folder, str(beat), str(stale), str(poll)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def owner(folder):
    """Start a process that holds the lock, and return it when it does."""
    process = start(OWN, folder)
    assert process.stdout.readline() == "in\n", process.stderr.read()
    return process


def leave(folder, token="0123", **told):
    """Leave the lock of an owner that says nothing more."""
    (folder / ".lock").mkdir()
    file = folder / ".lock" / token
    file.write_text(json.dumps(ELSEWHERE | told))
    return file


def tokens(folder):
    return [path.name for path in (folder / ".lock").iterdir()]


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in {"BEAT": 0.05, "STALE": 0.5, "POLL": 0.01}.items():
        monkeypatch.setattr(locks, name, seconds)


def test_neither_locks_nor_records_load_torch():
    code = "import sys, kdbench.suite.locks, kdbench.suite.runs; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "False\n"


def test_of_eight_processes_none_loses_what_another_counted(tmp_path):
    (tmp_path / "count").write_text("0")
    rivals = [start(COUNT, tmp_path) for _ in range(8)]
    told = [rival.communicate()[1] for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0] * 8, told
    assert (tmp_path / "count").read_text() == "160"
    assert [path.name for path in tmp_path.iterdir()] == ["count"], "no lock and no litter"


def test_a_waiter_says_so_once_and_gets_the_lock_at_its_end(tmp_path, quick):
    first = owner(tmp_path)
    second = start("locks.held(folder).__enter__()", tmp_path, stale=0.5)
    assert second.stderr.readline() == WAITS.format(tmp_path)
    time.sleep(1)
    assert second.poll() is None, "the owner shows that it lives"
    first.terminate()
    assert second.communicate()[1] == ""
    first.communicate()


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path, capsys):
    process = owner(tmp_path)
    process.kill()  # and nobody asks for its exit status yet
    time.sleep(0.2)
    began = time.monotonic()
    with locks.held(tmp_path):
        assert time.monotonic() - began < 0.5
    assert capsys.readouterr().err == ""
    process.communicate()


def test_another_process_with_the_number_of_a_dead_one_is_no_owner(tmp_path, capsys):
    leave(tmp_path, host=locks._host(), pid=os.getpid(), started="1")
    with locks.held(tmp_path):
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", [json.dumps(ELSEWHERE), ""])
def test_a_silent_owner_on_another_host_loses_the_lock_after_a_while(text, tmp_path, quick, capsys):
    leave(tmp_path).write_text(text)
    began = time.monotonic()
    with locks.held(tmp_path):
        assert 0.5 <= time.monotonic() - began < 5
        assert "0123" not in tokens(tmp_path)
    assert capsys.readouterr().err == WAITS.format(tmp_path)


def test_an_owner_on_another_host_that_shows_its_life_keeps_the_lock(tmp_path, quick):
    file, began = leave(tmp_path), time.monotonic()
    waiter = threading.Thread(target=lambda: locks.held(tmp_path).__enter__(), daemon=True)
    waiter.start()
    for hour in range(30):  # its clock may say what it will
        time.sleep(0.05)
        os.utime(file, (hour * 3600, hour * 3600))
        assert tokens(tmp_path) == ["0123"]
    assert time.monotonic() - began > 2 * locks.STALE
    waiter.join(5)
    assert not waiter.is_alive()


def test_a_waiter_does_not_take_its_own_absence_for_silence_of_the_owner(tmp_path):
    file = leave(tmp_path)
    waiter = start(ALONE, tmp_path, stale=2)
    waiter.stderr.readline()
    waiter.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    waiter.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    assert file.exists()
    os.utime(file)
    file.unlink()
    assert waiter.wait() == 0
    waiter.communicate()


def test_of_many_waiters_for_a_silent_owner_one_at_a_time_gets_the_lock(tmp_path):
    leave(tmp_path)
    waiters = [start(ALONE, tmp_path, stale=1) for _ in range(8)]
    told = [waiter.communicate()[1] for waiter in waiters]
    assert [waiter.returncode for waiter in waiters] == [0] * 8, told
    assert told == [WAITS.format(tmp_path)] * 8
    assert list(tmp_path.iterdir()) == []


def test_who_judges_late_does_not_take_the_lock_of_the_next_owner(tmp_path, quick, monkeypatch):
    leave(tmp_path)
    judged, look = locks._look(tmp_path / ".lock"), locks._look
    with locks.held(tmp_path):
        (token,) = tokens(tmp_path)
        looks = []

        def late(lock):
            looks.append(lock)
            return judged if len(looks) < 100 else look(lock)

        monkeypatch.setattr(locks, "_look", late)
        waiter = threading.Thread(target=lambda: locks.held(tmp_path).__enter__(), daemon=True)
        waiter.start()
        while len(looks) < 120:
            time.sleep(0.01)
            assert tokens(tmp_path) == [token]
    waiter.join(5)
    assert not waiter.is_alive()


def test_a_suspended_owner_that_lost_the_lock_ends_and_says_why(tmp_path, quick):
    process = owner(tmp_path)
    process.send_signal(signal.SIGSTOP)
    with locks.held(tmp_path):
        process.send_signal(signal.SIGCONT)
        _, told = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGTERM
        assert re.fullmatch(rf"kdbench: the lock of '{tmp_path}' is lost \(.+\)\.\n", told)
        assert len(tokens(tmp_path)) == 1
        time.sleep(3 * locks.BEAT)  # and this process is still the owner
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_gone_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locks.held(tmp_path / "new" / "run"):
        assert len(tokens(tmp_path / "new" / "run")) == 1
        raise ZeroDivisionError
    assert list((tmp_path / "new" / "run").iterdir()) == []


def test_a_beat_at_the_very_end_takes_nothing_for_lost(tmp_path):
    process = start(OFTEN, tmp_path, beat=0.00001)
    assert (process.communicate()[1], process.returncode) == ("", 0)


def test_a_lost_attempt_leaves_nothing(tmp_path):
    with locks.held(tmp_path):
        assert not locks._take(tmp_path / ".lock", "0123")
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        assert tokens(tmp_path) != ["0123"]


def test_a_fork_does_not_take_the_lock_with_it(tmp_path):
    out, told = start(FORK, tmp_path).communicate()
    assert (out, told) == ("1\n", "")


def test_threads_hold_different_folders_at_once_and_one_folder_in_turn(tmp_path, quick):
    together, inside, most = threading.Barrier(4), [], []

    def hold(place):
        with locks.held(tmp_path / str(place)):
            together.wait(10)
        with locks.held(tmp_path / "same"):
            inside.append(place)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(place)

    threads = [threading.Thread(target=hold, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


@pytest.mark.parametrize("place", ["file", "file/run", "loose"])
def test_a_folder_that_cannot_be_written_is_one_sentence(place, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loose").symlink_to(tmp_path / "absent" / "folder")
    folder = tmp_path / place
    with pytest.raises(UserError, match=f"^The run folder '{folder}' cannot be written: .+[.]$"), locks.held(folder):
        pass


def test_a_file_where_the_lock_belongs_does_not_matter(tmp_path, capsys):
    (tmp_path / ".lock").touch()
    with locks.held(tmp_path):
        assert len(tokens(tmp_path)) == 1
    assert capsys.readouterr().err == ""


def test_a_sweep_leaves_the_lock_and_removes_what_is_left_of_a_killed_attempt(tmp_path):
    with locks.held(tmp_path):
        (tmp_path / ".lock.0123").mkdir()
        (tmp_path / ".lock.0123" / "0123").touch()
        runs.sweep(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        assert len(tokens(tmp_path)) == 1


def test_sweeps_and_attempts_at_the_same_time_disturb_nobody(tmp_path):
    swept = "from kdbench.suite import runs\n" + COUNT.replace("time.sleep(0.001)", "runs.sweep(folder)")
    (tmp_path / "count").write_text("0")
    rivals = [start(swept, tmp_path, poll=0.001) for _ in range(8)]
    told = [rival.communicate()[1] for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0] * 8, told
    assert (tmp_path / "count").read_text() == "160"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]
