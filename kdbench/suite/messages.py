"""Faults of libraries, told in one sentence."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from kdbench.errors import nearest, refused_by_disk
from kdbench.suite import catalogue, check
from kdbench.suite.experiment import Config

IDLE_WARNINGS = (
    r"\s*Unable to serialize instance",
    "LightningCLI's args parameter is intended",
    ".*does not have many workers.*",
    ".*`val_dataloader` but have no `validation_step`.*",
    ".*`LightningModule.configure_optimizers` returned `None`.*",
    ".*You have overridden `[a-z_]*` in `LightningModule`.*",
    "Be aware that when using `ckpt_path`",
    "Using ModelCheckpoint with manual optimization",
    ".*GPU available but not used.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*Trying to infer the `batch_size`.*",
    ".*The `srun` command is available.*",
    ".*is not supported in .* exists but is not a directory.*",
    ".*Found .* module\\(s\\) in eval mode.*",
    ".*You're resuming from a checkpoint that ended before the epoch ended.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)

_KEY = re.compile(r'Parser key "([^"]+)":')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_NAME = re.compile(r"Expected a dot import path string: (\w+)")
_VALUE = re.compile(r"(?:Got|Given) value: (.*?)(?:\. Got value:|$)")
_SCAFFOLD = re.compile(
    r"$|Does not validate|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|Expected a (?:dot import )?path"
)
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "dict": "a dict of names and values",
}


def config_fault(error: Exception, config: Config) -> str:
    """Return what is wrong with a config and where, out of jsonargparse's account of every type that it tried."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    keys: list[str] = []
    owner = ""
    for number, line in enumerate(lines):
        if found := _KEY.search(line):
            keys += found[1].split(".")
        elif found := _CLASS.search(line):
            owner = found[1]
        elif not _SCAFFOLD.match(line):
            return _sentence(line, lines[number + 1 :], keys, owner, config)
    if unknown := _NAME.search(str(error)):
        return f"{_place(config, keys, unknown[1])}: there is no class '{unknown[1]}'.{nearest(unknown[1], catalogue.names())}"
    return f"{'.'.join(keys)}: {type(error).__name__}."


def trainer_fault(error: Exception) -> str:
    """Return what Lightning says of settings that do not go together."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"trainer: {first} Change the settings under 'trainer:'."


def runtime_fault(error: Exception, folder: Path) -> str | None:
    """Return the sentence for a fault of a run in ``folder`` that the user can mend, None for a bug."""
    if why := refused_by_disk(error):
        return (
            f"'{folder}' cannot be written ({why}); what lay there is intact: make room, and the same command resumes."
        )
    if isinstance(error, PermissionError):
        return f"'{error.filename or folder}' cannot be opened: {error.strerror}."
    text = str(error)
    if "Error(s) in loading state_dict" in text or "loaded state dict" in text:
        first = next((line.strip() for line in text.splitlines()[1:] if line.strip()), text).rstrip(".")
        return (
            f"The checkpoint in '{folder}' belongs to another architecture ({first}): remove it, and the same command "
            "starts anew."
        )
    if "checkpoint contains only the model" in text:
        return f"'{folder}' holds the weights of a finished run without its record: remove it, and the same command starts anew."
    if isinstance(error, (ValueError, MisconfigurationException)) and _raised_by_lightning(error):
        return trainer_fault(error)
    return None


def _sentence(leaf: str, rest: list[str], keys: list[str], owner: str, config: Config) -> str:
    if unknown := re.match(r"Option '([\w.]+)' is not accepted", leaf):
        place = _place(config, [*keys, unknown[1]]).removesuffix(f".{unknown[1]}")
        known = check.parameters_of(check.load(owner)) if owner else ()
        return f"{place}: there is no key '{unknown[1]}'.{nearest(unknown[1], known)}"
    place = _place(config, keys)
    if missing := re.match(r"the following arguments are required: (.+)", leaf):
        return f"{place}: {catalogue.short(owner).rpartition('.')[2]} needs '{missing[1]}'."
    if foreign := re.match(r"Import path (\S+) does not correspond to a subclass of (\w+)", leaf):
        return f"{place}: {catalogue.short(foreign[1])} is no {foreign[2]}."
    values = [found[1] for line in (leaf, *rest) if (found := _VALUE.search(line))]
    given = values[0] if values else None
    if kind := re.match(r"Not a valid subclass of (\w+)", leaf):
        return f"{_place(config, keys, given)}: expected a class of the kind {kind[1]}, got {given!r}."
    if leaf.startswith("Expected a"):
        kinds, near = _expected([leaf, *rest], given or "")
        return f"{_place(config, keys, given)}: expected {kinds}, got {given!r}.{near}"
    if not keys:  # a class refused its arguments in its own words
        place = _refusing(config, leaf)
    text = leaf if leaf.endswith((".", "?")) else f"{leaf}."
    return f"{place}: {text}" if place else text


def _expected(lines: list[str], given: str) -> tuple[str, str]:
    """Return what was expected, as people say it, and the nearest of the words that were possible."""
    kinds, words = [], []
    for line in lines:
        if not line.startswith("Expected a") or _SCAFFOLD.match(line):
            break
        kind = re.match(r"Expected an? (?:typing\.)?(.+?)(?:\. Got value:.*)?$", line)[1]
        if kind.startswith("Literal["):
            words += [each.strip(" '") for each in kind.removeprefix("Literal[").removesuffix("]").split(",")]
        else:
            name = re.sub(r"<class '(.+)'>", r"\1", kind)
            kinds.append(_KINDS.get(name, name))
    kinds.sort()  # typing keeps one object for a union in whichever order it was written first
    if words:
        kinds.append(f"one of {', '.join(dict.fromkeys(words))}")
    return " or ".join(dict.fromkeys(kinds)), nearest(given, words)


def _place(config: Config, keys: list[str], value: str | None = None) -> str:
    """Return the first place of a config that lies below ``keys``, and holds ``value`` when one is given."""
    for place, found in _places(config):
        parts = iter(place.split("."))
        if all(key in parts for key in keys) and value in (None, str(found)):
            return place
    return ".".join(keys)


def _places(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted place of a config and what is there, outermost first."""
    yield where, node
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _places(value, where if key == "init_args" else f"{where}.{key}".lstrip("."))


def _refusing(config: Config, fault: str) -> str | None:
    """Return the place of the innermost class that refuses its arguments with this fault."""
    from kdbench.methods.objective import Term

    for place, node in reversed(list(_places(config))):
        if isinstance(node, dict) and "class_path" in node:
            made, given = check.load(node["class_path"]), node.get("init_args", {})
        elif isinstance(node, dict) and "loss" in node:
            made, given = Term, node
        else:
            continue
        try:
            made(**given)
        except ValueError as error:
            if str(error).partition(", got")[0] in fault:
                return place
        except Exception:  # it takes other classes as arguments, which are not built here
            continue
    return None


def _raised_by_lightning(error: Exception) -> bool:
    """Tell whether Lightning itself raised an error, and not what it calls: then a setting of the trainer is wrong."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals.get("__name__", "").startswith("lightning.")
