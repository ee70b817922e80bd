"""Fleets: the records of all runs of an experiment, one for each value of a setting, as the input of one study."""

import abc
import json
from pathlib import Path
from typing import Any

from kdbench.errors import UserError, nearest

RECORD = "record.json"


class Draws(abc.ABC):
    """Values that a fleet goes over, where they are drawn and not listed."""

    @abc.abstractmethod
    def values(self, seed: int) -> list[Any]:
        """Return the values; the same seed gives the same."""


class FromRuns:
    """The runs of an experiment, one for each value of a setting: a fleet.

    The chain plans, finds and fits them like every run that others are made from.

    Args:
        experiment: the experiment file.
        over: keys of it, ``{data: {weights: [..]}}`` or dotted, each with its list of values, or with a class of :class:`Draws`
            that draws them with the seed of the experiment that asks; of several keys every combination is a run.
        set: changes of that experiment, by dotted keys; the chain applies them.
        settings: of each key its value in each run; kdbench fills them in when it resolves the chain.
        runs: the folder of each run; filled in likewise.
    """

    def __init__(
        self,
        experiment: str,
        over: dict[str, Any] | None = None,
        set: dict[str, Any] | None = None,
        settings: dict[str, list] | None = None,
        runs: list | None = None,  # of typed lists jsonargparse copies the whole for each item
    ) -> None:
        self.experiment = experiment
        self.settings, self.runs = settings or {}, [Path(run) for run in runs or []]

    def values(self, key: str) -> list[Any]:
        """Return the value of a key in each run.

        Raises:
            UserError: the chain was not resolved, or the fleet does not go over the key.
        """
        self._check_resolved()
        if key not in self.settings:
            raise UserError(
                f"The fleet of '{self.experiment}' does not go over '{key}', but over {', '.join(self.settings)}."
                f"{nearest(key, self.settings)}"
            )
        return self.settings[key]

    def records(self) -> list[dict[str, Any]]:
        """Return the record of each run.

        Raises:
            UserError: the chain was not resolved, or a run has no record.
        """
        self._check_resolved()
        missing = [run for run in self.runs if not (run / RECORD).is_file()]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(self.runs)} runs of '{self.experiment}' have no record ('{missing[0]}' is the "
                "first): the same command fits them."
            )
        return [json.loads((run / RECORD).read_text(encoding="utf-8")) for run in self.runs]

    def metric(self, name: str) -> list[float]:
        """Return a metric of each run, the last value where it has a curve.

        Raises:
            UserError: a run has none of that name, or one that is not finite.
        """
        found = [_measured(record) for record in self.records()]
        for run, metrics in zip(self.runs, found, strict=True):
            if name not in metrics:
                raise UserError(f"The run '{run}' has no metric '{name}'.{nearest(name, metrics)}")
            if metrics[name] is None:
                raise UserError(f"The metric '{name}' of the run '{run}' is not finite: nothing can be learnt from it.")
        return [metrics[name] for metrics in found]

    def total(self, cost: str) -> float:
        """Return the ``steps`` or ``seconds`` of all runs together."""
        return float(sum(record[cost] for record in self.records()))

    def _check_resolved(self) -> None:
        if not self.runs:
            raise UserError(
                f"kdbench resolves the fleet; start the study of '{self.experiment}' through the command kdbench."
            )


def _measured(record: dict[str, Any]) -> dict[str, float | None]:
    """Return the metrics of a record; a run that was resumed behind its last step has those of validation as curves alone."""
    return record["metrics"] | {name: curve["values"][-1] for name, curve in record["curves"].items()}
