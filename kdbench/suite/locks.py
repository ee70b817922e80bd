"""The lock of a run folder, for processes of one machine or of many that share a network file system."""

import contextlib
import errno
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kdbench.errors import UserError

BEAT = 10.0  # seconds between two signs of life of an owner
STALE = 60.0  # seconds without one, after which another takes the lock
POLL = 1.0  # seconds between two looks of a waiter
TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOENT)  # the last: its owner swept what this process made


class _Seen(NamedTuple):
    token: str
    owner: bytes
    beat: int  # the file's time, compared with itself alone: the clocks of machines need not agree


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; a second process says so and waits until the first has ended, however it ended.

    The lock is the folder ``.lock`` with one file in it, named by a random token of its owner. Who finds the owner dead
    or silent removes the file of that very name, which cannot hit a lock that another took meanwhile, and then competes
    like everybody: of all renames to a folder that is absent or empty, one succeeds. A process that lost its lock while
    it stood still says so and terminates itself. Raises :class:`UserError` when the folder cannot be written.
    """
    lock, token, process = folder / ".lock", secrets.token_hex(8), os.getpid()
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(lock, token, ended), daemon=True)
    try:
        _wait(lock, token)
        heart.start()
        yield
    finally:
        if os.getpid() == process:  # a fork that leaves by an exception comes here too
            ended.set()
            if heart.ident is not None:
                heart.join()
            _remove(lock, token)


def _wait(lock: Path, token: str) -> None:
    """Return when the lock is this process's."""
    last, looks, told = None, 0, False
    while True:
        seen = _look(lock)
        # Looks are counted, not seconds: who stood still itself, or had lost the server, saw no silence of the owner.
        looks, last = looks + 1 if seen == last else 0, seen
        if seen is not None and seen.token == token:  # it was taken, and the network lost the answer
            return
        if seen is not None and (_dead(seen.owner) or looks * POLL >= STALE):
            _remove(lock, seen.token)
            seen = None
        if seen is None and _take(lock, token):
            return
        if not told:
            print(f"kdbench: another process works on '{lock.parent}'; waiting for it.", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL)


def _take(lock: Path, token: str) -> bool:
    """Try once to make the lock; return whether it is this process's."""
    made, taken = lock.with_name(f"{lock.name}.{token}"), False
    try:
        made.mkdir(parents=True, exist_ok=True)
        if lock.is_file():  # as left by a version that locked a file; nobody holds it
            lock.unlink()
        (made / token).write_text(json.dumps({"host": _host(), "pid": os.getpid(), "started": _life(os.getpid())[1]}))
        # The server decides a rename in one step that shows the lock with its owner. After a mkdir it would have none
        # for a while, and for ever when its maker is killed then, or when NFS repeats a mkdir whose answer was lost.
        made.rename(lock)
        taken = (lock / token).exists()
    except OSError as error:
        if error.errno not in TAKEN or not lock.parent.is_dir():
            raise UserError(f"The run folder '{lock.parent}' cannot be written: {error.strerror}.") from None
    finally:
        if not taken:
            _remove(made, token)
    return taken


def _look(lock: Path) -> _Seen | None:
    """Return who holds the lock and its last sign of life, or None when nobody is seen to."""
    try:
        with min(lock.iterdir()).open("rb") as file:  # which NFS asks the server for; a mere stat may be a minute old
            return _Seen(Path(file.name).name, file.read(), os.fstat(file.fileno()).st_mtime_ns)
    except (OSError, ValueError):  # absent; empty
        return None


def _remove(lock: Path, token: str) -> None:
    """Remove a lock if it is still that of the token."""
    for remove in ((lock / token).unlink, lock.rmdir):  # a folder with another's file in it stays
        with contextlib.suppress(OSError):
            remove()


def _beat(lock: Path, token: str, ended: threading.Event) -> None:
    """Show that the owner lives until it has ended; terminate the process once the lock is no longer its own."""
    while not ended.wait(BEAT):
        try:
            os.utime(lock / token)  # writes on a full disk too, and never makes the file anew
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):  # after another fault there is a next time
                why = "it stood still for too long, or the folder was removed"
                print(f"kdbench: the lock of '{lock.parent}' is lost ({why}).", file=sys.stderr, flush=True)
                signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)  # wakes it if it waits
                return


def _host() -> str:
    """Return what has one table of processes: the host since its start, or a container in it; names may be shared."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # only Linux tells
        parts += [
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            str(Path("/proc/self/ns/pid").readlink()),
        ]
    return " ".join(parts)


def _life(pid: int) -> tuple[bool, str | None]:
    """Return whether a process has ended, and when it started in ticks of its host, or None where that is hidden."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False, None
    return fields[0] in "ZX" and fields[17] == "1", fields[19]  # its last threads may write for a moment after the kill


def _dead(owner: bytes) -> bool:
    """Tell whether an owner is known to be dead, which only its own host can see."""
    try:
        told = json.loads(owner)
    except ValueError:  # emptied by a power failure
        return False
    if told["host"] != _host():
        return False
    try:
        os.kill(told["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it lives, and is another user's
    ended, started = _life(told["pid"])
    return ended or (started is not None and started != told["started"])
