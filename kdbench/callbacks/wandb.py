"""Weights & Biases: a view of the run; the CSV and the record on disk are what counts."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(project: str, experiment: str, folder: Path, config: dict[str, Any]) -> WandbLogger:
    """Return a logger whose run has the id of the run folder, so that a resumed run goes on in the same W&B run.

    Without a key (``WANDB_API_KEY`` or ``wandb login``) it works offline; ``wandb sync`` sends the files later.
    """
    paper, _, arm = experiment.partition("/")
    logger = WandbLogger(
        project=project,
        name=f"{experiment}/{folder.name}",
        id=f"{experiment.replace('/', '-')}-{folder.name}",
        save_dir=folder,
        offline=not _has_key(),
        resume="allow",
        group=paper,
        job_type=arm or "main",
        tags=[paper],
    )
    logger.log_hyperparams(config)
    return logger


def _has_key() -> bool:
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.exists() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace")
