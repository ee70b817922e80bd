"""Which classes a config may name by their short names; read from the source text, so that nothing is imported."""

import ast
import functools
from pathlib import Path

from kdbench.errors import UserError, nearest

PACKAGE = Path(__file__).parent.parent
ROOMS = ("methods", "losses", "models", "data", "metrics", "callbacks", "studies")
KINDS = {  # rooms where only what inherits from one of these is for configs
    "models": {"Origin", "Surgery"},
    "methods": {
        *("Evaluation", "Distillation", "LogitDistillation", "Alternating", "DenoisingTraining"),
        *("GenerativeDistillation", "ClosedForm"),
        *("Schedule", "NoiseLevels", "TableLevels", "Route", "Direction"),
    },
}
TORCH = {
    "Adam": "torch.optim.Adam",
    "AdamW": "torch.optim.AdamW",
    "Adafactor": "torch.optim.Adafactor",
    "RMSprop": "torch.optim.RMSprop",
    "SGD": "torch.optim.SGD",
}


@functools.cache
def _room(room: str) -> dict[str, tuple[str, str]]:
    """Return ``{class name: (dotted path, first line of its docstring)}`` of one room of the house.

    Left out is what no config names: abstract classes, plain records, and in some rooms whatever is of another kind (an
    origin names architectures, ours as those of transformers).
    """
    found = {}
    for file in sorted((PACKAGE / room).rglob("*.py")):
        dotted = ".".join(("kdbench", *file.relative_to(PACKAGE).with_suffix("").parts))
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and _nameable(node, room):
                line = (ast.get_docstring(node) or "").partition("\n")[0]
                found[node.name] = (f"{dotted}.{node.name}", line)
    return found


def _nameable(node: ast.ClassDef, room: str) -> bool:
    bases = {ast.unparse(base) for base in node.bases}
    if node.name.startswith("_") or node.decorator_list or bases & {"NamedTuple", "Protocol", "ABC", "abc.ABC"}:
        return False
    return room not in KINDS or bool(bases & KINDS[room])


def classes(*rooms: str) -> dict[str, tuple[str, str]]:
    """Return ``{short name: (dotted path, one line)}`` of the public classes in ``rooms`` (default: all)."""
    return {name: entry for room in rooms or ROOMS for name, entry in _room(room).items()}


@functools.cache
def names() -> dict[str, str]:
    """Return ``{short name: dotted path}`` of everything that a config may name shortly."""
    return TORCH | {name: path for name, (path, _) in classes().items()}


def short(dotted: str) -> str:
    """Return the short name of a class given by its dotted path; a foreign class keeps its path."""
    name = dotted.rpartition(".")[2]
    return name if names().get(name) == dotted else dotted


def resolve(name: str) -> str:
    """Return the dotted path of a class named shortly or in full; raise :class:`UserError` for an unknown short name."""
    if "." in name:
        return name
    if name not in names():
        raise UserError(f"There is no class '{name}'.{nearest(name, names())}")
    return names()[name]
