"""Weights & Biases: a view of the run; the CSV and the record on disk are what counts."""

import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from kdbench.errors import UserError

RECORD = "record"  # the key of the summary that holds the whole record as JSON, for kdbench leaderboard --wandb


class RunLogger(WandbLogger):
    """Logs to the W&B run that has the id of the run folder, so that a resumed run goes on in the same W&B run.

    Without a key (``WANDB_API_KEY`` or ``wandb login``) it works offline; ``wandb sync`` sends the files later.
    Whatever W&B writes lies in the run folder.

    Args:
        project: the project.
        experiment: the name of the experiment; the paper before its ``/`` is the group, the rest the job type.
        folder: the run folder.
        config: the merged config; its source of data is a tag.
        job_type: the arm of a claim that the run is there for; default: that part of the experiment's name.

    Raises:
        UserError: W&B cannot be reached, or refuses the key.
    """

    def __init__(
        self, project: str, experiment: str, folder: Path, config: dict[str, Any], job_type: str | None = None
    ) -> None:
        paper, _, part = experiment.partition("/")
        source = config["data"].get("init_args", {}).get("source", "embedded")
        own = folder.absolute() / "wandb"
        os.environ.setdefault("WANDB_CACHE_DIR", str(own / "cache"))  # by default these two lie in the user's home
        os.environ.setdefault("WANDB_DATA_DIR", str(own / "data"))
        super().__init__(
            project=project,
            name=f"{experiment}/{folder.name}",
            id=f"{experiment.replace('/', '-')}-{folder.name}",
            save_dir=folder,
            offline=not _has_key(),
            resume="allow",
            group=paper,
            job_type=job_type or part or "main",
            tags=[paper, source],
        )
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, whatever it says
        self._begin(config)

    def __deepcopy__(self, memo: dict[int, Any]) -> "RunLogger":
        """Return the logger itself: LightningCLI copies what it is given, and there is one W&B run."""
        return self

    @rank_zero_only
    def _begin(self, config: dict[str, Any]) -> None:
        import wandb

        try:
            self.log_hyperparams(config)
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases cannot be used ({str(error).strip().splitlines()[0]}): check WANDB_API_KEY and the network, "
                "or set WANDB_MODE=offline."
            ) from error

    @rank_zero_only
    def log_record(self, record: dict[str, Any]) -> None:
        """Keep the record whole and every metric of it in the summary, the metrics in one table too, and end the W&B run."""
        self.log_table("result", columns=["metric", "value"], data=[list(each) for each in record["metrics"].items()])
        self.experiment.summary.update(record["metrics"] | {RECORD: json.dumps(record, ensure_ascii=False)})
        self.experiment.finish()


def _has_key() -> bool:
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.exists() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace")
