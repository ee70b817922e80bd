"""Studies as stages: an experiment whose file has ``study:`` in the place of model and data."""

import time
from argparse import ArgumentError
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from kdbench.errors import UserError
from kdbench.files import write_text
from kdbench.metrics.pictures import picture_of
from kdbench.studies.study import Study
from kdbench.suite import check, messages, plots, runs
from kdbench.suite.chain import Stage


def is_study(config: dict[str, Any]) -> bool:
    """Whether an experiment is a study."""
    return "study" in config


def build(stage: Stage) -> Study:
    """Return the study that an experiment names; all faults of the config in one :class:`UserError`."""
    check.check(stage.config)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Study, "study")
    try:
        return parser.instantiate(parser.parse_object({"study": stage.config["study"]})).study
    except (ArgumentError, ValueError) as error:
        raise UserError(messages.config_fault(error, stage.config)) from error


def carry_out(stage: Stage) -> dict[str, Any]:
    """Compute; leave the files of what was found in the run's folder; return what the record says of it."""
    study, seed = build(stage), stage.config["seed_everything"]
    torch.manual_seed(seed)
    started = time.time()
    found = study(seed)
    if runs.first_process():
        for name, text in found.files.items():
            write_text(stage.folder / name, text)
    return {
        "metrics": {f"test/{name}": float(value) for name, value in found.numbers.items()},
        "pictures": {name: asdict(picture) for name, picture in found.pictures.items()},
        "seconds": round(time.time() - started, 2),
        "steps": 0,
        "curves": {},
    }


def draw(record: dict[str, Any], folder: Path) -> None:
    """Draw the pictures of a record into a folder."""
    for name, told in record.get("pictures", {}).items():
        write_text(folder / f"{name}.svg", plots.picture(picture_of(told)))
