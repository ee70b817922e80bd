"""What validation says during a fit: the curve of each score, and the weights that it would choose."""

import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn

AXES = ("steps", "seconds", "examples")


class Curves(pl.Callback):
    """Keeps every score of every validation, and the weights at the best point.

    The best point is the one at which the task's own score (``Task.chosen_by``) is best, the earliest of equals.

    Args:
        file: where the best weights lie.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.points: list[dict[str, Any]] = []
        self.best: int | None = None
        self.examples, self._spent, self._began = 0, 0.0, time.monotonic()

    @property
    def best_step(self) -> int | None:
        """The optimiser step of the best point, None when nothing was validated."""
        return None if self.best is None else self.points[self.best]["steps"]

    def told(self) -> dict[str, Any]:
        """Return the curves as records hold them: values, steps, seconds, examples, and the place of the best point."""
        axes = {axis: [point[axis] for point in self.points] for axis in AXES}
        names = dict.fromkeys(name for point in self.points for name in point["scores"])
        return {
            name: {"values": [point["scores"].get(name) for point in self.points], **axes, "best": self.best}
            for name in names
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all points so far, so that a resumed run goes on with them."""
        return {"points": self.points, "best": self.best, "examples": self.examples, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the points of an earlier attempt."""
        self.points, self.best, self.examples = (state_dict[name] for name in ("points", "best", "examples"))
        self._spent = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the examples of all ranks; they have equally many."""
        self.examples += len(batch["id"]) * trainer.world_size

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the scores, and the weights when they are the best so far."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        point = {"steps": trainer.global_step, "seconds": round(self._seconds(), 3), "examples": self.examples}
        self.points.append({**point, "scores": scores})
        if self._is_best(*pl_module.task.chosen_by):
            self.best = len(self.points) - 1
            trainer.save_checkpoint(self.file, weights_only=True)

    def _is_best(self, score: str, order: str) -> bool:
        """Tell whether the last point is better than the best so far."""
        sign = 1 if order == "highest" else -1
        value = sign * self.points[-1]["scores"].get(f"val/{score}@student", math.nan)
        if self.best is None:
            return not math.isnan(value)
        return value > sign * self.points[self.best]["scores"][f"val/{score}@student"]

    def _seconds(self) -> float:
        return self._spent + time.monotonic() - self._began
