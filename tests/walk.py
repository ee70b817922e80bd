"""Looking for files where other processes make and remove folders: ``Path.rglob`` fails when one goes while it looks."""

import os
from pathlib import Path


def files_named(folder: Path, name: str) -> list[Path]:
    """Return the files of that name below a folder."""
    return [Path(place) / name for place, _, files in os.walk(folder) if name in files]
