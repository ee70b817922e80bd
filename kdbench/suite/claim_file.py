"""Reading a claim file: every fault at once, a line each, with the nearest valid name."""

import fnmatch
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.errors import UserError, nearest
from kdbench.suite import equations, experiment, expressions
from kdbench.suite.claims import (
    OWN,
    SEEDS,
    SOURCES,
    Arm,
    Best,
    Budget,
    Claim,
    ClaimFile,
    Equation,
    Reported,
    Row,
    Shown,
    Task,
)
from kdbench.suite.experiment import Config
from kdbench.suite.expressions import Comparison, Value
from kdbench.suite.report import read_yaml
from kdbench.suite.statistics import EVERY, Share


def load(path: str | Path) -> ClaimFile:
    """Read a claim file; raise one :class:`UserError` with a line for every fault in it.

    Paths of experiments start at the folder that holds ``leaderboards/``, else at the current one.
    """
    path = Path(path)
    sheet = _Sheet(read_yaml(path), root(path))
    file = sheet.file()
    if sheet.faults:
        raise UserError("\n".join(f"{path}: {fault}" for fault in sheet.faults))
    return file


def root(path: Path) -> Path:
    """Return the folder that the paths in a claim file start from."""
    homes = [folder.parent for folder in path.absolute().parents if folder.name == "leaderboards"]
    return homes[0] if homes else Path.cwd()


_TEXT, _TABLE, _LIST, _NAMES = "a text", "a table of one name or more", "a list of tables", "a list of names"
_TEXTS = "a list of texts"
_COUNT, _SHARE, _LEVEL, _FLAG = (
    "a whole number above 0",
    "a number, 0 or more",
    "a number between 0 and 1",
    "true or false",
)
_FITS: dict[str, Callable[[Any], bool]] = {
    _TEXT: lambda told: isinstance(told, str) and bool(told.strip()),
    _TABLE: lambda told: isinstance(told, dict) and bool(told) and all(isinstance(key, str) for key in told),
    _LIST: lambda told: isinstance(told, list) and bool(told) and all(isinstance(each, dict) for each in told),
    _NAMES: lambda told: isinstance(told, list) and all(isinstance(each, str) for each in told),
    _TEXTS: lambda told: isinstance(told, list) and bool(told) and all(_FITS[_TEXT](each) for each in told),
    _COUNT: lambda told: type(told) is int and told > 0,
    _SHARE: lambda told: type(told) in (int, float) and told >= 0,
    _LEVEL: lambda told: type(told) in (int, float) and 0 < told < 1,
    _FLAG: lambda told: type(told) is bool,
}
_PROSE = {"title": _TEXT, "source_of_claim": _TEXT, "statement": _TEXT, "recipe": _TEXT}
_PARTS = {
    "arms": _TABLE,
    "tasks": _TABLE,
    "stages": _TABLE,
    "over": _TABLE,
    "claims": _TABLE,
    "report": _TABLE,
    "budget": _LIST,
    "equations": _LIST,
    "differences": _TEXTS,
}
_TOP = _PROSE | {"seeds": _COUNT, "source": _TEXT, "level": _LEVEL, "reported": _TABLE} | _PARTS
_NEEDED = (*_PROSE, "seeds", "source", "reported", "arms", "claims")
_RUN = {"experiment": _TEXT, "set": _TABLE, "source": _TEXT}
_ARM = _RUN | {
    "stages": _TABLE,
    "seeds": _TEXT,
    "fit": _FLAG,
    "best": _TABLE,
    "teachers": _NAMES,
    "says": _TEXT,
    "levels": _TABLE,
}
_TASK = _RUN | {"metric": _TEXT, "shown": _TEXT, "loyalty": _NAMES, "arms": _NAMES}
_BEST = {"of": _LIST, "by": _TEXT, "order": _TEXT, "keep": _COUNT}
_CLAIM = {"says": _TEXT, "expect": _TEXT, "judged": _TEXT, "pairs": _TEXT, "premise": _NAMES}
_SHOWN = {"shows": _TEXT, "value": _TEXT, "pairs": _TEXT}
_EQUATION = {"says": _TEXT, "equation": _TEXT, "code": _TEXT}
_BUDGET = {"equal": _TEXT, "arms": _NAMES, "within": _SHARE}


class _Sheet:
    """Reads the tables of a claim file one after another and notes every fault on the way."""

    def __init__(self, told: Any, root: Path) -> None:
        self.faults: list[str] = []
        self.root = root
        self.top = self.table("the file", told, _TOP, _NEEDED)
        folder = experiment.find(root, "experiments")
        self.stems = {file.stem for file in folder.rglob("*.yaml")}

    def file(self) -> ClaimFile | None:
        """Return the whole file, None when it has a fault."""
        self.top["arms"] = dict(self.grids())
        self.arms = self.part("arms", self.arm)
        self.tasks = self.part("tasks", self.task)
        parts = {
            "arms": self.arms,
            "tasks": self.tasks,
            "claims": self.part("claims", self.claim),
            "report": self.part("report", self.shown),
            "reported": self.reported(self.top.get("reported", {})),
            "budget": tuple(self.budget(place, each) for place, each in enumerate(self.top.get("budget", ()), 1)),
            "equations": tuple(
                self.equation(place, each) for place, each in enumerate(self.top.get("equations", ()), 1)
            ),
        }
        self.among("source", [self.top.get("source")], SOURCES)
        self.stages("stages", self.top.get("stages", {}))
        self.over()
        self.trials()
        self.circles(parts["claims"])
        return None if self.faults else ClaimFile(**self.top | parts)

    def table(self, where: str, told: Any, kinds: dict[str, str], needed: Sequence[str] = ()) -> Config:
        """Return what is right of a table, lists as tuples."""
        if not _FITS[_TABLE](told):
            self.faults.append(f"{where} must be {_TABLE}, not {_brief(told)}.")
            return {}
        self.faults += [f"{where}: there is no key '{key}'.{nearest(key, kinds)}" for key in told if key not in kinds]
        self.faults += [f"{where}: '{key}' is missing." for key in needed if key not in told]
        known = {key: value for key, value in told.items() if key in kinds}
        wrong = [key for key, value in known.items() if not _FITS[kinds[key]](value)]
        self.faults += [f"{where}: '{key}' must be {kinds[key]}, not {_brief(known[key])}." for key in wrong]
        return {
            key: tuple(value) if isinstance(value, list) else value for key, value in known.items() if key not in wrong
        }

    def part(self, section: str, read: Callable[[str, str, Any], Any]) -> dict[str, Any]:
        """Return what ``read`` makes of each entry of a section, by its name."""
        return {name: read(f"{section}.{name}", name, told) for name, told in self.top.get(section, {}).items()}

    def among(self, where: str, names: Iterable[str | None], known: Iterable[str]) -> None:
        """Note the names that are told and not known."""
        known = list(known)
        choice = f" Choose {', '.join(known)}." if 0 < len(known) < 9 else ""
        for name in names:
            if name is not None and name not in known:
                self.faults.append(f"{where}: there is no '{name}'.{nearest(name, known)}{choice}")

    def name(self, where: str, name: str) -> None:
        """Note a name that an expression could not hold."""
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or name in (OWN, *expressions.SPLITS):
            self.faults.append(
                f"{where}: a name is letters, digits and _, and none of {OWN}, {', '.join(expressions.SPLITS)}."
            )

    def run(self, where: str, kept: Config) -> None:
        """Note what is wrong with an experiment, its overrides and its source."""
        self.among(f"{where}.source", [kept.get("source")], SOURCES)
        if "experiment" in kept:
            try:
                file = experiment.find(self.root, kept["experiment"])
                experiment.read(file, overrides=list(kept.get("set", {}).items()))
            except UserError as error:
                self.faults.append(f"{where}: {error}")

    def stages(self, where: str, stages: Config) -> None:
        """Note stages that bear the name of no experiment's file."""
        self.among(where, stages, sorted(self.stems))
        for stem, changes in stages.items():
            if not _FITS[_TABLE](changes):
                self.faults.append(f"{where}: '{stem}' must be {_TABLE}, not {_brief(changes)}.")

    def grids(self) -> Iterator[tuple[str, Any]]:
        """Yield the arms as told, and in the place of one with a ``grid`` an arm for each combination of its levels."""
        for name, told in self.top.get("arms", {}).items():
            if not isinstance(told, dict) or "grid" not in told:
                yield name, told
                continue
            common = {key: value for key, value in told.items() if key != "grid"}
            factors = told["grid"] if _FITS[_TABLE](told["grid"]) else {}
            if not factors or not all(map(_FITS[_TABLE], factors.values())):
                self.faults.append(
                    f"arms.{name}.grid: it holds factors, each a table of levels, each a table of changes."
                )
                continue
            for combination in itertools.product(*(levels.items() for levels in factors.values())):
                arm = dict(common)
                for _, changes in combination:
                    for key, value in (changes or {}).items():
                        arm[key] = {**arm.get(key, {}), **value} if isinstance(value, dict) else value
                names = [level for level, _ in combination]
                levels = dict(zip(factors, names, strict=True))
                yield "_".join((name, *names)), arm | {"says": ", ".join(names), "levels": levels}

    def arm(self, where: str, name: str, told: Any) -> Arm | None:
        """Read an arm."""
        self.name(where, name)
        kept = self.table(where, told, _ARM, ("experiment",))
        self.run(where, kept)
        self.stages(f"{where}.stages", kept.get("stages", {}))
        self.among(f"{where}.seeds", [kept.get("seeds")], SEEDS)
        self.among(f"{where}.teachers", kept.get("teachers", ()), self.top["arms"])
        if "best" in kept:
            kept["best"] = self.best(f"{where}.best", kept["best"])
        return Arm(**kept) if "experiment" in kept else None

    def best(self, where: str, told: Any) -> Best | None:
        """Read how an arm is tuned."""
        kept = self.table(where, told, _BEST, _BEST)
        if len(kept) < len(_BEST):
            return None
        self.among(f"{where}.order", [kept["order"]], ("lowest", "highest"))
        if kept["keep"] > len(kept["of"]):
            self.faults.append(f"{where}: it keeps {kept['keep']} of {len(kept['of'])} trials.")
        by = self.expression(where, f"trial.{kept['by']}", expressions.read_value)
        if by and any(each.arm != "trial" or each.split != "val" for each in by.references):
            self.faults.append(f"{where}: 'by' must be one validation metric such as val.loss, never one of the test.")
        return Best(kept["of"], by, kept["order"], kept["keep"]) if by else None

    def task(self, where: str, name: str, told: Any) -> Task | None:
        """Read a task."""
        self.name(where, name)
        needed = ("experiment", "metric", "shown")
        kept = self.table(where, told, _TASK, needed)
        self.run(where, kept)
        self.among(f"{where}.arms", kept.get("arms", ()), self.top.get("arms", {}))
        return Task(**kept) if kept.keys() >= set(needed) else None

    def claim(self, where: str, name: str, told: Any) -> Claim | None:
        """Read a claim."""
        kept = self.table(where, told, _CLAIM, ("says", "expect"))
        expect = self.expression(where, kept.pop("expect", None), expressions.read_comparison)
        if expect:
            self.values(where, expect, kept.get("pairs", "seeds"))
        self.among(f"{where}.premise", kept.get("premise", ()), self.top["claims"])
        exact = expect is not None and any(link.sign == "==" for link in expect.links)
        if exact and kept.get("judged") == "mean":
            self.faults.append(f"{where}: '==' is exact and no matter of means: judge it on 'every' pair.")
        judged = self.judged(where, kept.pop("judged", "every" if exact else "mean"))
        return Claim(name, expect=expect, judged=judged, **kept) if expect and "says" in kept else None

    def judged(self, where: str, told: str) -> Share | None:
        """Read on what a claim is judged."""
        if told in ("mean", "every"):
            return EVERY if told == "every" else None
        found = re.fullmatch(r"(\d{1,6}) of (\d{1,6})", told)
        if found and (share := Share(int(found[1]), int(found[2]))).of / 2 < share.satisfied <= share.of:
            return share
        self.faults.append(
            f"{where}: 'judged' must be mean, every, or k of n with k more than half of n, not '{told}'."
        )
        return None

    def shown(self, where: str, name: str, told: Any) -> Shown | None:
        """Read a row that is shown."""
        kept = self.table(where, told, _SHOWN, ("shows", "value"))
        value = self.expression(where, kept.pop("value", None), expressions.read_value)
        if value:
            self.values(where, value, kept.get("pairs", "seeds"))
        return Shown(name, value=value, **kept) if value and "shows" in kept else None

    def expression(self, where: str, text: str | None, read: Callable[[str], Any]) -> Any:
        """Return what ``read`` makes of a text, None where it cannot."""
        try:
            return read(text, self.top.get("arms", {})) if text is not None else None
        except UserError as error:
            self.faults.append(f"{where}: {error}")
            return None

    def values(self, where: str, told: Comparison | Value, pairs: str) -> None:
        """Note the values of an expression that no run of the file can have."""
        if not re.fullmatch(r"items:\w+", pairs):
            self.among(f"{where}.pairs", [pairs], ("seeds", "items:<field>", *self.top.get("over", {})))
        for each in told.references:
            arm, task = self.arms.get(each.arm), self.tasks.get(each.task)
            fault = None
            if each.arm not in self.arms:
                fault = f"there is no arm '{each.arm}'.{nearest(each.arm, self.arms)}"
            elif each.task and each.task not in self.tasks:
                fault = f"there is no task '{each.task}'.{nearest(each.task, self.tasks)}"
            elif not each.task and each.metric in self.tasks:
                fault = f"'{each.metric}' is a task: write which metric of it, {each.text}.<metric>."
            elif task and task.arms and each.arm not in task.arms:
                fault = f"the task '{each.task}' does not list the arm '{each.arm}'."
            elif pairs != "seeds" and arm and arm.seeds != "none":
                fault = f"pairs of {pairs} need arms of one run: give '{each.arm}' seeds: none."
            if fault:
                self.faults.append(f"{where}: '{each.text}': {fault}")

    def over(self) -> None:
        """Note what is wrong with the kinds of pairs that the file brings."""
        for name, told in self.top.get("over", {}).items():
            self.name(f"over.{name}", name)
            single = _FITS[_TABLE](told) and len(told) == 1
            if not (single and all(isinstance(values, list) and values for values in told.values())):
                self.faults.append(f"over.{name} must be one key with its list of values, not {_brief(told)}.")

    def trials(self) -> None:
        """Note arms that are tuned with more trials than others."""
        trials = {name: len(arm.best.of) for name, arm in self.arms.items() if arm and arm.best}
        if len(set(trials.values())) > 1:
            told = ", ".join(f"'{name}' {count}" for name, count in trials.items())
            self.faults.append(f"arms: those with 'best' need the same number of trials, and have {told}.")

    def budget(self, place: int, told: Any) -> Budget | None:
        """Read a budget."""
        where = f"budget {place}"
        kept = self.table(where, told, _BUDGET, ("equal", "arms"))
        self.among(f"{where}.equal", [kept.get("equal")], expressions.AXES)
        arms = self.top.get("arms", {})
        patterns = {told: fnmatch.filter(arms, told) if "*" in told else [told] for told in kept.get("arms", ())}
        kept["arms"] = tuple(arm for told, names in patterns.items() for arm in names or [told])
        self.among(f"{where}.arms", kept["arms"], arms)
        return Budget(**kept) if {"equal", "arms"} <= kept.keys() else None

    def equation(self, place: int, told: Any) -> Equation | None:
        """Read an equation and look for what computes it."""
        where = f"equation {place}"
        kept = self.table(where, told, _EQUATION, _EQUATION)
        if "code" in kept:
            try:
                equations.line(kept["code"])
            except UserError as error:
                self.faults.append(f"{where}: {error}")
        return Equation(**kept) if len(kept) == len(_EQUATION) else None

    def reported(self, told: Any) -> Reported:
        """Read the paper's own table, whose columns may be others than the tasks here."""
        kept = self.table("reported", told, {"source": _TEXT, "rows": _TABLE}, ("source", "rows"))
        rows = {}
        for name, row in kept.get("rows", {}).items():
            where = f"reported.rows.{name}"
            cells = self.table(where, row, {"scores": _TABLE, "arm": _TEXT, "unverified": _NAMES}, ("scores",))
            self.among(f"{where}.arm", [cells.get("arm")], self.top.get("arms", {}))
            scores = cells.get("scores", {})
            self.among(f"{where}.unverified", cells.get("unverified", ()), scores)
            rows[name] = Row(**{"scores": scores} | cells)
        return Reported(kept.get("source", ""), rows)

    def circles(self, claims: Mapping[str, Claim | None]) -> None:
        """Note the claims that are their own premise, be it by way of others."""
        for name in claims:
            met, ahead = set(), [name]
            while ahead:
                claim = claims.get(ahead.pop())
                new = set(claim.premise) - met if claim else set()
                met |= new
                ahead += new
            if name in met:
                self.faults.append(f"claims.{name}: its premises lead back to it.")


def _brief(told: Any) -> str:
    text = repr(told)
    return text if len(text) <= 60 else f"{text[:57]}..."
