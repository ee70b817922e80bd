"""All leaderboards as one HTML page that needs nothing beside itself: no network, no server.

Tables, verdicts and drawings are in the text of the page. Its script sorts, filters and opens the records, which the page
holds in one block of JSON; their details are built when somebody opens them.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from kdbench.suite import claims, equations, page, plots, score_plots, tables
from kdbench.suite.entries import NOT_RUN, Entry
from kdbench.suite.experiment import Config
from kdbench.suite.statistics import Answer, Interval
from kdbench.suite.tables import Number, Row, Table, Tables

FOLDER = Path(__file__).parent / "web"
SIGNS = {Answer.HOLDS: "✓", Answer.NOT_SHOWN: "○", Answer.CONTRADICTED: "✕", Answer.VOID: "∅"}

SHOWN = 200  # pairs of a claim that are listed one by one


def html(entries: Sequence[Entry]) -> str:
    """Return the page."""
    views = [View(entry) for entry in entries]
    told = Counter(verdict.answer for entry in entries for verdict in entry.verdicts.values())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("leaderboard.html.j2").render(
        views=views,
        totals=[(answer, told[answer]) for answer in Answer],
        signs=SIGNS,
        families=sorted({family for entry in entries for family in entry.families}),
        runs=sum(len(view.entry.runs) for view in views),
        hours=math.fsum(entry.results.hours() for entry in entries if entry.results),
        embedded=page.EMBEDDED,
        not_run=NOT_RUN,
        data=_script({view.entry.paper: view.data() for view in views if view.made}),
    )


@dataclass(frozen=True)
class Judged:
    """A claim as the page shows it: its place in the data, its answer, and a drawing for each comparison in it."""

    key: str
    says: str
    expect: str
    answer: Answer
    evidence: str
    drawings: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """What the template asks of one paper or part."""

    entry: Entry

    @cached_property
    def made(self) -> Tables | None:
        """Its tables, when there are results."""
        return Tables(self.entry.file, self.entry.results) if self.entry.results else None

    @property
    def id(self) -> str:
        """The name of its section; a part's has a dot, which no folder of a paper has."""
        return self.entry.paper.replace("/", ".")

    @property
    def parts(self) -> tuple[str, ...]:
        """The name of the paper and, of a part, its own."""
        return tuple(self.entry.paper.split("/"))

    @property
    def title(self) -> str:
        """The title of the paper without its short name."""
        short, _, title = self.entry.file.title.partition(": ")
        return title if title and " " not in short else self.entry.file.title

    @property
    def command(self) -> str:
        """What makes the results again."""
        return page.command(self.entry.paper, self.entry.file, self.entry.results)

    @property
    def machines(self) -> str:
        """The hardware of its runs."""
        return page.machines(self.entry.results) if self.entry.results else "-"

    @property
    def versions(self) -> str:
        """The versions of its runs."""
        return page.versions(self.entry.results) if self.entry.results else "-"

    @property
    def notes(self) -> list[tuple[tuple[str, ...], str]]:
        """What is said beside the verdicts."""
        return page.grouped_notes(self.entry.file, self.entry.verdicts)

    @cached_property
    def judged(self) -> list[Judged]:
        """The claims with their answers."""
        found = []
        for name, verdict in self.entry.verdicts.items():
            claim = self.entry.file.claims[name]
            margins = list(zip(*(each.values for each in self.made.evidence(claim)), strict=True))
            intervals = verdict.intervals if claim.judged is None else ()
            drawings = [
                plots.interval(each, intervals[place] if place < len(intervals) else None, verdict.evidence)
                for place, each in enumerate(margins)
            ]
            expect = page.expected(claim)
            found.append(Judged(name, claim.says, expect, verdict.answer, verdict.evidence, tuple(drawings)))
        return found

    @cached_property
    def shown(self) -> list[tuple[str, str, Interval | None, str]]:
        """What is shown beside the claims: its place in the data, its text, its interval, its drawing."""
        found = []
        for name, told in self.entry.file.report.items() if self.made else ():
            values = [each.values[0] for each in self.made.evidence(told)]
            interval, _ = claims.measure(self.entry.file, told, self.made.values)
            drawing = plots.interval(values, interval, str(interval), judged=False) if interval else ""
            found.append((name, told.shows, interval, drawing))
        return found

    @property
    def equations(self) -> list[tuple[str, str, str, str]]:
        """The equations, each with its code's name and link."""
        found = []
        for each in self.entry.file.equations:
            path, line = equations.line(each.code)
            found.append((each.says, each.equation, each.code.partition(":")[2], f"../{path}#L{line}"))
        return found

    @property
    def scores(self) -> Table | None:
        """The arms' scores, under each arm what the paper reports of it; None where the paper's columns are others."""
        table = self.made.measured() if self.made else None
        if table is None or not self._comparable:
            return table
        rows: list[Row] = []
        for row in table.rows:
            rows += [row, *(self._reported(name, told) for name, told in self._theirs if told.arm == row.arm)]
        rows += [
            self._reported(name, told) for name, told in self._theirs if told.arm not in {r.arm for r in table.rows}
        ]
        return Table("Measured here, beside the paper's own", table.note, table.head, tuple(rows))

    @property
    def reported(self) -> Table | None:
        """The paper's own table, where it does not stand beside ours."""
        return None if self._comparable and self.made else tables.reported(self.entry.file)

    @property
    def source(self) -> str:
        """Where the paper's own numbers stand."""
        return self.entry.file.reported.source.strip()

    @property
    def own(self) -> tuple[Table, ...]:
        """What claims read of the arms' own runs."""
        return self.made.own() if self.made else ()

    @property
    def loyalty(self) -> Table | None:
        """Loyalties to the teachers."""
        return self.made.loyalty() if self.made else None

    @property
    def sizes(self) -> Table | None:
        """Size, speed and cost."""
        return self.made.sizes() if self.made else None

    @property
    def _theirs(self) -> list[tuple[str, claims.Row]]:
        return list(self.entry.file.reported.rows.items())

    @property
    def _comparable(self) -> bool:
        return any(name in self.entry.file.tasks for _, row in self._theirs for name in row.scores)

    def _reported(self, name: str, row: claims.Row) -> Row:
        cells = tuple((tables.reported_cell(row, task),) for task in self.entry.file.tasks)
        return Row(f"paper: {name}", cells, None, "" if row.arm else "stands beside no arm")

    @property
    def plots(self) -> list[tuple[str, str, str]]:
        """The score against size and against speed: the caption, what the score is, the drawing."""
        drawn = score_plots.drawn(self.made) if self.made else []
        pictures = self.entry.results.pictures() if self.entry.results else ()
        return drawn + [
            (f"{each.title} ({arm}), against {each.x_title}", each.y_title, plots.picture(each))
            for arm, _, each in pictures
        ]

    def link(self, number: Number) -> str:
        """Return the runs of a number as the script reads them: ``pair:place`` in the list of all runs, one after another."""
        places = {run: place for place, run in enumerate(self.entry.runs)}
        return " ".join(f"{pair}:{places[run]}" for pair, run, _ in number.runs)

    def data(self) -> Config:
        """Return the records, what is the same in many of them told once, and the evidence of every claim."""
        places = {run: place for place, run in enumerate(self.entry.runs)}
        names: dict[tuple[str, ...], int] = {}
        facts: dict[str, int] = {}
        records = []
        for run in self.entry.runs:
            record = dict(self.entry.results.records[run])
            curves = record.pop("curves", None) or {}
            metrics = {key: tables.last(value) for key, value in curves.items()} | record.pop("metrics")
            metrics = {key: value if value is None or math.isfinite(value) else None for key, value in metrics.items()}
            metrics |= {f"{key}, curve": _curve(value) for key, value in curves.items()}
            keys = tuple(sorted(metrics))
            for key in ("experiment", "id", "references"):
                record.pop(key, None)
            parents = {where: places.get(name, name) for where, name in sorted(record.pop("parents").items())}
            shared = {key: value for key, value in sorted(record.items()) if isinstance(value, dict)}
            own = {key: value for key, value in sorted(record.items()) if key not in shared}
            fact = facts.setdefault(json.dumps(shared, sort_keys=True), len(facts))
            shape = names.setdefault(keys, len(names))
            records.append([own, parents, fact, shape, [metrics[key] for key in keys]])
        file = self.entry.file
        told = {f"claims.{n}": file.claims[n] for n in self.entry.verdicts} | {
            f"report.{n}": t for n, t in file.report.items()
        }
        evidence = {
            name: [
                [each.pair, [v if math.isfinite(v) else None for v in each.values], [places[run] for run in each.runs]]
                for each in self.made.evidence(claim)[:SHOWN]
            ]
            for name, claim in told.items()
        }
        return {
            "runs": self.entry.runs,
            "names": [list(keys) for keys in names],
            "facts": [json.loads(text) for text in facts],
            "records": records,
            "evidence": evidence,
        }


def _curve(told: Mapping[str, Any]) -> str:
    heights = ["-" if each is None else f"{each:.4g}" for each in told["values"]]
    return ", ".join(heights if len(heights) <= 6 else [*heights[:3], "...", *heights[-2:]])


def _script(data: Any) -> str:
    """Return JSON that may stand in a script element: no ``<`` ends it early."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
