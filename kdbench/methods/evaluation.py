"""How networks are scored and compared: validation, test and prediction of every family."""

import abc
import functools
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from kdbench.methods.objective import Batch, Objective
from kdbench.methods.reader import FileReader, Reader, StoredReader
from kdbench.methods.tasks import Task, Unlabelled
from kdbench.metrics.pictures import Shown
from kdbench.metrics.terms import TermMeans


class Evaluation(pl.LightningModule, abc.ABC):
    """Scores of the student and of every frozen network, loyalties between them, a table of single rows.

    Whoever inherits has networks, a task, data and an objective; see :class:`~kdbench.methods.base.Distillation`.
    """

    task: Task
    data: Any
    objective: Objective
    origins: Mapping[str, Any]
    store: Any
    unpad: bool
    teacher_readers: dict[str, Reader | StoredReader | FileReader]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the hook that Lightning is in, set some thirty times a step, is no parameter to look for."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def prepare_scores(self, compared: list[str]) -> None:
        """Make the metrics of the networks that are compared, the student among them."""
        self._score_readers: dict[str, Reader] = {}
        self.answered: dict[str, StoredReader] = {}
        """Frozen networks whose answers in the test are in the store, or will be."""
        self.compared_names = compared
        self.scores = nn.ModuleDict({name: nn.ModuleDict(named(self.task.scores())) for name in compared})
        self.loyalties = nn.ModuleDict(
            {name: nn.ModuleDict(named(self.task.loyalties())) for name in compared if name != "student"}
        )
        if isinstance(self.task, Unlabelled):
            self.scores["student"]["scores"] = TermMeans(list(self.objective.terms))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the student."""
        if isinstance(self.task, Unlabelled):
            self._score_terms(batch)
        else:
            self._score("student", self.answer("student", batch), batch)

    def answer(self, name: str, batch: Batch) -> dict[str, Tensor]:
        """Return what a network says of a batch when it is scored: its taps; families that sample or generate do so here."""
        stored, known = self.answered.get(name), batch.get(f"known.{name}")
        return self._score_reader(name)(batch) if stored is None or known is None else stored(batch, known)

    def on_validation_epoch_end(self) -> None:
        """Log the student's scores, each over the whole split."""
        self.validated = self._computed("val", ["student"])
        """What the last validation found."""
        self.log_dict(self.validated, prog_bar=False)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the student and every frozen network, and compare their predictions."""
        if isinstance(self.task, Unlabelled):
            self._score_terms(batch)
            return
        outputs = {name: self.answer(name, batch) for name in self.compared_names}
        for name, values in outputs.items():
            self._score(name, values, batch)
        self._keep_items(outputs["student"], batch)
        for name, metrics in self.loyalties.items():
            ours, theirs = self.compared(name, outputs["student"], outputs[name], batch)
            for metric in metrics.values():
                metric.update(ours, theirs)

    def compared(
        self, name: str, student: dict[str, Tensor], other: dict[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Return the predictions of the student and of another network for the same things, row by row."""
        mine = self.task.predictions(student, batch, self.data.views["student"])
        return mine, self.task.predictions(other, batch, self.data.views[name])

    def _keep_items(self, outputs: dict[str, Tensor], batch: Batch) -> None:
        view = self.data.views["student"]
        predictions, targets = self.task.predictions(outputs, batch, view), self.task.targets(batch, view)
        found = self.task.items(predictions, targets, len(batch["id"]))
        if found:
            columns = {"id": batch["id"], **found}
            self.items += [
                dict(zip(columns, row, strict=True))
                for row in zip(*(each.tolist() for each in columns.values()), strict=True)
            ]

    def on_test_start(self) -> None:
        """Ask the store for what frozen networks answer."""
        if self.store is None or not (self.task.taps and self.task.keeps):
            return
        for name in self.compared_names:
            if name == "student" or name not in self.origins:  # or a part of it, as an exit is
                continue
            reader = self.store.answering(self, name, functools.partial(self._score_reader, name))
            if reader is not None:
                self.answered[name] = reader

    def on_test_epoch_start(self) -> None:
        """Begin a new table of rows, without pictures."""
        self.items: list[dict[str, float]] = []
        """What the test said of each row of this rank: ``{"id", ...}``."""
        self.pictures: dict[str, Shown] = {}
        """What the test shows beside its numbers, by name."""

    def on_test_epoch_end(self) -> None:
        """Log scores and loyalties, each over the whole split."""
        values = self._computed("test", list(self.scores))
        for name, metrics in self.loyalties.items():
            values |= {f"test/{key}@{name}": value for key, value in results(metrics).items()}
            values |= self._retention(name, values)
        self.log_dict(values)

    def _retention(self, name: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the student's score over that of another network, where more is better: the distillation ratio."""
        score, order = self.task.chosen_by
        if order != "highest" or values[f"test/{score}@{name}"] <= 0:
            return {}
        return {f"test/retention@{name}": values[f"test/{score}@student"] / values[f"test/{score}@{name}"]}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the student's predictions and the ids of their rows."""
        outputs = self.answer("student", batch)
        return {
            "id": batch["id"],
            "predictions": self.task.predictions(outputs, batch, self.data.views["student"]),
        }

    def _score(self, name: str, outputs: dict[str, Tensor], batch: Batch) -> None:
        self.update(self.scores[name], outputs, batch, self.data.views[name])

    def update(self, metrics: nn.ModuleDict, outputs: dict[str, Tensor], batch: Batch, view: str) -> None:
        """Update metrics with what a network that has a view says of a batch."""
        predictions, targets = self.task.predictions(outputs, batch, view), self.task.targets(batch, view)
        for metric in metrics.values():
            metric.update(predictions, *targets)

    def _score_terms(self, batch: Batch) -> None:
        """Take the terms of the objective on a batch that nothing was learnt from; no store is asked."""
        teacher = {
            name: self._held_out_reader(name, taps)(batch) for name, taps in self.objective.teacher_taps().items()
        }
        terms = self.objective(self.learn(batch, teacher), teacher, batch)
        weights = {name: term.weight for name, term in self.objective.terms.items()}
        self.scores["student"]["scores"].update(terms, weights, len(batch["id"]))

    def _held_out_reader(self, name: str, taps: list[str]) -> Reader:
        reader = self.teacher_readers[name]
        if not isinstance(reader, Reader):  # read from the store or from a file so far
            reader = self._score_readers.get(name) or Reader(
                self.network(name), taps, self._views(name), unpad=self.unpad
            )
            self._score_readers[name] = reader
        return reader

    def _computed(self, split: str, names: list[str]) -> dict[str, Tensor]:
        return {f"{split}/{key}@{name}": value for name in names for key, value in results(self.scores[name]).items()}

    def _score_reader(self, name: str) -> Reader:
        if name not in self._score_readers:
            labelled = self.task.labelled(self.data.views[name])
            self._score_readers[name] = Reader(self.network(name), self.task.taps, self._views(name), labelled)
        return self._score_readers[name]


def results(metrics: nn.ModuleDict) -> dict[str, Tensor]:
    """Compute and reset metrics; one that gives several values adds its name in front of each."""
    found: dict[str, Tensor] = {}
    for name, metric in metrics.items():
        value = metric.compute()
        metric.reset()
        plain = name == "scores"
        parts = value if isinstance(value, dict) else {"": value}
        for key, each in parts.items():
            full = key if plain else f"{name}_{key}".rstrip("_")
            found[full] = torch.as_tensor(each, dtype=torch.float32)
    return found


def named(metrics: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return metrics under names that a ModuleDict takes; the task's main one has none of its own."""
    return {name or "scores": metric for name, metric in metrics.items()}
