"""What a claim says, read without ``eval``: comparisons of arithmetic over the metrics of its arms.

The notation::

    distilled.probe.macro_f1 - plain.probe.macro_f1 > 0.05
    teacher.accuracy >= student.accuracy > plain.accuracy
    -0.01 < full.accuracy - distilled.accuracy < 0.01
    multi.upos.label_loyalty@cased > 2/3
    disback.distance.area < plain.distance.area
    packed.val.loss.first_below(2.5, seconds) <= 0.6 * padded.val.loss.first_below(2.5, seconds)

- A value is ``arm[.task][.split].metric[@network][.reading]``. Without a task it is of the arm's own run. A split is
  ``val``, ``train``, ``test`` (the same as none) or ``run`` (facts of the run: ``arm.run.seconds``); a record writes it
  with a slash, ``val/loss``. The network is ``student`` when none is named; a name may hold its cut-off, ``ndcg@10``.
- A value that a record holds as a curve has readings: ``last`` (also when none is named), ``best`` (at the point that
  validation chose), ``at(x)`` (linear between its points), ``area`` (its mean height over x, by trapezia),
  ``first_below(v)`` and ``first_above(v)`` (the first x beyond v, infinite when there is none). x counts ``steps``;
  ``at(60, seconds)``, ``area(examples)`` and so on choose another axis.
- The arms of a grid may be named together, ``mean(pipe_*_mse_*.accuracy)``: as many values as there are such arms.
- Numbers, ``+ - * / **``, parentheses, ``abs min max mean log10 log2 ln sqrt exp``; ``< <= > >= ==``, also in a chain.
- Everything is per pair: ``abs(a.x - b.x) < 0.01`` bounds the distance in each pair, whereas the chain with -0.01 and
  0.01 above bounds the distance of the means.

Where a value is not a number (NaN, null, ``x / 0``, the root or logarithm of a negative number, a point outside a curve,
a power too large), so is what is made of it. The logarithm of 0 is minus infinity.
"""

import ast
import bisect
import fnmatch
import itertools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from kdbench.errors import UserError, nearest

Curve = Mapping[str, Any]
"""``{"values": [..], "steps": [..], "seconds": [..], "examples": [..], "best": place}``; axes are optional."""
Measured = float | int | None | Curve

SPLITS = ("val", "train", "test", "run")
AXES = ("steps", "seconds", "examples")
READINGS = {
    "last": 0,
    "best": 0,
    "area": 0,
    "at": 1,
    "first_below": 1,
    "first_above": 1,
}  # and how many numbers each takes
LENGTH, DEPTH = 1000, 40  # what a person writes is far shorter; beyond them Python's own parser may give up

_NAME = r"[A-Za-z_]\w*"
_REFERENCE = re.compile(
    rf"(?<![\w.@])(?P<path>{_NAME}(?:\.{_NAME})+)(?P<cutoff>@\d+)?(?:@(?P<network>{_NAME}))?(?:\.(?P<after>{_NAME}))?",
    re.ASCII,
)
_PATTERN = re.compile(rf"(?<![\w.@])(?P<arms>{_NAME}(?:\*\w*)+)(?P<after>\.[\w.@]+)", re.ASCII)
_MARK = "ø"  # begins what stands for a value while Python parses; a claim is ASCII, so nobody can write it


@dataclass(frozen=True)
class Reading:
    """One number of a curve: see the notation."""

    name: str = "last"
    number: float | None = None
    axis: str = "steps"

    def of(self, value: Measured, where: str) -> float:
        """Return the number; a value that is no curve is its own last point.

        Raises:
            UserError: the value is no curve, or lacks the axis or the best point, or its points are out of order.
        """
        if value is None:
            return math.nan
        if not isinstance(value, Mapping):
            if self.name != "last":
                raise UserError(f"'{where}': the records hold one number there and no curve, so it has no {self.name}.")
            return float(value)
        heights = [math.nan if each is None else float(each) for each in value["values"]]
        if self.name == "last":
            return heights[-1] if heights else math.nan
        if self.name == "best":
            if value.get("best") is None:
                raise UserError(f"'{where}': no best point is in the records: read .last, or validate during the fit.")
            return heights[value["best"]]
        if self.axis not in value:
            known = [axis for axis in AXES if axis in value]
            raise UserError(f"'{where}': the records have no {self.axis} of this curve, only {', '.join(known)}.")
        places = [float(each) for each in value[self.axis]]
        if len(places) != len(heights) or places != sorted(places):
            raise UserError(f"'{where}': the {self.axis} of this curve are out of order; its record is damaged.")
        if self.name == "area":
            return _area(places, heights)
        if self.name == "at":
            return _height_at(self.number, places, heights)
        beyond = operator.lt if self.name == "first_below" else operator.gt
        return next((x for x, height in zip(places, heights, strict=True) if beyond(height, self.number)), math.inf)


@dataclass(frozen=True)
class Reference:
    """A value that a claim names; ``text`` is how it does."""

    text: str
    arm: str
    task: str | None
    split: str | None
    metric: str
    network: str | None
    reading: Reading = Reading()

    def keys(self) -> list[str]:
        """Return the names that the value may have in a record, the likeliest first."""
        prefix = "" if self.split in (None, "test") else f"{self.split}/"
        names = [f"{prefix}{self.metric}@{self.network or 'student'}"]
        return names if self.network else [*names, f"{prefix}{self.metric}"]

    def of(self, metrics: Mapping[str, Measured]) -> float:
        """Return the value out of the metrics of one run, NaN where it is missing."""
        found = next((metrics[key] for key in self.keys() if key in metrics), None)
        return self.reading.of(found, self.text)


Lookup = Callable[[Reference], float]
Term = Callable[[Lookup], float]


@dataclass(frozen=True)
class Value:
    """Arithmetic over values; ``of(lookup)`` computes it for one pair."""

    text: str
    of: Term
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class Link:
    """One comparison of a chain."""

    left: Term
    sign: str
    right: Term

    @property
    def strict(self) -> bool:
        """Whether a margin of 0 fails."""
        return self.sign in ("<", ">")

    def margin(self, lookup: Lookup) -> float:
        """Return by how much it holds: the difference of its sides, positive on the right side; ``-|l - r|`` for ``==``."""
        left, right = self.left(lookup), self.right(lookup)
        if left == right:  # also two infinities, whose difference is not a number
            return 0.0
        if self.sign == "==":
            return -abs(left - right)
        return left - right if self.sign in (">", ">=") else right - left


@dataclass(frozen=True)
class Comparison:
    """What a claim says, a chain of one or more links."""

    text: str
    links: tuple[Link, ...]
    references: tuple[Reference, ...]

    def margins(self, lookup: Lookup) -> tuple[float, ...]:
        """Return the margin of every link for one pair."""
        return tuple(link.margin(lookup) for link in self.links)

    def holds(self, lookup: Lookup) -> bool | None:
        """Return whether every link holds for one pair, None where one is not a number."""
        return satisfied(self.margins(lookup), [link.strict for link in self.links])


def satisfied(margins: Sequence[float], strict: Sequence[bool]) -> bool | None:
    """Return whether all margins of one pair are on the right side of 0, None where one is not a number."""
    if any(math.isnan(each) for each in margins):
        return None
    return all(each > 0 or (each == 0 and not sharp) for each, sharp in zip(margins, strict, strict=True))


def read_comparison(text: str, arms: Iterable[str] = ()) -> Comparison:
    """Read what a claim says about arms; raise :class:`UserError` with one sentence where it cannot be read."""
    reader = _Reader(text, arms)
    if not isinstance(reader.body, ast.Compare):
        raise reader.fault("compares nothing: write two sides with <, <=, >, >= or == between them")
    signs = [_SIGNS.get(type(each)) for each in reader.body.ops]
    if None in signs:
        raise reader.fault("may only compare with <, <=, >, >= and ==")
    terms = [reader.term(each) for each in (reader.body.left, *reader.body.comparators)]
    links = tuple(map(Link, terms, signs, terms[1:]))
    return Comparison(text, links, reader.used())


def read_value(text: str, arms: Iterable[str] = ()) -> Value:
    """Read arithmetic that compares nothing, for rows that are shown; raise :class:`UserError` as above."""
    reader = _Reader(text, arms)
    if isinstance(reader.body, ast.Compare):
        raise reader.fault("compares: a row that is shown is one value, such as a difference")
    return Value(text, reader.term(reader.body), reader.used())


def _area(places: list[float], heights: list[float]) -> float:
    """Return the area under a curve by trapezia, divided by its length."""
    if not places or places[0] == places[-1]:
        return heights[-1] if heights else math.nan
    widths = [right - left for left, right in itertools.pairwise(places)]
    means = [(left + right) / 2 for left, right in itertools.pairwise(heights)]
    return sum(map(operator.mul, widths, means)) / (places[-1] - places[0])


def _height_at(place: float, places: list[float], heights: list[float]) -> float:
    """Return the height at a place, linear between its neighbours; not a number outside the curve."""
    if place in places:
        return heights[places.index(place)]
    after = bisect.bisect(places, place)
    if after in (0, len(places)):
        return math.nan
    share = (place - places[after - 1]) / (places[after] - places[after - 1])
    return (1 - share) * heights[after - 1] + share * heights[after]


def _logarithm(function: Callable[[float], float]) -> Callable[[float], float]:
    return lambda number: -math.inf if number == 0 else function(number)


_SIGNS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "=="}
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,  # not **, which leaves the real numbers
}
_SINGLE = {
    "abs": abs,
    "log10": _logarithm(math.log10),
    "log2": _logarithm(math.log2),
    "ln": _logarithm(math.log),
    "sqrt": math.sqrt,
    "exp": math.exp,
}
_SEVERAL = {"min": min, "max": max, "mean": lambda *numbers: math.fsum(numbers) / len(numbers)}
FUNCTIONS = (*_SINGLE, *_SEVERAL)


class _Reader:
    """Turns one expression into terms. Values are replaced by names that Python can parse; all else is checked node by node."""

    def __init__(self, text: str, arms: Iterable[str]) -> None:
        self.text, self.arms = text, list(arms)
        if len(text) > LENGTH:
            raise self.fault(f"is longer than {LENGTH} characters: make several claims of it")
        if not text.isascii() or "#" in text:
            raise self.fault("holds a character that has no place in it: plain ASCII, >= in two characters, no comment")
        self.references: list[Reference] = []
        marked = _REFERENCE.sub(self._mark, _PATTERN.sub(self._named, text))
        try:
            self.body = ast.parse(" ".join(marked.split()), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            raise self.fault("cannot be read: check its parentheses and signs") from None

    def fault(self, what: str) -> UserError:
        """Return the error with the sentence about this expression."""
        shown = self.text if len(self.text) <= 100 else f"{self.text[:97]}..."
        return UserError(f"'{shown}' {what}.")

    def _named(self, found: re.Match[str]) -> str:
        names = fnmatch.filter(self.arms, found["arms"])
        if not names:
            raise self.fault(f"means arms named like '{found['arms']}', and there is none")
        return ", ".join(f"{name}{found['after']}" for name in names)

    def used(self) -> tuple[Reference, ...]:
        """Return the values that were read, each once."""
        if not self.references:
            raise self.fault("names no arm: a value is written arm.metric or arm.task.metric")
        return tuple(dict.fromkeys(self.references))

    def term(self, node: ast.AST, depth: int = 0) -> Term:
        """Return the function that computes a node from a lookup."""
        if depth > DEPTH:
            raise self.fault("is nested too deeply: make several claims of it")
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return self._constant(number)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return _applied(operator.neg, [self.term(inner, depth + 1)])
            case ast.BinOp(op=sign, left=left, right=right) if type(sign) in _OPERATORS:
                return _applied(_OPERATORS[type(sign)], [self.term(each, depth + 1) for each in (left, right)])
            case ast.Name(id=name) if name.startswith(_MARK):
                return self._value(name, [])
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name.startswith(_MARK):
                return self._value(name, arguments)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(name, [self.term(each, depth + 1) for each in arguments])
            case ast.Name(id=name):
                raise self.fault(f"has '{name}' without an arm: write arm.{name}")
        raise self.fault(
            f"may hold numbers, values (arm.metric), + - * / **, parentheses and {', '.join(FUNCTIONS)}, nothing else"
        )

    def _constant(self, number: float) -> Term:
        try:
            value = float(number)
        except OverflowError:
            raise self.fault("holds a number that is too large") from None
        return lambda lookup: value

    def _call(self, name: str, terms: list[Term]) -> Term:
        if name not in FUNCTIONS:
            raise self.fault(
                f"calls '{name}', which is no function here.{nearest(name, FUNCTIONS)} There are {', '.join(FUNCTIONS)}"
            )
        if name in _SINGLE and len(terms) != 1:
            raise self.fault(f"gives {len(terms)} values to {name}, which takes one")
        if name in _SEVERAL and len(terms) < 2:
            raise self.fault(f"gives {len(terms)} values to {name}, which takes two or more")
        return _applied((_SINGLE | _SEVERAL)[name], terms)

    def _value(self, mark: str, arguments: Sequence[ast.AST]) -> Term:
        place = int(mark.removeprefix(_MARK))
        reference = self.references[place]
        reading = self._reading(reference, arguments)
        text = reference.text if not arguments else f"{reference.text}({', '.join(map(ast.unparse, arguments))})"
        read = replace(reference, text=text, reading=reading)
        self.references[place] = read
        return lambda lookup: lookup(read)

    def _reading(self, reference: Reference, arguments: Sequence[ast.AST]) -> Reading:
        name = reference.reading.name
        axis = "steps"
        match arguments:
            case [*rest, ast.Name(id=word)] if name not in ("last", "best") and not word.startswith(_MARK):
                axis, arguments = word, rest
        if axis not in AXES:
            raise self.fault(
                f"reads '{reference.text}' along '{axis}'.{nearest(axis, AXES)} The axes are {', '.join(AXES)}"
            )
        if len(arguments) != READINGS[name]:
            form = f"{name}(number)" if READINGS[name] else name
            raise self.fault(f"reads '{reference.text}' with {len(arguments)} numbers: write .{form}")
        return Reading(name, self.term(arguments[0])(_no_value) if arguments else None, axis)

    def _mark(self, found: re.Match[str]) -> str:
        path, reading = found["path"].split("."), found["after"]
        if reading is None and not found["cutoff"] and not found["network"] and path[-1] in READINGS:
            reading = path.pop()
        if reading is not None and reading not in READINGS:
            raise self.fault(
                f"reads '.{reading}' of a value.{nearest(reading, READINGS)} There are {', '.join(READINGS)}"
            )
        arm, *middle = path[:-1] or ["", ""]
        split = middle.pop() if middle and middle[-1] in SPLITS else None
        if len(path) < 2 or len(middle) > 1:
            raise self.fault(f"has '{found[0]}', and a value is arm[.task][.split].metric[@network][.reading]")
        task = middle[0] if middle else None
        metric = path[-1] + (found["cutoff"] or "")
        self.references.append(
            Reference(found[0], arm, task, split, metric, found["network"], Reading(reading or "last"))
        )
        return f" {_MARK}{len(self.references) - 1} "


def _no_value(reference: Reference) -> NoReturn:
    raise UserError(f"'{reference.text}' stands where a reading takes a plain number.")


def _applied(function: Callable[..., float], terms: Iterable[Term]) -> Term:
    terms = tuple(terms)

    def value(lookup: Lookup) -> float:
        numbers = [term(lookup) for term in terms]
        if any(math.isnan(number) for number in numbers):  # min, max and 0 powers would swallow it
            return math.nan
        try:
            return float(function(*numbers))
        except (ArithmeticError, ValueError):
            return math.nan

    return value
