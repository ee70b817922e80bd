"""Docstrings and functions of Python's own standard library: pairs of a text and the code that it describes.

A row is one function of the interpreter's library folder: ``query`` is the first line of its docstring, ``code`` its source
without decorators and docstring, ``package`` the module or package at the top of its path. Which rows there are depends on
the version of Python, and so does the fingerprint of the data.
"""

import ast
import functools
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from kdbench.data.readers.published import digest
from kdbench.data.registry import SPLITS, Row

SKIPPED = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__"}
WORDS, LINES = 4, 3  # of a query and of a body, at least
PER_PACKAGE = 200  # rows at most
TENTHS = (8, 1, 1)  # of the rows, for training, validation and test

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(split: str, count: int | None = None) -> list[Row]:
    """Return the rows of a split, or the first ``count`` of them; every package is in one split only."""
    return _rows()[split][:count]


@functools.cache
def _rows() -> dict[str, list[Row]]:
    """Return the rows of every split.

    The packages come in the order of a hash of their names, and each goes to the split that it leaves least filled.
    """
    packages: dict[str, list[Row]] = {}
    for row in _distinct(_library()):
        packages.setdefault(row["package"], []).append(row)
    found: dict[str, list[Row]] = {split: [] for split in SPLITS}
    shares = dict(zip(SPLITS, TENTHS, strict=True))
    for package in sorted(packages, key=digest):
        rows = sorted(packages[package], key=lambda row: digest(row["code"]))[:PER_PACKAGE]
        found[min(SPLITS, key=lambda split: (len(found[split]) + len(rows)) / shares[split])] += rows
    return found


def _library() -> Iterator[Row]:
    """Yield a row for each documented function of the standard library, file by file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for folder, below, names in os.walk(root):
        below[:] = sorted(set(below) - SKIPPED)
        for name in sorted(names):
            if name.endswith(".py"):
                path = Path(folder, name)
                package = path.relative_to(root).parts[0].removesuffix(".py")
                yield from ({**row, "package": package} for row in documented(path.read_text(encoding="utf-8")))


def documented(source: str) -> Iterator[Row]:
    """Yield ``query`` and ``code`` of each function of a source text whose docstring and body are long enough."""
    if not any(quotes in source for quotes in ('"""', "'''")):  # parsing is most of the work
        return
    lines = source.splitlines()
    for function in _functions(ast.parse(source).body):
        docstring, first = ast.get_docstring(function) or "", function.body[0]
        query = docstring.strip().partition("\n")[0].strip()
        if (
            len(query.split()) < WORDS
            or function.end_lineno - first.end_lineno < LINES
            or first.lineno == function.lineno
        ):
            continue
        code = lines[function.lineno - 1 : first.lineno - 1] + lines[first.end_lineno : function.end_lineno]
        margin = lines[function.lineno - 1][: function.col_offset]
        yield {"query": query, "code": "\n".join(line.removeprefix(margin) for line in code)}


def _functions(body: list[ast.stmt]) -> Iterator[Function]:
    """Yield the functions of a list of statements and of all that they hold, in the order of the text."""
    for statement in body:
        if isinstance(statement, Function):
            yield statement
        for part in ("body", "handlers", "orelse", "finalbody"):
            yield from _functions(getattr(statement, part, []))


def _distinct(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield the rows whose query and code no earlier row has: every query has one answer, in one split."""
    seen: set[str] = set()
    for row in rows:
        if not {row["query"], row["code"]} & seen:
            yield row
        seen |= {row["query"], row["code"]}
