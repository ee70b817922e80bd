"""Chains: what an experiment needs from other experiments, found or still to be fitted, before Lightning starts."""

import copy
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdbench.data import registry
from kdbench.errors import UserError
from kdbench.files import file_digest
from kdbench.studies.fleet import Draws
from kdbench.suite import catalogue, check, experiment, runs
from kdbench.suite.experiment import Config, Experiment

FROM_RUN = "kdbench.models.origins.FromRun"
FROM_RUNS = "kdbench.studies.fleet.FromRuns"
FROM_TARGETS = "kdbench.models.origins.FromTargets"
HUB_IDS = {  # the arguments of origins that name repositories of the hub
    "kdbench.models.origins.FromHub": ("name",),
    "kdbench.models.text_to_image.FromDiffusers": ("name", "unet"),
    "kdbench.models.text_to_image.FromCLIP": ("name", "vae"),
}
# What cannot change the result is no part of a run's id. References are compared with a student, never learnt from.
IDLE = {
    "trainer": (
        "logger",
        "enable_progress_bar",
        "enable_model_summary",
        "log_every_n_steps",
        "default_root_dir",
        "profiler",
    ),
    "model": ("references",),
    "data": ("num_workers", "eval_batch_size"),
}

DATA_SETS = (
    "dataset",
    "transfer",
    "categories",
)  # the arguments of a DataModule or a study that name one data set, or several
LOSSY = ("dtype", "top_k")  # the settings of the teacher cache that change what the student learns from


@dataclasses.dataclass
class Stage:
    """One fit of a chain: its experiment with all overrides, the stages that it is made from, its id and folder."""

    name: str
    config: Config
    id: str
    folder: Path
    parents: dict[str, "Stage"]
    """The stages by the place in the config that names them."""

    @property
    def record(self) -> dict[str, Any] | None:
        """The record of the run when it is finished."""
        return runs.read_record(self.folder)

    @property
    def references(self) -> dict[str, str]:
        """What each reference of the config is: the run or the folder that the student is compared with."""
        found = arguments(self.config.get("model")).get("references") or {}
        made = {name: self.parents.get(f"model.references.{name}") for name in found}
        return {
            name: f"{run.name}/{run.folder.name}" if (run := made[name]) else runs.digest(each)
            for name, each in found.items()
        }

    @property
    def finished(self) -> bool:
        """Whether it has a record that knows all its references."""
        record = self.record
        return record is not None and self.references.items() <= record.get("references", {}).items()

    def as_json(self) -> Config:
        """Return the stage and its parents as plain values."""
        parents = {place: parent.as_json() for place, parent in self.parents.items()}
        return {"name": self.name, "config": self.config, "id": self.id, "folder": str(self.folder), "parents": parents}

    @classmethod
    def from_json(cls, told: Config) -> "Stage":
        """Return the stage that :meth:`as_json` told."""
        parents = {place: cls.from_json(parent) for place, parent in told["parents"].items()}
        return cls(told["name"], told["config"], told["id"], Path(told["folder"]), parents)

    def walk(self) -> Iterator["Stage"]:
        """Yield every stage of the chain once, deepest first, this one last."""
        seen: set[Path] = set()
        for parent in self.parents.values():
            for stage in parent.walk():
                if stage.folder not in seen:
                    seen.add(stage.folder)
                    yield stage
        yield self

    def alike(self) -> set[Path]:
        """Return the folders of the runs of this stage's fleets, but for the first run of each, which can speak for all."""
        fleets = [
            node["init_args"]["runs"] for _, node in experiment.nodes(self.config) if node["class_path"] == FROM_RUNS
        ]
        return {Path(folder) for fleet in fleets for folder in fleet[1:]}

    def hub(self) -> list[str]:
        """Return every hub id that this stage itself would fetch: networks and data."""
        ids = [
            node["init_args"][key]
            for _, node in experiment.nodes(self.config)
            for key in HUB_IDS.get(node["class_path"], ())
            if node["init_args"].get(key)
        ]
        ids += [each for name, source in _data_sets(self.config) if source == "hub" for each in registry.hub_ids(name)]
        return list(dict.fromkeys(ids))


def plan(
    asked: Experiment,
    fresh: bool = False,
    parents: bool = False,
    _above: tuple[tuple[str, str], ...] = (),
    _source: str | None = None,
) -> Stage:
    """Return the chain of an experiment: every stage with its id, its folder and its place in the configs that name it.

    ``stages: {<file stem>: {...}}`` changes a stage anywhere below; a stage inherits ``data.source`` and the ``stages``
    of the experiment that asks for it; its seed is its own (0 unless its file says otherwise). A fleet is as many stages as it
    has runs. ``fresh`` plans a new attempt where there is a finished one, with ``parents`` also of all that it is made from.
    """
    mark = (asked.name, runs.digest(asked.config))  # an experiment may name itself with other settings
    if mark in _above:
        names = [name for name, _ in (*_above, mark)]
        raise UserError(f"The experiments name each other in a circle: {' -> '.join(names)}.")
    config = copy.deepcopy(asked.config)
    stages = config.pop("stages", {})
    config.setdefault("seed_everything", 0)
    source = arguments(config.get("data")).get("source") or _source  # a study has no DataModule and hands it on
    made_from = {}
    for place, node in experiment.nodes(config):
        found = node.setdefault("init_args", {})
        if node["class_path"] not in (FROM_RUN, FROM_RUNS) or found.get("run") or found.get("runs"):
            continue
        if not found.get("experiment"):
            kind = node["class_path"].rpartition(".")[2]
            raise UserError(f"{asked.name}: '{place}' is a {kind} without 'experiment': name an experiment file.")
        stage = _stage_experiment(asked.root, found.pop("experiment"), found.pop("set", {}), stages, source)
        if node["class_path"] == FROM_RUN:
            made_from[place] = parent = plan(stage, fresh and parents, parents, (*_above, mark), source)
            found["experiment"], found["run"] = parent.name, str(parent.folder)
            continue
        settings = _settings(f"{asked.name}: '{place}'", found.pop("over", None), config["seed_everything"])
        found["settings"] = {key: [setting[key] for setting in settings] for key in settings[0]}
        configs = [experiment.expand(_apply(stage.config, setting)) for setting in settings]
        members = [dataclasses.replace(stage, config=each) for each in configs]
        fleet = [plan(member, fresh and parents, parents, (*_above, mark), source) for member in members]
        made_from |= {f"{place}.{number}": member for number, member in enumerate(fleet)}
        found["experiment"], found["runs"] = fleet[0].name, [str(member.folder) for member in fleet]
    identity = runs.digest(_identity(asked.name, config, made_from))
    folder = runs.home() / asked.name / identity
    return Stage(asked.name, config, identity, _attempt(folder, fresh), made_from)


def arguments(node: Any) -> Config:
    """Return the ``init_args`` of a class node, or an empty dict."""
    return node.get("init_args", {}) if isinstance(node, dict) else {}


def _settings(where: str, over: Any, seed: int) -> list[Config]:
    """Return the setting of each run of a fleet: every combination of the values of its keys."""
    if not isinstance(over, dict) or not over:
        raise UserError(
            f"{where} is a FromRuns without 'over': name a key and its values, {{data.train_rows: [100, 200]}}."
        )
    choices = {key: _values(f"{where}.over.{key}", told, seed) for key, told in dict(_dotted(over)).items()}
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def _dotted(table: Config, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a table of tables, and what they hold."""
    for key, value in table.items():
        if isinstance(value, dict) and "class_path" not in value:
            yield from _dotted(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _values(where: str, told: Any, seed: int) -> list[Any]:
    """Return the values of a key, listed or drawn."""
    if isinstance(told, dict) and "class_path" in told:
        try:
            found = check.load(told["class_path"])(**arguments(told))
            told = found.values(seed) if isinstance(found, Draws) else None
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {error}.") from None
    if not isinstance(told, list) or not told:
        raise UserError(f"{where} holds the values of a setting: a list of one or more, or a class that draws them.")
    return told


def _stage_experiment(root: Path, file: str, change: Config, stages: Config, source: str | None) -> Experiment:
    path = experiment.find(root, file)
    stage = experiment.read(path)
    config = stage.config
    if stages:
        config = experiment.merge(config, {"stages": stages})
    if source and "data" in config:
        config = experiment.override(config, "data.source", source)
    for changes in (stages.get(path.stem) or {}, change):
        config = _apply(config, changes)
    return Experiment(stage.name, stage.root, experiment.expand(config))


def _apply(config: Config, changes: Config) -> Config:
    """Lay changes over a config; their keys may be dotted, and class nodes are entered as on the command line."""
    for key, value in changes.items():
        if isinstance(value, dict) and "class_path" not in value and "init_args" not in value:
            config = _apply(config, {f"{key}.{inner}": each for inner, each in value.items()})
        else:
            config = experiment.override(config, key, value)
    return config


def _identity(name: str, config: Config, parents: dict[str, Stage]) -> Config:
    """Return what decides the result: the config without idle keys and paths, the data's content, the parents' ids.

    Classes go in by their short names, so that a class that moves to another file keeps its runs.
    """
    kept = copy.deepcopy(config)
    for section, keys in IDLE.items():
        node = kept.get(section, {})
        for key in keys:
            (node if section == "trainer" else node.get("init_args", {})).pop(key, None)
    cache = kept.pop("cache", {})
    kept |= {f"cache.{key}": cache[key] for key in LOSSY if cache.get(key) not in (None, "float32")}
    for _, node in experiment.nodes(kept):
        if node["class_path"] in (FROM_RUN, FROM_RUNS):
            for place in ("run", "runs"):
                node["init_args"].pop(place, None)
        if node["class_path"] == FROM_TARGETS:
            node["init_args"]["file"] = _content(Path(node["init_args"]["file"]))
        node["class_path"] = catalogue.short(node["class_path"])
    contents = [registry.fingerprint(name, source) for name, source in _data_sets(config)]
    content = contents[0] if len(contents) == 1 else contents or None
    made_from = {place: stage.id for place, stage in parents.items() if not _is_idle(place)}
    return {"name": name, "config": kept, "data": content, "parents": made_from}


def _data_sets(config: Config) -> list[tuple[str, str]]:
    """Return name and source of each data set that an experiment reads."""
    told = arguments(config.get("data") or config.get("study"))
    names: list[str] = []
    for named in (told[key] for key in DATA_SETS if told.get(key)):
        places = named.values() if isinstance(named, dict) else [named]
        names += dict.fromkeys(str(place).partition(":")[0] for place in places)  # a field may stand behind the name
    return [(name, told.get("source", "embedded")) for name in names]


def _content(file: Path) -> str:
    try:
        return file_digest(file)
    except OSError as error:
        raise UserError(f"The file '{file}' cannot be read: {error.strerror}.") from None


def _is_idle(place: str) -> bool:
    section, _, rest = place.partition(".")
    return rest.partition(".")[0] in IDLE.get(section, ())


def _attempt(folder: Path, fresh: bool) -> Path:
    """Return the newest attempt at a run, or the next one when a fresh start is asked for."""
    made = runs.attempts(folder)
    if fresh and runs.read_record(made[-1]) is not None:
        return folder.with_name(f"{folder.name}-{len(made) + 1}")
    return made[-1]
