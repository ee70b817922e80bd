"""Fitting, testing and recording the stages of a chain with LightningCLI."""

import contextlib
import copy
import dataclasses
import json
import logging
import os
import platform
import resource
import signal
import subprocess
import sys
import time
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from kdbench.callbacks import requeue
from kdbench.callbacks.curves import Curves
from kdbench.callbacks.export import StudentExport
from kdbench.callbacks.progress import StageProgress
from kdbench.callbacks.requeue import Requeue
from kdbench.callbacks.resume import AtomicCheckpoints, ExactResume, LastCheckpoint
from kdbench.callbacks.samples import SampleSheet
from kdbench.callbacks.teacher_cache import TeacherCache
from kdbench.errors import UserError
from kdbench.files import write_text
from kdbench.methods.base import Distillation
from kdbench.metrics.speed import compare_speed, parameters, ratio
from kdbench.suite import check, locks, messages, runs, study
from kdbench.suite.chain import Stage, arguments

Record = dict[str, Any]


def fit(
    stage: Stage, wandb: runs.Tracking | None = None, quiet: bool = False, watch: Sequence[pl.Callback] = ()
) -> Record:
    """Fit every stage of a chain that is missing, deepest first, and return the record of the last.

    A finished stage is found by its id; one that was interrupted resumes; one whose references are new is tested again.
    ``watch`` are callbacks that look on and change nothing.
    """
    chain = [each for each in stage.walk() if each.record is None or each is stage]
    if len(chain) > 1 and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UserError(
            f"'{stage.name}' is made from runs that are missing ({chain[0].name} is the first), which the tasks of one srun "
            "cannot fit: run 'kdbench fit ... --prepare' first."
        )
    alike = set().union(*(each.alike() for each in chain))
    for each in chain:
        if each.record is None and each.folder not in alike:
            with friendly(each):  # every mistake of the chain shows before its first step
                if study.is_study(each.config):
                    study.build(each)
                else:
                    build(each, [], False)
                    teacher_cache(each.config)
    for place, each in enumerate(chain, 1):
        label = f"{each.name} ({place} of {len(chain)})" if len(chain) > 1 else each.name
        record = _fit_one(each, label, wandb if each is stage else None, quiet, watch)
    return record


def evaluate(stage: Stage, verb: str = "test", quiet: bool = False) -> Record:
    """Validate or test a finished run anew with the references of its config, and keep what was measured in its record."""
    _check_finished(stage)
    for parent in stage.parents.values():
        fit(parent, quiet=quiet)
    with locks.held(stage.folder), friendly(stage):
        cli = build(stage, [], False)
        values = _measure(cli, stage, verb)
        record = stage.record
        record["metrics"] |= values
        record["references"] = stage.references
        runs.write_record(stage.folder, record)
        return record


def predict(stage: Stage) -> Path:
    """Write the student's predictions for the test split to the run folder, a JSON line a row; return the file."""
    _check_finished(stage)
    with friendly(stage):
        cli = build(stage, [], False)
        batches = cli.trainer.predict(cli.model, datamodule=cli.datamodule, ckpt_path=_weights(stage))
        rows = [{"id": batch["id"].tolist(), "predictions": batch["predictions"].tolist()} for batch in batches]
        file = stage.folder / "predictions.jsonl"
        write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    return file


def _check_finished(stage: Stage) -> None:
    if study.is_study(stage.config):
        raise UserError(f"'{stage.name}' is a study: 'kdbench fit' computes all that it has to say.")
    if stage.record is None:
        raise UserError(
            f"'{stage.name}' has no finished run {stage.id}: run 'kdbench fit' with the same arguments first."
        )


def _fit_one(
    stage: Stage, label: str, wandb: runs.Tracking | None, quiet: bool, watch: Sequence[pl.Callback]
) -> Record:
    first = runs.first_process()
    with locks.held(stage.folder) if first else contextlib.nullcontext():
        record = stage.record
        if record is not None:  # for all processes of the run alike: what is measured anew, they measure together
            if not stage.finished:
                with friendly(stage):
                    record["metrics"] |= _measure(build(stage, [], False), stage, "test")
                record["references"] = record.get("references", {}) | stage.references
                if first:
                    runs.write_record(stage.folder, record)
            return record
        if first:
            runs.sweep(stage.folder)
        with friendly(stage):
            return _study(stage) if study.is_study(stage.config) else _train(stage, label, wandb, quiet, watch)


def _study(stage: Stage) -> Record:
    found = study.carry_out(stage)
    record = _about(stage) | found
    if runs.first_process():
        study.draw(found, stage.folder)
        runs.write_record(stage.folder, record)
    return record


def _train(stage: Stage, label: str, wandb: runs.Tracking | None, quiet: bool, watch: Sequence[pl.Callback]) -> Record:
    checkpoint = stage.folder / runs.CHECKPOINT
    cache = teacher_cache(stage.config)
    curves = Curves(stage.folder / runs.BEST)
    callbacks = [
        ExactResume(),
        curves,
        LastCheckpoint(checkpoint),
        StudentExport(stage.folder / runs.STUDENT),
        SampleSheet(stage.folder / runs.SAMPLES),
        cache,
        *([] if quiet else [StageProgress(label)]),
        *([Requeue(checkpoint)] if "SLURM_JOB_ID" in os.environ else []),
        *watch,
    ]
    if runs.first_process():
        write_text(stage.folder / runs.CONFIG, yaml.safe_dump(stage.config, sort_keys=False, allow_unicode=True))
    loggers = _loggers(stage, wandb)
    cli = build(stage, callbacks, loggers)
    started = time.time()
    resumed = checkpoint.exists()
    if fits(stage):
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=str(checkpoint) if resumed else None)
    seconds = time.time() - started
    last = curves.points[-1]["scores"] if curves.points else {}  # perhaps of an attempt before this one
    metrics = last | {key: float(value) for key, value in cli.trainer.callback_metrics.items()}
    at_best = _measure_best(cli, curves)
    measured = _measure(cli, stage, "test")
    if not fits(stage):
        StudentExport(stage.folder / runs.STUDENT).on_fit_end(cli.trainer, cli.model)
    record = _record(stage, metrics | measured, seconds, cli, resumed)
    record |= {"curves": curves.told() | _best_and_last(record, curves, at_best), "cache": cache.told()}
    if cli.model.pictures:
        record["pictures"] = {name: dataclasses.asdict(each) for name, each in cli.model.pictures.items()}
    if cli.trainer.is_global_zero:
        study.draw(record, stage.folder)
        runs.write_record(stage.folder, record)
        for logger in loggers:
            if hasattr(logger, "log_record"):
                logger.log_record(record)
    if fits(stage):  # by all ranks; a finished run goes on no more, and the optimiser's state is twice the weights
        cli.trainer.save_checkpoint(checkpoint, weights_only=True)
    return record


def teacher_cache(config: dict[str, Any], **changes: Any) -> TeacherCache:
    """Return the teacher cache as the key ``cache:`` of an experiment says."""
    told = dict(config.get("cache") or {}) | changes
    if isinstance(told.get("mode"), bool):  # YAML reads a bare on and off as true and false
        told["mode"] = "on" if told["mode"] else "off"
    return TeacherCache(runs.targets(), **told)


def fits(stage: Stage) -> bool:
    """Whether there is something to fit; an experiment may say ``fit: false`` and only be tested."""
    return stage.config.get("fit", True)


def _weights(stage: Stage) -> str | None:
    """Return the checkpoint of a finished fit; without one the student is as its origin gives it."""
    return str(stage.folder / runs.CHECKPOINT) if fits(stage) else None


def _measure_best(cli: LightningCLI, curves: Curves) -> dict[str, float]:
    """Return the student's test scores with the weights that validation chose, nothing when those are the last."""
    if curves.best_step in (None, cli.trainer.global_step):
        return {}
    cli.datamodule.setup("test")
    (values,) = cli.trainer.validate(
        cli.model, dataloaders=cli.datamodule.test_dataloader(), ckpt_path=str(curves.file), verbose=False
    )
    return {name.replace("val/", "test/", 1): float(value) for name, value in values.items()}


def _best_and_last(record: Record, curves: Curves, at_best: dict[str, float]) -> dict[str, Any]:
    """Return each test score of the student as a curve of two points, of one where the best checkpoint is the last."""
    if curves.best_step is None:
        return {}
    last = {key: value for key, value in record["metrics"].items() if key.startswith("test/")}
    if at_best:
        steps = [curves.best_step, record["steps"]]
        return {key: {"values": [best, last[key]], "steps": steps, "best": 0} for key, best in at_best.items()}
    scores = (key for key in last if key.endswith("@student"))
    return {key: {"values": [last[key]], "steps": [record["steps"]], "best": 0} for key in scores}


def _measure(cli: LightningCLI, stage: Stage, verb: str) -> dict[str, float]:
    """Return the scores of all networks, their sizes, and the student's speed against each of the others."""
    run = cli.trainer.test if verb == "test" else cli.trainer.validate
    (values,) = run(cli.model, datamodule=cli.datamodule, ckpt_path=_weights(stage), verbose=False)
    values = {key: float(value) for key, value in values.items()}
    module: Distillation = cli.model
    if verb == "test":
        _write_items(module, stage.folder / runs.ITEMS)
    encoders = {}
    for name, network in module.networks().items():
        values |= {f"{key}@{name}": float(value) for key, value in parameters(network).items()}
        encoders[name] = getattr(network, "base_model", network)
    if len(encoders) > 1 and verb == "test":
        batch = module.transfer_batch_to_device(cli.datamodule.speed_batch(), module.device, 0)
        views = {name: batch[next(iter(module.task.views(cli.datamodule.views[name]).values()))] for name in encoders}
        speeds = compare_speed(encoders, views, repeats=5, warmup=2, seconds=0.2)
        values |= {f"seconds@{name}": speed.median for name, speed in speeds.items()}
        values |= {f"speed_ratio@{name}": ratio(speeds, "student", name) for name in encoders if name != "student"}
    return values


def _write_items(module: Distillation, file: Path) -> None:
    """Write what the test said of each row, of all ranks together, sorted by row."""
    found = [module.items]
    if module.trainer.world_size > 1:
        found = [None] * module.trainer.world_size
        torch.distributed.all_gather_object(found, module.items)
    rows = {
        row["id"]: row for rank in found for row in rank
    }  # a rank may have been given a row twice, to be as long as all
    if rows and module.trainer.is_global_zero:
        names = list(next(iter(rows.values())))
        lines = [",".join(f"{rows[place][name]:.9g}" for name in names) for place in sorted(rows)]
        write_text(file, "\n".join([",".join(names), *lines]) + "\n")


def build(stage: Stage, callbacks: list[pl.Callback], loggers: list[Logger] | bool) -> LightningCLI:
    """Return LightningCLI with trainer, model and data; all faults of the config in one :class:`UserError`."""
    check.check(stage.config)
    config = copy.deepcopy(stage.config)  # jsonargparse may change what it is given
    for key in ("cache", "fit"):
        config.pop(key, None)
    defaults = {
        "callbacks": callbacks,
        "logger": loggers,
        "default_root_dir": str(stage.folder),
        "plugins": [AtomicCheckpoints(), *requeue.plugins()],
        "profiler": {"class_path": "kdbench.callbacks.profiler.Unwatched"},
        "enable_progress_bar": False,  # StageProgress shows the whole run
        **({"enable_checkpointing": False} if not callbacks else {}),
    }
    try:
        cli = LightningCLI(
            model_class=pl.LightningModule,
            datamodule_class=pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            trainer_defaults=defaults,
            parser_kwargs={"exit_on_error": False},
            run=False,
            args=config,
        )
    except (ArgumentError, ValueError) as error:
        raise UserError(messages.config_fault(error, stage.config)) from error
    except MisconfigurationException as error:
        raise UserError(messages.trainer_fault(error)) from error
    try:
        cli.model.check_optimizers()
    except ValueError as error:
        raise UserError(f"model.optimizer: {error}.") from error
    return cli


def _loggers(stage: Stage, wandb: runs.Tracking | None) -> list[Logger]:
    """Return the CSV of record, a new file for each attempt to finish the run, and W&B when it is asked for."""
    logs = stage.folder / "logs"
    attempt = len(list(logs.glob("attempt-*")))
    loggers: list[Logger] = [CSVLogger(logs.parent, name=logs.name, version=f"attempt-{attempt}")]
    if wandb is not None:
        from kdbench.callbacks.wandb import RunLogger

        loggers.append(RunLogger(wandb.project, stage.name, stage.folder, stage.config, wandb.arm))
    return loggers


def _record(stage: Stage, metrics: dict[str, float], seconds: float, cli: LightningCLI, resumed: bool) -> Record:
    return _about(stage, cli.trainer.world_size) | {
        "metrics": metrics,
        "steps": cli.trainer.global_step,
        "seconds": round(seconds, 2),
        "resumed": resumed,
    }


def _about(stage: Stage, processes: int = 1) -> Record:
    """Return what a record says whatever was measured: of what, from what, on what."""
    data = arguments(stage.config.get("data"))
    return {
        "experiment": stage.name,
        "id": stage.id,
        "seed": stage.config["seed_everything"],
        "data": {"dataset": data.get("dataset"), "source": data.get("source", "embedded") if data else None},
        "parents": {place: f"{parent.name}/{parent.folder.name}" for place, parent in stage.parents.items()},
        "references": stage.references,
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "hardware": {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
            "processes": processes,
            "threads": torch.get_num_threads(),
        },
        "versions": {name: version(name) for name in ("kdbench", "torch", "lightning", "transformers", "torchmetrics")},
        "source_version": _source_version(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _source_version() -> str | None:
    """Return the commit of the source tree, when it is a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@contextlib.contextmanager
def friendly(stage: Stage) -> Iterator[None]:
    """Quieten Lightning's advertisements, and tell what the user can mend in one sentence."""
    talkers = [
        logging.getLogger(name)
        for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    ]
    levels = [talker.level for talker in talkers]
    try:
        for talker in talkers:
            talker.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for pattern in messages.IDLE_WARNINGS:
                warnings.filterwarnings("ignore", pattern)
            yield
    except UserError:
        raise
    except SIGTERMException:  # Lightning would leave with the code of a run that is done
        print("kdbench: terminated; the same command resumes.", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning has shut down and hides why
            raise KeyboardInterrupt from error
        raise
    except Exception as error:
        if fault := messages.runtime_fault(error, stage.folder):
            raise UserError(fault) from error
        raise
    finally:
        for talker, level in zip(talkers, levels, strict=True):
            talker.setLevel(level)
