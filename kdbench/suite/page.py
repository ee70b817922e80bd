"""The page of a paper in Markdown: its claim, the verdicts, the equations, what was measured, how to run it again."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from rich.table import Table as Shown

from kdbench.suite import claims, equations, plots, tables
from kdbench.suite.claims import ClaimFile
from kdbench.suite.results import Results
from kdbench.suite.statistics import Verdict
from kdbench.suite.tables import Cell, Table, Tables

EMBEDDED = "These figures rest on embedded data."


def files(
    paper: str, file: ClaimFile, results: Results | None, verdicts: Mapping[str, Verdict], papers: Iterable[str] = ()
) -> dict[str, str]:
    """Return the page and its pictures by the names of their files; see :func:`markdown`."""
    pictures = results.pictures() if results else ()
    drawn = {f"{arm}_{name}.svg": plots.picture(picture) for arm, name, picture in pictures}
    return {"README.md": markdown(paper, file, results, verdicts, papers), **drawn}


def markdown(
    paper: str, file: ClaimFile, results: Results | None, verdicts: Mapping[str, Verdict], papers: Iterable[str] = ()
) -> str:
    """Return the page in Markdown, from the claim file and its results alone.

    Args:
        paper: the name of the folder, with its paper's name before it for a part: ``distilbert_ro/romanian``.
        file: what is claimed.
        results: what the runs gave, None when nothing was run yet.
        verdicts: the answers to the claims.
        papers: the names of all papers and parts; the page links to those of its own paper.
    """
    made = Tables(file, results) if results else None
    parts = [
        _ways(paper, papers),
        f"# {file.title}\n\n{file.source_of_claim.strip()}\n\n{file.statement.strip()}",
        "## Verdicts\n" + (_verdicts(file, verdicts) if results else _claims(file)),
        _equations(paper, file),
        _differences(file),
        *(_measured(made) if made else ()),
        _pictures(file, results),
        "## Shown beside, not judged\n" + _shown(file, made) if file.report and made else "",
        _section(tables.reported(file)),
        "## How it was made\n" + _made(paper, file, results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def terminal_table(file: ClaimFile, results: Results) -> Shown:
    """Return the scores of all arms on all tasks, with the paper's own below."""
    shown = Shown(title=file.title, title_justify="left")
    shown.add_column("")
    for task in file.tasks:
        shown.add_column(task, justify="right")
    measured = Tables(file, results).measured()
    for row in measured.rows if measured else ():
        shown.add_row(row.label, *map(_cell, row.cells))
    shown.add_section()
    for name, row in file.reported.rows.items() if file.tasks else ():
        shown.add_row(f"paper: {name}", *(str(tables.reported_cell(row, task)) for task in file.tasks))
    return shown


def grouped_notes(file: ClaimFile, verdicts: Mapping[str, Verdict]) -> list[tuple[tuple[str, ...], str]]:
    """Return each note on verdicts once, with the claims that it is about, then what is said of the whole file."""
    found: dict[str, list[str]] = {}
    for name, verdict in verdicts.items():
        for note in verdict.notes:
            found.setdefault(note, []).append(name)
    return [*((tuple(names), note) for note, names in found.items()), *(((), note) for note in file.warnings)]


def machines(results: Results) -> str:
    """Return the hardware of all runs in a few words."""
    found = {(each["hardware"]["device"], each["hardware"]["threads"]) for each in results.records.values()}
    return "; ".join(f"{device}, {threads} thread{'s' * (threads != 1)}" for device, threads in sorted(found))


def versions(results: Results) -> str:
    """Return the versions of all runs, several of one library beside each other."""
    found: dict[str, set[str]] = {}
    for record in results.records.values():
        for name, number in record["versions"].items():
            found.setdefault(name, set()).add(number)
    return ", ".join(f"{name} {' and '.join(sorted(numbers))}" for name, numbers in sorted(found.items()))


def command(paper: str, file: ClaimFile, results: Results | None) -> str:
    """Return the command that makes the results again."""
    seeds, source = (results.seeds, results.source) if results else (file.seeds, file.source)
    return f"kdbench reproduce {paper} --seeds {seeds} --source {source}"


def _ways(paper: str, papers: Iterable[str]) -> str:
    """Return the line of links to the index, to the main page of a part, and to the parts of a paper."""
    above = paper.rpartition("/")[0]
    ways = [f"[All papers]({_up(paper)}README.md)"]
    if above:
        ways.append(f"part of [{above}](../README.md)")
    inner = sorted(each for each in papers if each.startswith(f"{paper}/"))
    ways += [f"part [{each.removeprefix(f'{paper}/')}]({each.removeprefix(f'{paper}/')}/README.md)" for each in inner]
    return " · ".join(ways)


def _up(paper: str) -> str:
    return "../" * len(PurePosixPath(paper).parts)


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    told = [[each.replace("|", r"\|") for each in row] for row in rows]  # Markdown reads it so in code too
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *told))


def _cell(cell: Cell) -> str:
    return " / ".join(map(str, cell))


def _measured(made: Tables) -> list[str]:
    """Return all that was measured; where it rests on embedded data, the first table says so."""
    groups = [[made.measured()], made.own(), [made.loyalty()], [made.sizes()]]
    found = [group for group in groups if group and group[0]]
    first = f"**{EMBEDDED}**" if made.results.source == "embedded" else ""
    return [_section(*group, mark=first if group is found[0] else "") for group in found]


def _section(*group: Table, mark: str = "") -> str:
    """Return tables under the title and the note of the first, ``mark`` before the note."""
    drawn = [_rows(["", *table.head], ([row.label, *map(_cell, row.cells)] for row in table.rows)) for table in group]
    note = f"{mark} {group[0].note}".strip()
    return "\n\n".join([f"## {group[0].title}\n{note}".strip(), *drawn])


def _verdicts(file: ClaimFile, verdicts: Mapping[str, Verdict]) -> str:
    rows = [
        [f"**{told.answer}**", file.claims[name].says, f"`{expected(file.claims[name])}`", told.evidence]
        for name, told in verdicts.items()
    ]
    notes = [
        f"- {', '.join(f'`{name}`' for name in names)}{': ' if names else ''}{note}"
        for names, note in grouped_notes(file, verdicts)
    ]
    table = _rows(["verdict", "claim", "as it is checked", "evidence"], rows)
    return table + ("\n\n" + "\n".join(notes) if notes else "")


def expected(claim: claims.Claim) -> str:
    """Return a claim as it is checked, on one line."""
    return " ".join(claim.expect.text.split())


def _claims(file: ClaimFile) -> str:
    rows = [[claim.says, f"`{expected(claim)}`"] for claim in file.claims.values()]
    return "Not run yet.\n\n" + _rows(["claim", "as it is checked"], rows)


def _equations(paper: str, file: ClaimFile) -> str:
    if not file.equations:
        return ""
    rows = []
    for each in file.equations:
        path, line = equations.line(each.code)
        name = each.code.partition(":")[2]
        rows.append([each.says, f"`{each.equation}`", f"[`{name}`]({_up(paper)}../{path}#L{line})"])
    return "## Equations and the code that computes them\n" + _rows(["", "equation", "code"], rows)


def _differences(file: ClaimFile) -> str:
    lines = "\n".join(f"- {' '.join(each.split())}" for each in file.differences)
    return f"## Where paper and code differ\n{lines}" if lines else ""


def _pictures(file: ClaimFile, results: Results | None) -> str:
    return "\n\n".join(
        f"**{each.title}** ({file.arms[arm].says or arm}): {each.y_title} against {each.x_title}.\n\n"
        f"![{each.title}]({arm}_{name}.svg)"
        for arm, name, each in (results.pictures() if results else ())
    )


def _shown(file: ClaimFile, made: Tables) -> str:
    rows = []
    for told in file.report.values():
        interval, failed = claims.measure(file, told, made.values)
        rows.append([told.shows, str(interval or "-") + (f"; failed: {', '.join(failed)}" if failed else "")])
    return _rows(["", "mean over pairs"], rows)


def _made(paper: str, file: ClaimFile, results: Results | None) -> str:
    run = f"{file.recipe.strip()}\n\n```\n{command(paper, file, results)}\n```"
    if results is None:
        return run
    return (
        f"{run}\n{results.hours():.2f} hours of fitting on {machines(results)}; {versions(results)}.\n"
        "Every value and the run it comes from: [results.json](results.json)."
    )
