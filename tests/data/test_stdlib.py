"""Functions of the standard library: what becomes a row, which rows there are, and that no package is in two splits."""

import ast
import os
import subprocess
import sys
from collections import Counter

import pytest

from kdbench.data.readers.stdlib import LINES, PER_PACKAGE, WORDS, documented
from kdbench.data.registry import SPLITS, fingerprint, load

DATASET = "code/stdlib_functions"
SOURCE = '''
import functools

@functools.cache
def outer(a, b):
    """Return the sum of both, slowly.

    More is told here.
    """
    def inner():  # a comment that stays
        "Add one to the other number."
        total = a
        total += b
        return total
    return inner()

class Thing:
    if True:
        async def wait(self):
            r"""Wait until something has happened."""
            self.a = 1

            return self.a

    def terse(self):
        """Too short."""
        one = 1
        two = 2
        return one + two

    def short(self):
        """Return what is hardly a body."""
        return 1, 2

    def line(self): """Return all that is in one line."""; return 1
'''


@pytest.fixture(scope="module")
def rows():
    return {split: load(DATASET, "embedded", split) for split in SPLITS}


def test_what_becomes_a_row():
    found = list(documented(SOURCE))
    assert [row["query"] for row in found] == [
        "Return the sum of both, slowly.",
        "Add one to the other number.",
        "Wait until something has happened.",
    ]
    outer, inner, wait = (row["code"] for row in found)
    assert outer.startswith("def outer(a, b):\n    def inner():  # a comment that stays\n")
    assert inner == ("def inner():  # a comment that stays\n    total = a\n    total += b\n    return total"), (
        "the code begins at the margin, without its docstring"
    )
    assert wait == "async def wait(self):\n    self.a = 1\n\n    return self.a"
    assert list(documented("x = 1\n")) == []


def test_every_row_is_a_function_without_its_docstring(rows):
    for split in SPLITS:
        for row in rows[split]:
            assert set(row) == {"query", "code", "package"}
            assert len(row["query"].split()) >= WORDS and "\n" not in row["query"]
            (function,) = ast.parse(row["code"]).body
            assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            assert row["code"].startswith(("def ", "async def "))
            assert len(row["code"].splitlines()) > LINES


def test_no_package_is_in_two_splits_and_the_shares_are_eight_one_and_one(rows):
    packages = {split: Counter(row["package"] for row in rows[split]) for split in SPLITS}
    assert sum(len(found) for found in packages.values()) == len(set().union(*packages.values()))
    assert max(count for found in packages.values() for count in found.values()) <= PER_PACKAGE
    sizes = [len(rows[split]) for split in SPLITS]
    assert sum(sizes) > 2000
    assert [size / sum(sizes) for size in sizes] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    assert all(len(found) > 20 for found in packages.values()), "a split is not made of a few large packages"
    named = set().union(*packages.values())
    assert {"asyncio", "json", "argparse"} <= named and not {"test", "idlelib", "site-packages"} & named


def test_every_query_and_every_code_is_there_once(rows):
    for field in ("query", "code"):
        values = [row[field] for split in SPLITS for row in rows[split]]
        assert len(set(values)) == len(values)


def test_rows_do_not_depend_on_the_process():
    code = f"from kdbench.data.registry import fingerprint; print(fingerprint({DATASET!r}, 'embedded'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == fingerprint(DATASET, "embedded")
