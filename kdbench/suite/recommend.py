"""AutoDistiller: which pipelines to try first on a new task, learnt from the records of a leaderboard.

What the records say becomes a table (:mod:`kdbench.suite.recommender`). Source: He et al. 2021, arXiv 2109.11105.
"""

import functools
import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from kdbench.data import registry
from kdbench.errors import UserError, nearest
from kdbench.suite import catalogue, claim_file, experiment, grid, report, results
from kdbench.suite.chain import FROM_RUN, arguments
from kdbench.suite.claims import OWN, ClaimFile
from kdbench.suite.experiment import Config, Request
from kdbench.suite.recommender import Ranked, columns_of, fit, leave_one_task_out, shares

UNCHANGED = "as in the file"
OF_THE_TASK = ("data.", "model.teacher", "stages.", "seed_everything")
"""Overrides that say on what a pipeline runs; what the data do to their texts (``data.augment``) is the pipeline's."""
OF_THE_MODEL = ("model.student",)


def records(home: Path, paper: str, metric: str = "accuracy") -> pd.DataFrame:
    """Return the table of a paper's own runs that have a student and a teacher; ``settings`` are the pipeline's overrides.

    The pipeline is what the arm changes, but for what changes the task (the data, the teacher) or the student. The teacher's
    score is that of the best teacher.

    Args:
        home: the folder of all leaderboards.
        paper: the folder in it.
        metric: the test score whose ratio is taken.

    Raises:
        UserError: there are no results, or none with such a score of a student and its teacher.
    """
    file, found = claim_file.load(home / paper / "claim.yaml"), results.read(home / paper)
    root = claim_file.root(home / paper / "claim.yaml")
    features: dict[str, Config] = {}
    rows, known = [], set()
    for pairs, arm, task, pair, trial, run in found.cells:
        if task != OWN or run is None:
            continue
        record = found.records[run]
        metrics = {name.removeprefix("test/"): value for name, value in record["metrics"].items()}
        known |= {name.removesuffix("@student") for name in metrics if name.endswith("@student")}
        scores = {
            name.removeprefix(f"{metric}@"): value
            for name, value in metrics.items()
            if name.startswith(f"{metric}@") and value is not None
        }
        for reference in record.get("references", {}):
            scores.pop(reference, None)
        student = scores.pop("student", None)
        if student is None or not scores or max(scores.values()) <= 0:
            continue
        changes = _arm_changes(file, arm, pairs, pair, trial)
        request = _request(file, found.source, arm, changes)
        mark = json.dumps(request.words())
        if mark not in features:
            features[mark] = _features(root, request)
        chosen = {key: value for key, value in changes.items() if _of_pipeline(key)}
        teacher = max(scores.values())
        rows.append(
            {"ratio": student / teacher, "settings": chosen, "experiment": file.arms[arm].experiment}
            | {f"pipeline.{key}": category(value) for key, value in chosen.items()}
            | {f"factor.{key}": level for key, level in file.arms[arm].levels.items()}
            | features[mark]
            | {"task.teacher_score": teacher, "model.log_parameters": math.log(metrics["parameters@student"])}
        )
    if not rows:
        raise UserError(
            f"No run of '{paper}' has '{metric}' of a student and of its teacher.{nearest(metric, known)} Its students "
            f"have {', '.join(sorted(known)) or 'no scores'}."
        )
    table = pd.DataFrame(rows)
    pipeline = columns_of(table, "pipeline.")
    return table.fillna(dict.fromkeys(pipeline, UNCHANGED)) if pipeline else table


def describe(
    rows: Sequence[Mapping[str, Any]],
    label: str,
    fields: Sequence[str] = ("text",),
    classes: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, float]:
    """Return the numbers of a classification task, from its training rows.

    ``task.log_train_size`` (natural logarithm), ``task.classes``, ``task.mean_length`` (words between white space, both texts
    of a pair together), ``task.pair`` (0 or 1) and ``task.class_entropy`` (nats).

    Raises:
        UserError: the rows lack a field.
    """
    class_of = {value: name for name, own in (classes or {}).items() for value in own}
    for name in (label, *fields):
        if name not in rows[0]:
            raise UserError(f"The rows have no field '{name}', only {sorted(rows[0])}.{nearest(name, rows[0])}")
    counts = Counter(class_of.get(row[label], row[label]) for row in rows)
    part = np.array(list(counts.values())) / len(rows)
    return {
        "task.log_train_size": math.log(len(rows)),
        "task.classes": float(len(counts)),
        "task.mean_length": float(np.mean([sum(len(row[name].split()) for name in fields) for row in rows])),
        "task.pair": float(len(fields) > 1),
        "task.class_entropy": abs(float(-(part * np.log(part)).sum())),
    }


def category(value: Any) -> str:
    """Return a setting as a category is named: a class by its short name with its arguments."""
    if value is None:
        return "none"
    if isinstance(value, dict) and "class_path" in value:
        inside = category(value.get("init_args") or {})
        return catalogue.short(str(value["class_path"])).rpartition(".")[2] + (f"({inside})" if inside else "")
    if isinstance(value, dict):
        return " ".join(f"{key}={category(each)}" for key, each in value.items())
    if isinstance(value, list):
        return f"[{', '.join(category(each) for each in value)}]"
    return grid.shown(value)


def _of_pipeline(key: str) -> bool:
    return key.startswith("data.augment") or not key.startswith((*OF_THE_TASK, *OF_THE_MODEL))


def _arm_changes(file: ClaimFile, arm: str, pairs: str, pair: str, trial: int) -> Config:
    """Return what an arm's run changes: its own overrides, those of its trial and the value that its pair stands for."""
    changes = dict(file.arms[arm].set) | {
        key: value for key, values in file.over.get(pairs, {}).items() for value in values if str(value) == pair
    }
    best = file.arms[arm].best
    return changes | (best.of[trial] if best else {})


def _request(file: ClaimFile, source: str, arm: str, changes: Config) -> Request:
    chosen = file.arms[arm]
    stem = Path(chosen.experiment).stem
    common = file.stages.get(stem, {}) | chosen.stages.get(stem, {})
    return Request((chosen.experiment,), common | {"data.source": chosen.source or source} | changes)


def _features(root: Path, request: Request) -> Config:
    """Return the name of the task that an experiment is about, its numbers and those of its student."""
    path = experiment.find(root, request.files[0])
    config = experiment.read(path, overrides=list(request.changes.items())).config
    data = arguments(config.get("data"))
    if "label" not in data or "dataset" not in data:
        raise UserError(
            f"'{path}' has no data with a 'dataset' and a 'label': pipelines are recommended for classification."
        )
    rows = _training_rows(data["dataset"], data.get("source", "embedded"))[: data.get("train_rows")]
    fields = data.get("text", "text")
    numbers = describe(rows, data["label"], [fields] if isinstance(fields, str) else fields, data.get("classes"))
    limit = f" {data['train_rows']}" if "train_rows" in data else ""
    layers, hidden = _shape(root, arguments(config.get("model")).get("student"))
    return {
        "task": f"{data['dataset']} {data['label']}{limit}",
        "model.layers": layers,
        "model.hidden": hidden,
    } | numbers


@functools.lru_cache(maxsize=8)
def _training_rows(dataset: str, source: str) -> list[registry.Row]:
    """Return the rows, read once for the many arms of a leaderboard."""
    return registry.load(dataset, source, "train")


def _shape(root: Path, origin: Any) -> tuple[float, float]:
    """Return layers and width of a network, as far as the configs tell them; NaN where they do not."""
    layers = hidden = math.nan
    told = arguments(origin)
    if isinstance(told.get("config"), dict):
        layers = told["config"].get("num_hidden_layers", math.nan)
        hidden = told["config"].get("hidden_size", math.nan)
    elif isinstance(origin, dict) and origin["class_path"] == FROM_RUN and "experiment" in told:
        below = experiment.read(
            experiment.find(root, told["experiment"]), overrides=list((told.get("set") or {}).items())
        ).config
        layers, hidden = _shape(root, arguments(below.get("model")).get("student"))
    for surgery in told.get("then") or ():
        kept = arguments(surgery)
        if catalogue.short(surgery["class_path"]) == "RandomWeights":
            changed = kept.get("config") or {}
            layers, hidden = changed.get("num_hidden_layers", layers), changed.get("hidden_size", hidden)
        if catalogue.short(surgery["class_path"]) == "CopyLayers":
            layers = len(kept["layers"]) if kept.get("layers") is not None else kept["count"]
    return float(layers), float(hidden)


def recommend(
    paper: str,
    home: Path,
    changes: Config,
    top: int = 3,
    metric: str = "accuracy",
    teacher_score: float | None = None,
    seed: int = 0,
) -> list[Ranked]:
    """Print the pipelines to try first on a new task, learnt from a leaderboard, and how to run them; return them.

    Args:
        paper: the folder of the leaderboard.
        home: the folder of all leaderboards.
        changes: dotted overrides that make the leaderboard's experiment one on the new task (``data.dataset`` ...).
        top: how many pipelines are shown.
        metric: the test score whose ratio is predicted.
        teacher_score: of the teacher on the new task, where it is known.
        seed: of the forest.

    Raises:
        UserError: the leaderboard has too few records, or the new task cannot be read.
    """
    if not any(key.startswith("data.") for key in changes):
        raise UserError(
            "Describe the new task by its data: --data.dataset en/sst2 --data.source local --data.label label."
        )
    if top < 1:
        raise UserError(f"--top is at least 1, not {top}.")
    table = records(home, paper, metric)
    root = claim_file.root(home / paper / "claim.yaml")
    task = _features(root, Request((table["experiment"].iloc[0],), changes))
    recommender = fit(table, seed)
    shape = ["model.layers", "model.hidden"]
    alike = np.isclose(table[shape], [task[name] for name in shape], equal_nan=True).all(1)
    numbers = {name: value for name, value in task.items() if name in recommender.numbers} | {
        "model.log_parameters": table.loc[alike, "model.log_parameters"].mean(),
        "task.teacher_score": math.nan if teacher_score is None else teacher_score,
    }
    ranked = recommender.rank(table.drop_duplicates(list(recommender.levels)), numbers)[:top]
    out = report.console()
    out.print(_table(table, ranked, f"{paper} on {task['task']}", metric))
    out.print(_evidence(table, top, seed), highlight=False, markup=False, soft_wrap=True)
    if factors := columns_of(table, "factor."):
        out.print(_importance(table, factors), highlight=False, markup=False, soft_wrap=True)
    for each in ranked:
        tried = table.loc[each.index]
        words = shlex.join(Request((tried["experiment"],), tried["settings"] | changes).words())
        out.print(f"kdbench fit {words}", highlight=False, markup=False, soft_wrap=True)
    return ranked


def _table(records: pd.DataFrame, ranked: Sequence[Ranked], title: str, metric: str) -> Table:
    varied = [name for name in columns_of(records, "pipeline.") if records[name].nunique() > 1]
    tails = grid.short([name.removeprefix("pipeline.") for name in varied])
    table = Table(title=escape(title), title_justify="left", box=SIMPLE)
    table.add_column("", justify="right")
    for tail in tails.values():
        table.add_column(escape(tail))
    table.add_column(f"{metric} of the teacher's, %", justify="right")
    table.add_column("between trees", justify="right")
    for place, each in enumerate(ranked, 1):
        chosen = [escape(str(each.pipeline[name])) for name in varied]
        table.add_row(str(place), *chosen, f"{100 * each.ratio:.1f}", f"± {100 * each.spread:.1f}")
    return table


def _evidence(records: pd.DataFrame, top: int, seed: int) -> str:
    """Return in a sentence how good such recommendations were on the tasks of the records, each left out in turn."""
    try:
        found = leave_one_task_out(records, top, seed)
    except UserError as error:
        return f"How good such recommendations are is not known. {error}"
    mean = found.mean()
    return (
        f"Left out in turn, the {len(found)} tasks of the records had their {top} recommended pipelines at the mean rank "
        f"{mean['rank']:.1f} of {mean['candidates']:.0f} (random: {mean['random_rank']:.1f}), the best of them at "
        f"{100 * mean['best']:.1f}% (random: {100 * mean['random_best']:.1f}%, best of all: {100 * mean['possible']:.1f}%)."
    )


def _importance(records: pd.DataFrame, factors: Sequence[str]) -> str:
    """Return in a sentence how much of the spread of the ratio each factor of a grid explains."""
    try:
        found = shares(records, factors)
    except UserError as error:
        return f"What each factor explains is not known. {error}"
    told = ", ".join(f"{name.replace('factor.', '')} {100 * share:.1f}%" for name, share in found.items())
    return f"Of the spread over all pipelines and tasks: {told}."
