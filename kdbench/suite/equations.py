"""Where an equation is computed: the object that a claim file names, found in the source without importing it."""

import ast
import functools
import re
from pathlib import Path

from kdbench.errors import UserError, nearest
from kdbench.suite import catalogue

ROOT = catalogue.PACKAGE.parent
_FORM = re.compile(r"(kdbench/[\w/]+\.py):([A-Za-z_][\w.]*)", re.ASCII)


def line(code: str) -> tuple[str, int]:
    """Return file and line of ``kdbench/losses/hints.py:cosine_distance``; a method is ``file.py:Class.method``.

    Raises:
        UserError: it has another form, or there is no such file or object.
    """
    found = _FORM.fullmatch(code)
    if not found:
        raise UserError(f"'{code}' is not 'kdbench/<room>/<file>.py:<function or class>'.")
    file, name = found.groups()
    if not (ROOT / file).is_file():
        raise UserError(f"There is no '{file}'.{nearest(file, _files())}")
    known = _objects(ROOT / file)
    if name not in known:
        raise UserError(f"'{file}' has no '{name}'.{nearest(name, known)}")
    return file, known[name]


@functools.cache
def _objects(file: Path) -> dict[str, int]:
    """Return the line of every function and class of a file, those inside a class by its name and theirs."""
    found = {}
    ahead = [("", each) for each in ast.parse(file.read_text(encoding="utf-8")).body]
    while ahead:
        above, node = ahead.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[above + node.name] = node.lineno
        if isinstance(node, ast.ClassDef):
            ahead += [(f"{above}{node.name}.", each) for each in node.body]
    return found


def _files() -> list[str]:
    return [str(file.relative_to(ROOT)) for file in sorted(catalogue.PACKAGE.rglob("*.py"))]
