"""All errors of a config at once: unknown classes and keys, each in one line with the nearest valid name."""

import importlib
import inspect
import typing
from collections.abc import Callable
from typing import Any

from kdbench.errors import UserError, nearest
from kdbench.suite import experiment
from kdbench.suite.experiment import Config


def check(config: Config) -> None:
    """Raise one :class:`UserError` with a line for every class that does not exist and every key that it does not take."""
    import lightning.pytorch as pl

    from kdbench.callbacks.teacher_cache import TeacherCache

    parts = ("model", "data")
    if "study" in config:
        faults = [f"'{key}:' stands beside 'study:', which needs none." for key in parts if key in config]
    else:
        faults = [f"'{key}:' is missing." for key in parts if key not in config]
    for place, node in experiment.nodes(config):
        faults += _faults_of(place, node)
    known = inspect.signature(pl.Trainer.__init__).parameters.keys() - {"self"}
    for key in config.get("trainer") or {}:
        if key not in known:
            faults.append(f"trainer: there is no key '{key}'.{nearest(key, known)}")
    known = inspect.signature(TeacherCache.__init__).parameters.keys() - {"self", "home"}
    for key in config.get("cache") or {}:
        if key not in known:
            faults.append(f"cache: there is no key '{key}'.{nearest(key, known)}")
    if faults:
        raise UserError("\n".join(faults))


def load(dotted: str) -> Any:
    """Import and return the object of a dotted path; raise :class:`UserError` when there is none."""
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise UserError(f"'{dotted}' cannot be imported: there is no module '{error.name}'.") from None
    except AttributeError:
        names = dir(importlib.import_module(module))
        raise UserError(f"'{module}' has no '{name}'.{nearest(name, names)}") from None


def parameters_of(found: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return what a class or function takes, each key of ``**options: Unpack[Options]`` by its own name."""
    parameters = {}
    for name, each in inspect.signature(found).parameters.items():
        if each.kind is inspect.Parameter.VAR_KEYWORD and typing.get_origin(each.annotation) is typing.Unpack:
            (options,) = typing.get_args(each.annotation)
            for key, kind in options.__annotations__.items():
                parameters[key] = inspect.Parameter(key, each.KEYWORD_ONLY, default=None, annotation=kind)
        else:
            parameters[name] = each
    return parameters


def _faults_of(place: str, node: Config) -> list[str]:
    from torch import nn

    try:
        found = load(node["class_path"])
    except UserError as error:
        return [f"{place}: {error}"]
    bare = getattr(found, "__init__", None) is nn.Module.__init__  # takes nothing, though its signature says anything
    parameters = {} if bare else parameters_of(found)
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return []
    name = node["class_path"].rpartition(".")[2]
    faults = [
        f"{place}: {name} has no argument '{key}'.{nearest(key, parameters)}"
        for key in node.get("init_args", {})
        if key not in parameters
    ]
    faults += [
        f"{place}: '{key}' stands beside 'class_path'; only 'init_args' may.{nearest(key, ['init_args'])}"
        for key in node
        if key not in ("class_path", "init_args")
    ]
    faults += [
        f"{place}: {name} needs '{key}'."
        for key, each in parameters.items()
        if each.default is inspect.Parameter.empty
        and key not in node.get("init_args", {})
        and key != "params"  # an optimiser's, given to it when it is made
        and each.kind is not inspect.Parameter.VAR_POSITIONAL
    ]
    return faults
