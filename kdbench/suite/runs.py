"""Run folders: ``runs/<experiment>/<id>/`` with the config, the checkpoints, the student and the record.

The id is a hash of what can change the result, so the same command finds its own run again.
"""

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.errors import UserError
from kdbench.files import write_text

RECORD = "record.json"
CONFIG = "config.yaml"
CHECKPOINT = "checkpoints/last.ckpt"
BEST = "checkpoints/best.ckpt"
ITEMS = "items.csv"
STUDENT = "student"
SAMPLES = "samples.png"


@dataclass(frozen=True)
class Tracking:
    """Where a run is logged besides its folder: a W&B project, and the arm of a claim that it is there for."""

    project: str
    arm: str | None = None


def home() -> Path:
    """Return the folder that holds all runs: ``$KDBENCH_RUNS``, else ``runs`` in the current folder."""
    return Path(os.environ.get("KDBENCH_RUNS", "runs"))


def targets() -> Path:
    """Return the folder of stored teacher targets: ``$KDBENCH_CACHE``, else ``.targets`` beside the runs."""
    return Path(os.environ.get("KDBENCH_CACHE") or home() / ".targets")


def first_process() -> bool:
    """Tell whether this process speaks for a run: the ranks that Lightning or Slurm start run the very same command."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "SLURM_PROCID"))


def digest(value: Any, length: int = 10) -> str:
    """Return the first ``length`` hex digits of the SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a finished run, or None when the run is unfinished or absent."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise UserError(f"The record '{folder / RECORD}' is damaged; remove it and the run is finished anew.") from None


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a run, whole or not at all. A NaN becomes null: it never reaches a leaderboard."""
    write_text(folder / RECORD, json.dumps(_without_nan(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written: the temporary neighbours of files that are written whole.

    Only the holder of the folder's lock may do so. Who waits for the lock may make or remove its own neighbour at the
    same time: what cannot be removed is left to the next sweep.
    """
    for left in [*folder.glob(".*.*"), *(folder / CHECKPOINT).parent.glob(".*.*")]:
        with contextlib.suppress(OSError):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def attempts(folder: Path) -> list[Path]:
    """Return the folders of a run id, oldest first: the run itself and what ``--fresh`` made after it."""
    later = [path for path in folder.parent.glob(f"{folder.name}-*") if path.name.rpartition("-")[2].isdigit()]
    return [folder, *sorted(later, key=lambda path: int(path.name.rpartition("-")[2]))]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and value - value != 0 else value
