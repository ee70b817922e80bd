"""The store of teacher targets from the command line: filled ahead of time, shown, pruned."""

import time

import lightning.pytorch as pl
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor

from kdbench.callbacks.progress import StageProgress
from kdbench.callbacks.teacher_cache import TeacherCache
from kdbench.data import targets
from kdbench.errors import UserError
from kdbench.methods.base import Distillation
from kdbench.methods.objective import Batch
from kdbench.suite import fit, report, runs
from kdbench.suite.chain import Stage
from kdbench.suite.study import is_study


class Teaching(pl.LightningModule):
    """A pass over all rows in which nobody learns: the teachers speak, and the store listens.

    Args:
        module: whose teachers they are.
        cache: the store.
    """

    def __init__(self, module: Distillation, cache: TeacherCache) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.inner = [module]  # in a list: its student is no part of this module
        module.store = cache
        self.tokenizers, self.preprocessors = module.tokenizers, module.preprocessors
        self.teacher_names = module.teacher_names
        self.compares_rows = False  # nothing is learnt, so the cheapest batches do

    def setup(self, stage: str) -> None:
        """Build what the objective reads of the teachers."""
        (module,) = self.inner
        module.trainer = self.trainer
        module.setup(stage)
        module.to(self.trainer.strategy.root_device)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Look up what is known."""
        return self.inner[0].on_before_batch_transfer(batch, dataloader_idx)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Let the data make on the device what they make there."""
        return self.inner[0].on_after_batch_transfer(batch, dataloader_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Compute and keep what is missing."""
        self.inner[0].teach(self.inner[0].prepare(batch))

    def configure_optimizers(self) -> None:
        """Nothing is optimised."""


def fill(stage: Stage, quiet: bool = False) -> TeacherCache:
    """Fit what an experiment is made from, then keep what its teachers say of every version of every training row.

    Raises:
        UserError: the experiment has no teacher, or its rows have no finite number of versions.
    """
    if is_study(stage.config):
        raise UserError(f"'{stage.name}' is a study and has no teacher.")
    for parent in stage.parents.values():
        fit.fit(parent, quiet=quiet)
    cache = fit.teacher_cache(stage.config, mode="on")
    callbacks = [cache, *([] if quiet else [StageProgress(stage.name, "teaching")])]
    with fit.friendly(stage):
        cli = fit.build(stage, [], False)
        if not cli.model.teacher_names:
            raise UserError(f"'{stage.name}' has no teacher: there is nothing to keep.")
        if cli.datamodule.versions is None:
            raise UserError(
                f"'{stage.name}' draws its rows anew in every epoch, without end, so nothing can be kept of them: "
                "give a finite number, such as --data.draws 10."
            )
        asked = stage.config.get("trainer", {})
        trainer = pl.Trainer(
            **{
                key: asked[key]
                for key in ("accelerator", "devices", "num_nodes", "strategy", "precision")
                if key in asked
            },
            max_epochs=cli.datamodule.versions,
            limit_val_batches=0,
            callbacks=callbacks,
            default_root_dir=stage.folder,
            use_distributed_sampler=False,
            **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
        )
        trainer.fit(Teaching(cli.model, cache), datamodule=cli.datamodule)
    return cache


def show_filled(cache: TeacherCache) -> None:
    """Print what a filling pass did."""
    told = cache.told()
    report.console().print(
        f"{told['rows_computed']} rows computed, {told['rows_read']} found, {told['megabytes']} MB in {cache.home}",
        highlight=False,
        soft_wrap=True,
    )


def show() -> None:
    """Print every column of the store, the least recently used first."""
    table = Table(box=SIMPLE)
    for name in ("key", "teacher", "tap", "data", "kept as", "rows", "MB", "last used"):
        table.add_column(name, justify="right" if name in ("rows", "MB") else "left", no_wrap=name != "teacher")
    found = targets.columns(runs.targets())
    for each in found:
        decides = each.card["decides"]
        form = decides["dtype"] + (f", top {decides['top_k']}" if "top_k" in decides else "")
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used))
        data = f"{each.card['dataset']} ({each.card['source']})"
        teacher = "/".join(each.card["teacher"].split("/")[-3:])  # of a run's folder, the experiment and the id
        cells = (teacher, decides["tap"], data, form, str(each.rows()), f"{each.bytes / 1e6:.2f}", used)
        table.add_row(each.folder.name[:8], *cells)
    out = report.console()
    if found:
        out.print(table)
    out.print(
        f"{len(found)} columns, {sum(each.bytes for each in found) / 1e6:.2f} MB in {runs.targets()}", highlight=False
    )


def prune(keep_gb: float) -> None:
    """Remove the least recently used columns that no run uses, until at most ``keep_gb`` are left."""
    total = sum(each.bytes for each in targets.columns(runs.targets()))
    freed = (
        targets.prune(runs.targets(), total - round(keep_gb * 1e9))
        if keep_gb
        else targets.prune(runs.targets(), total + 1)
    )
    report.console().print(f"{freed / 1e6:.2f} MB removed, {(total - freed) / 1e6:.2f} MB kept", highlight=False)
