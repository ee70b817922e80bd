"""The plan of a sweep, ``runs.jsonl``: one line an index, which is the whole mapping from an array task to its run."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.errors import UserError, nearest
from kdbench.files import write_text
from kdbench.suite import chain, runs
from kdbench.suite.chain import Stage
from kdbench.suite.experiment import Request

PLAN = "runs.jsonl"


@dataclass(frozen=True)
class Run:
    """A run that a sweep asks for."""

    label: str
    request: Request
    stage: Stage

    @classmethod
    def of(cls, label: str, request: Request) -> "Run":
        """Return the run that a request asks for."""
        return cls(label, request, chain.plan(request.read()))


@dataclass(frozen=True)
class Entry:
    """One line of a plan.

    ``words`` follow ``kdbench fit`` on a command line. An entry with a ``stage`` (``<name>/<id>``) is that stage of the
    chain of its words: something that several runs are made from. Entries of a ``level`` need only those below it.
    """

    index: int
    label: str
    experiment: str
    id: str
    folder: str
    level: int
    words: tuple[str, ...]
    stage: str | None = None

    @property
    def done(self) -> bool:
        """Whether the run has a record."""
        return runs.read_record(Path(self.folder)) is not None

    def find(self) -> Stage:
        """Return the stage that the entry stands for, with its chain.

        Raises:
            UserError: the files of the experiment have been changed since the sweep was planned.
        """
        last = chain.plan(request(self.words).read())
        for stage in last.walk() if self.stage else [last]:
            if (stage.name, stage.id) == (self.experiment, self.id):
                return stage
        raise UserError(
            f"Entry {self.index} stands for the run {self.experiment}/{self.id}, but its words now make {last.name}/{last.id}: "
            "an experiment file, the data or kdbench has changed since; plan the sweep anew under another --name."
        )


def entry(plan: Path, index: int) -> Entry:
    """Return one entry of a plan; raise :class:`UserError` where there is no such index."""
    found = read(plan)
    if not 0 <= index < len(found):
        raise UserError(f"There is no index {index} in '{plan}': it has 0 to {len(found) - 1}.")
    return found[index]


def read(plan: Path) -> list[Entry]:
    """Return the entries of a plan; raise :class:`UserError` where there is none or a damaged one."""
    try:
        lines = plan.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"There is no '{plan}': 'kdbench sweep' writes it into the folder of a sweep.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{plan}' cannot be read: {error}.") from None
    found = []
    for place, line in enumerate(lines):
        try:
            told = json.loads(line)
            one = Entry(**told | {"words": tuple(told["words"])})
        except (ValueError, TypeError, KeyError):
            one = None
        if one is None or one.index != place:
            raise UserError(f"'{plan}' is damaged in line {place + 1}: remove it, and the same sweep writes it anew.")
        found.append(one)
    if not found:
        raise UserError(f"'{plan}' is empty: remove it, and the same sweep writes it anew.")
    return found


def entries(asked: Iterable[Run]) -> list[Entry]:
    """Return the plan of runs: first what is missing of what they are made from, each once, then the runs.

    A run that others are made from is a run. Runs that are the same run have one entry, with the label of the first.
    """
    wanted = {run.stage.folder: run for run in reversed(list(asked))}
    wanted = dict(reversed(wanted.items()))
    below: dict[Path, tuple[Run, Stage]] = {}
    for run in wanted.values():
        for stage in _missing(run.stage):
            if stage.folder not in wanted:
                below.setdefault(stage.folder, (run, stage))
    shared = sorted(below.values(), key=lambda each: _level(each[1]))
    found = [(run, stage, f"{stage.name}/{stage.id}") for run, stage in shared]
    found += [(run, run.stage, None) for run in wanted.values()]
    return [
        Entry(
            index,
            mark or run.label,
            stage.name,
            stage.id,
            str(stage.folder),
            _level(stage),
            tuple(run.request.words()),
            mark,
        )
        for index, (run, stage, mark) in enumerate(found)
    ]


def settled(folder: Path, planned: list[Entry]) -> list[Entry]:
    """Return the plan that lies in the folder of a sweep when it asks for the same runs, else the one that is given.

    Jobs in the queue count on the indices of a plan. Raises :class:`UserError` when another sweep lies there.
    """
    if not (folder / PLAN).exists():
        return planned
    kept = read(folder / PLAN)
    asked, there = ([(each.experiment, each.id) for each in plan if not each.stage] for plan in (planned, kept))
    if asked != there:
        raise UserError(f"'{folder}' is the folder of another sweep: give this one another --name.")
    return kept


def write(folder: Path, plan: Sequence[Entry]) -> None:
    """Write a plan into the folder of a sweep."""
    write_text(folder / PLAN, "".join(json.dumps(_told(each), ensure_ascii=False) + "\n" for each in plan))


def opened(folder: Path) -> list[Entry]:
    """Return the plan of a sweep; raise :class:`UserError` for a folder that is none."""
    if not (folder / PLAN).is_file():
        known = [str(each.parent) for each in folder.parent.glob(f"*/{PLAN}")]
        raise UserError(f"'{folder}' is no sweep: there is no {PLAN} in it.{nearest(str(folder), known)}")
    return read(folder / PLAN)


def request(words: Sequence[str]) -> Request:
    """Return the request that :meth:`Request.words` has told."""
    files = tuple(word for before, word in itertools.pairwise(words) if before == "--config")
    changes = {}
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if equals and word.startswith("--"):
            changes["seed_everything" if name == "seed" else name] = json.loads(value)
    return Request(files, changes)


def _missing(stage: Stage) -> Iterator[Stage]:
    """Yield what has to be fitted before a stage, deepest first."""
    for parent in () if stage.finished else stage.parents.values():
        if not parent.finished:
            yield from _missing(parent)
            yield parent


def _level(stage: Stage) -> int:
    parents = () if stage.finished else stage.parents.values()
    return 1 + max((_level(parent) for parent in parents if not parent.finished), default=-1)


def _told(one: Entry) -> dict[str, Any]:
    told = dataclasses.asdict(one)
    return told if one.stage else {key: value for key, value in told.items() if key != "stage"}
