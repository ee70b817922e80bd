"""Experiment files: how they are read, layered and changed, before anything is imported or built.

The rules of layering (``--config a.yaml --config b.yaml``, ``base:``, ``stages:``, ``--key value``), all the same:
dicts merge deeply; a changed ``class_path`` replaces its whole node; ``null`` deletes an entry; lists replace. What stands
under ``stages`` and ``set`` are changes to other experiments: there a ``null`` is kept, to delete when they are applied.
jsonargparse's own layering drops the sibling keys of dict-typed arguments and lets arguments of the old class leak into
the new one, so files are merged here and LightningCLI is given one finished config.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdbench.errors import UserError, nearest
from kdbench.suite import catalogue

Config = dict[str, Any]
DEFAULTS = Path(__file__).parent.parent / "defaults.yaml"
CHANGES = frozenset({"stages", "set"})
TOP = ("base", "model", "data", "study", "trainer", "cache", "fit", "seed_everything", "stages")


@dataclass(frozen=True)
class Experiment:
    """A merged experiment: its ``name`` (``distilbert_ro/upos``), the ``root`` its paths start from, its ``config``."""

    name: str
    root: Path
    config: Config


@dataclass(frozen=True)
class Request:
    """An experiment as a person asks for it: its files, and dotted changes in the order in which they are laid over it."""

    files: tuple[str, ...]
    changes: Config

    def read(self) -> Experiment:
        """Return the experiment with the changes laid over it."""
        return read(*self.files, overrides=list(self.changes.items()))

    def words(self) -> list[str]:
        """Return what follows ``kdbench fit`` on a command line that asks for the same run."""
        told = [word for file in self.files for word in ("--config", file)]
        for key, value in self.changes.items():
            name = "seed" if key == "seed_everything" else key
            told.append(f"--{name}={json.dumps(value, ensure_ascii=False)}")
        return told


def read(*files: str | Path, overrides: list[tuple[str, Any]] | None = None) -> Experiment:
    """Read the first file, lay the others over it, apply the dotted ``overrides``; the first one gives the name."""
    first = Path(files[0])
    config: Config = _load(DEFAULTS)
    for file in files:
        config = merge(config, _read_with_base(Path(file)))
    for key, value in overrides or []:
        config = override(config, key, value)
    name, root = _name_and_root(first)
    return Experiment(name, root, expand(config))


def merge(below: Any, above: Any, changes: bool = False) -> Any:
    """Lay ``above`` over ``below`` by the rules of this module and return the result; neither is changed.

    ``changes`` says that both are changes to another experiment.
    """
    if isinstance(below, str) and below in catalogue.names():
        below = {"class_path": below}
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return _without_null(above, changes)
    if "class_path" in above and _path(above) != _path(below):
        return _without_null(above, changes)
    result = copy.deepcopy(below)
    for key, value in above.items():
        kept = changes or key in CHANGES
        if value is None and not changes:
            result.pop(key, None)
        else:
            result[key] = merge(result[key], value, kept) if key in result else _without_null(value, kept)
    return result


def override(config: Config, key: str, value: Any) -> Config:
    """Set one dotted ``key``; ``class_path`` nodes are entered by themselves (``data.source``, ``model.objective.soft.weight``)."""
    result = copy.deepcopy(config)
    node, parts = result, key.split(".")
    for place, part in enumerate(parts):
        changes = not CHANGES.isdisjoint(parts[:place])
        node = _enter(node, part)
        if isinstance(node, list):
            if not part.lstrip("-").isdigit() or not -len(node) <= int(part) < len(node):
                raise UserError(f"'{key}': '{part}' is no place in a list of {len(node)}.")
            part = int(part)
        elif not isinstance(node, dict):
            raise UserError(f"'{key}': '{'.'.join(parts[:place])}' holds a plain value and has no '{part}'.")
        if place < len(parts) - 1:
            if isinstance(node, dict) and not isinstance(node.get(part), (dict, list)):
                name = node.get(part)
                node[part] = {"class_path": name} if isinstance(name, str) and name in catalogue.names() else {}
            node = node[part]
        elif isinstance(node, list):
            node[part] = merge(node[part], value, changes)
        elif value is None and not changes:
            node.pop(part, None)
        else:
            node[part] = merge(node.get(part), value, changes or part in CHANGES)
    return result


def expand(node: Any) -> Any:
    """Return the config with every class in full: short names become dotted paths, a bare class name becomes a node."""
    if isinstance(node, dict):
        full = {key: value if key == "class_path" else expand(value) for key, value in node.items()}
        if "class_path" in full:
            full["class_path"] = catalogue.resolve(str(full["class_path"]))
        return full
    if isinstance(node, list):
        return [expand(each) for each in node]
    if isinstance(node, str) and node in catalogue.names():
        return {"class_path": catalogue.names()[node]}
    return node


def nodes(node: Any, where: str = "") -> Iterator[tuple[str, Config]]:
    """Yield ``(dotted place, node)`` of every node with a ``class_path``, outermost first."""
    if isinstance(node, dict):
        if "class_path" in node:
            yield where, node
        for key, value in node.items():
            inner = where if key == "init_args" else f"{where}.{key}".lstrip(".")
            yield from nodes(value, inner)
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from nodes(value, f"{where}.{place}")


def find(root: Path, file: str) -> Path:
    """Return the path of an experiment that another one names: from that one's root, else from the current folder."""
    path = root / file
    return path if path.exists() else Path(file)


def _read_with_base(file: Path) -> Config:
    config = _load(file)
    if base := config.pop("base", None):
        _, root = _name_and_root(file)
        beside = file.parent / base
        config = merge(_read_with_base(beside if beside.exists() else find(root, base)), config)
    return config


def _load(file: Path) -> Config:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(str(each) for each in Path("experiments").rglob("*.yaml"))
        raise UserError(f"There is no config file '{file}'.{nearest(str(file), known)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The config file '{file}' cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"The config file '{file}'{line} is not YAML: {getattr(error, 'problem', error)}.") from None
    if not isinstance(config, dict):
        raise UserError(f"The config file '{file}' must hold keys such as 'model:' and 'data:'.")
    for key in config:
        if key not in TOP:
            raise UserError(f"{file}: there is no key '{key}' at the top of an experiment.{nearest(str(key), TOP)}")
    return config


def _name_and_root(file: Path) -> tuple[str, Path]:
    parts = file.absolute().parts
    if "experiments" in parts:
        last = len(parts) - 1 - parts[::-1].index("experiments")
        return str(Path(*parts[last + 1 :]).with_suffix("")), Path(*parts[:last])
    return file.stem, Path.cwd()


def _enter(node: Any, part: str) -> Any:
    """Step into ``init_args`` of a class node, unless the key names the node itself."""
    if isinstance(node, dict) and "class_path" in node and part not in ("class_path", "init_args"):
        return node.setdefault("init_args", {})
    return node


def _path(node: Config) -> str | None:
    name = node.get("class_path")
    return catalogue.names().get(name, name) if isinstance(name, str) else None


def _without_null(node: Any, changes: bool = False) -> Any:
    """Return a copy without the entries that are null (above nothing, a deletion deletes nothing), unless they are changes."""
    if isinstance(node, dict):
        kept = node.items() if changes else ((key, value) for key, value in node.items() if value is not None)
        return {key: _without_null(value, changes or key in CHANGES) for key, value in kept}
    return copy.deepcopy(node)
