"""The teacher cache: what teachers say is kept in the store of targets, and read from there in every later epoch and run."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

from kdbench.data.targets import Column
from kdbench.errors import UserError
from kdbench.methods.base import Distillation
from kdbench.methods.reader import Reader, StoredReader, taps_by_role
from kdbench.models.fingerprint import digest

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHARE = 0.25
"""Of the store, that one run may fill with what one teacher says, where it was not asked to keep it."""


class TeacherCache(pl.Callback):
    """Keeps what the objective reads of each teacher, row by row, and reads it back: the teacher then does not run.

    It is filled while training, without an extra pass, or ahead of time (``kdbench cache``). A teacher all of whose rows
    are there is not even loaded. What frozen networks answer in the test is kept too, for the next run that is compared with
    them.

    Args:
        home: the folder of the store.
        mode: ``on``; ``off``; ``auto``: where a row comes back in this run, or where an earlier run has kept something, and
            what a run keeps is a quarter of the store or less: whole feature maps cost more to write than to compute again.
        dtype: in which values are kept. In float32 a run gives the same weights as without the cache, but for 1e-7 where a
            row was computed in another batch; the others round the targets.
        top_k: keep only so many logits of a teacher, and the others as one class: the divergence is exact on the kept
            classes. For teachers of the student's own vocabulary that are read at one temperature; hidden states and other
            teachers are kept whole.
        limit_gb: size of the whole store; the least recently used columns make room.
    """

    def __init__(
        self,
        home: str | Path,
        mode: Literal["auto", "on", "off"] = "auto",
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        top_k: int | None = None,
        limit_gb: float = 20.0,
    ) -> None:
        if mode not in ("auto", "on", "off"):
            raise UserError(f"cache.mode is auto, on or off, not '{mode}'.")
        if dtype not in DTYPES:
            raise UserError(f"cache.dtype is one of {', '.join(DTYPES)}, not '{dtype}'.")
        if top_k is not None and top_k < 1:
            raise UserError(f"cache.top_k keeps at least one logit, not {top_k}.")
        if not limit_gb > 0:
            raise UserError(f"cache.limit_gb is more than 0, not {limit_gb}.")
        self.home, self.mode, self.dtype, self.top_k, self.limit_gb = Path(home), mode, dtype, top_k, limit_gb
        self.readers: dict[str, StoredReader] = {}
        self.answered: dict[str, StoredReader] = {}
        self.reason: str | None = None
        """Why nothing is kept."""

    # ---- the store, as a module sees it ----

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Offer the store to a module before it builds its networks."""
        if isinstance(pl_module, Distillation):
            pl_module.store = self

    def reader(
        self, module: Distillation, name: str, taps: list[str], build: Callable[[], Reader]
    ) -> StoredReader | None:
        """Return what reads a teacher's taps from the store; None, with the reason noted, when that would not help."""
        if module.trainer.state.fn != TrainerFn.FITTING:
            return None
        draws = module.data.versions
        if self.mode == "off":
            self.reason = "it is switched off"
        elif module.uncached is not None:
            self.reason = module.uncached
        elif draws is None:
            self.reason = "each epoch draws its rows anew without end (data.draws makes a finite pool)"
        else:
            columns, short = self._targets(module, name, taps)
            epochs = _epochs(module)
            if self.mode == "on" or epochs > draws or any(len(column) for column in columns.values()):
                views = module.task.views(module.data.views[name])
                found = StoredReader(build, taps, views, columns, DTYPES[self.dtype], short)
                self.readers[name] = found
                return found
            for column in columns.values():
                column.release()
            self.reason = (
                f"no row comes twice in {epochs:.1f} epochs with {draws} versions of each row "
                "(--cache on keeps them for other runs)"
            )
        return None

    def answering(self, module: Distillation, name: str, build: Callable[[], Reader]) -> StoredReader | None:
        """Return what reads from the store what a frozen network answers in a test; None when the cache is off."""
        if self.mode == "off":
            return None
        taps, views = module.task.taps, module.task.views(module.data.views[name])
        columns = self._columns(module, name, taps, {"of": "test"})
        found = StoredReader(build, taps, views, columns)
        found.keeps = True
        self.answered[name] = found
        return found

    def _targets(
        self, module: Distillation, name: str, taps: list[str]
    ) -> tuple[dict[str, Column], dict[str, tuple[int, float]]]:
        temperature = module.objective.short_logits().get(name)
        if self.top_k is not None and temperature is None:
            log.warning(
                "The logits of the teacher '%s' are kept whole: top_k needs one teacher in a term, of the student's own "
                "vocabulary, and one temperature.",
                name,
            )
        short = {}
        if self.top_k is not None and temperature is not None:
            views = module.task.views(module.data.views[name])
            named = [
                full for role in taps_by_role(taps, views).values() for full, tap in role.items() if tap == "logits"
            ]
            short = dict.fromkeys(named, (self.top_k, temperature))
        return self._columns(module, name, taps, {"dtype": self.dtype}, short), short

    def _columns(
        self,
        module: Distillation,
        name: str,
        taps: Iterable[str],
        form: Mapping[str, Any],
        short: Mapping[str, tuple[int, float]] | None = None,
    ) -> dict[str, Column]:
        """Return the column of each tap by its full name; ``form`` says how values are kept, ``short`` which are cut."""
        origin = module.origins[name]
        teacher = digest(origin, lambda: module.network(name))
        columns = {}
        for role, named in taps_by_role(taps, module.task.views(module.data.views[name])).items():
            for full, tap in named.items():
                decides = {"teacher": teacher, "tap": tap, "precision": str(module.trainer.precision), **form}
                if short and full in short:
                    decides |= dict(zip(("top_k", "temperature"), short[full], strict=True))
                about = {
                    "teacher": _told(origin),
                    "dataset": module.data.dataset,
                    "source": module.data.source,
                    "role": role,
                }
                columns[full] = Column(self.home, decides, about, round(self.limit_gb * 1e9))
        return columns

    # ---- around a fit ----

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to keep, but in ``auto`` what is large; say so when what was asked for cannot be done."""
        for name, reader in list(self.readers.items()):
            gigabytes = self._gigabytes(pl_module, reader) if self.mode == "auto" else 0.0
            reader.keeps = gigabytes <= SHARE * self.limit_gb
            if not reader.keeps:
                size = f"{gigabytes:.1f} GB of the store's {self.limit_gb:g}"
                self.reason = f"their targets would take {size} (--cache on keeps them)"
                pl_module.teacher_readers[name] = reader.reader
                for column in self.readers.pop(name).columns.values():
                    column.release()
        if trainer.is_global_zero and self.reason is not None and self.mode == "on":
            log.warning("Teacher targets are computed at each step: %s.", self.reason)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what waits, so that the next epoch and other processes can read it."""
        for column in self._all():
            column.flush()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the rest and let the store go."""
        self._end()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what was answered, and let the store go."""
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep what was computed so far."""
        self._end()

    def _gigabytes(self, module: Distillation, reader: StoredReader) -> float:
        """Return what this run would keep of a teacher; 0 where the rehearsal found all that it asked for."""
        rows = len(module.data.items["train"]) * min(module.data.versions, _epochs(module))
        return rows * sum(reader.row_bytes.values()) / 1e9

    def told(self) -> dict[str, Any]:
        """Return what the record says of the cache."""
        answers = {}
        if self.answered:
            answers["answers_read"] = sum(reader.read_rows for reader in self.answered.values())
            answers["answers_computed"] = sum(reader.computed_rows for reader in self.answered.values())
        if not self.readers:
            return {"mode": self.mode, "off": self.reason or "there is no teacher", **answers}
        return {
            "mode": self.mode,
            **answers,
            "dtype": self.dtype,
            "top_k": self.top_k,
            "rows_read": sum(reader.read_rows for reader in self.readers.values()),
            "rows_computed": sum(reader.computed_rows for reader in self.readers.values()),
            "teachers_loaded": sum(reader.reader is not None for reader in self.readers.values()),
            "megabytes": round(sum(column.bytes for column in _of(self.readers)) / 1e6, 2),
            "closed": next((column.closed for column in self._all() if column.closed), None),
        }

    def _all(self) -> list[Column]:
        return _of(self.readers) + _of(self.answered)

    def _end(self) -> None:
        for column in self._all():
            column.flush()
            column.release()


def _of(readers: Mapping[str, StoredReader]) -> list[Column]:
    return [column for reader in readers.values() for column in reader.columns.values()]


def _epochs(module: Distillation) -> float:
    """Return how many times this run goes over its rows."""
    trainer, data = module.trainer, module.data
    by_epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else math.inf
    batches = len(data.train_dataloader())
    by_steps = trainer.max_steps * trainer.accumulate_grad_batches / batches if trainer.max_steps >= 0 else math.inf
    return min(by_epochs, by_steps)


def _told(origin: Any) -> str:
    return str(
        getattr(origin, "run", None)
        or getattr(origin, "folder", None)
        or getattr(origin, "name", type(origin).__name__)
    )
