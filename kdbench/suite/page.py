"""The page of a paper: its claim, what was measured, the verdicts, the paper's own table, how to run it again."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from kdbench.suite import claims
from kdbench.suite.claims import OWN, ClaimFile
from kdbench.suite.experiment import Config

Seeds = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""task -> seed -> metrics, of one arm."""


def markdown(paper: str, file: ClaimFile, results: Config, values: Mapping[str, claims.Runs]) -> str:
    """Return the page in Markdown, from the claim file and its results alone."""
    arms: Mapping[str, Seeds] = results["values"].get("seeds", {})
    columns = [f"{task} ({told.shown})" for task, told in file.tasks.items()]
    parts = [
        f"# {file.title}\n\n{file.source_of_claim.strip()}\n\n{file.statement.strip()}",
        "## Verdicts\n" + _verdicts(file, results),
        _measured(file, results, arms, columns),
        _loyalty(file, arms, columns),
        _sizes(arms),
        "## Shown beside, not judged\n" + _shown(file, values) if file.report else "",
        "## Reported by the paper\n" + _reported(file, columns),
        "## How it was made\n" + _made(paper, file, results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def terminal_table(file: ClaimFile, results: Config) -> Table:
    """Return the scores of all arms on all tasks, with the paper's own below."""
    table = Table(title=file.title, title_justify="left")
    table.add_column("")
    for task in file.tasks:
        table.add_column(task, justify="right")
    arms = results["values"].get("seeds", {})
    for arm in arms if file.tasks else ():
        table.add_row(arm, *(spread(arms, arm, task, told.metric) for task, told in file.tasks.items()))
    table.add_section()
    for name, row in file.reported.rows.items() if file.tasks else ():
        table.add_row(f"paper: {name}", *(str(row.scores.get(task, "")) for task in file.tasks))
    return table


def spread(
    arms: Mapping[str, Seeds], arm: str, task: str, metric: str, of: str = "student", scale: float = 100.0
) -> str:
    """Return ``mean ± standard deviation`` of a metric over the seeds, or a dash where there is none."""
    seeds = arms.get(arm, {}).get(task, {}).values()
    found = [run.get(f"{metric}@{of}") for run in seeds if isinstance(run, Mapping)]
    numbers = [scale * value for value in found if value is not None and math.isfinite(value)]
    if not numbers:
        return "-"
    mean = f"{statistics.fmean(numbers):.2f}"
    return f"{mean} ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else mean


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _verdicts(file: ClaimFile, results: Config) -> str:
    rows = [
        [f"**{told['answer']}**", told["says"], f"`{' '.join(told['expect'].split())}`", told["evidence"]]
        for told in results["claims"].values()
    ]
    notes = [f"- `{name}`: {note}" for name, told in results["claims"].items() for note in told["notes"]]
    notes += [f"- {warning}" for warning in file.warnings]
    table = _rows(["verdict", "claim", "as it is checked", "evidence"], rows)
    return table + ("\n\n" + "\n".join(notes) if notes else "")


def _measured(file: ClaimFile, results: Config, arms: Mapping[str, Seeds], columns: list[str]) -> str:
    if not file.tasks:
        return ""
    embedded = "**These figures rest on embedded (generated) data.** " if results["source"] == "embedded" else ""
    rows = [
        [arm, *(spread(arms, arm, task, told.metric) for task, told in file.tasks.items())]
        for arm in arms
        if arms[arm].keys() & file.tasks.keys()
    ]
    return (
        f"## Measured here\n{embedded}Mean ± standard deviation over {results['seeds']} seeds, times 100; source "
        f"`{results['source']}`.\n\n{_rows(['', *columns], rows)}"
    )


def _loyalty(file: ClaimFile, arms: Mapping[str, Seeds], columns: list[str]) -> str:
    rows = [
        [
            f"{name} to {teacher}",
            *(
                " / ".join(spread(arms, name, task, metric, teacher) for metric in told.loyalty)
                for task, told in file.tasks.items()
            ),
        ]
        for name, arm in file.arms.items()
        for teacher in arm.teachers
    ]
    if not rows or not file.tasks:
        return ""
    return (
        "## Loyalty to the teachers\nThe student's predictions against its teacher's on the test inputs, no label involved. "
        "Tagging and classification: label\nloyalty / probability loyalty (1 - Jensen-Shannon distance, base e); similarity: "
        f"Pearson. Times 100.\n\n{_rows(['', *columns], rows)}"
    )


def _sizes(arms: Mapping[str, Seeds]) -> str:
    rows = []
    for arm in arms:
        if OWN not in arms[arm]:
            continue
        names = {name for run in arms[arm][OWN].values() if isinstance(run, Mapping) for name in run}
        against = sorted(name.partition("@")[2] for name in names if name.startswith("speed_ratio@"))
        faster = ", ".join(f"{each} {spread(arms, arm, OWN, 'speed_ratio', each, 1)}" for each in against) or "-"
        cells = (
            spread(arms, arm, OWN, "parameters", scale=1e-6),
            spread(arms, arm, OWN, "megabytes", scale=1),
            spread(arms, arm, OWN, "accuracy"),
            spread(arms, arm, OWN, "perplexity", scale=1),
        )
        rows.append([arm, *(cell.replace(" ± 0.00", "") for cell in cells), faster])
    if not rows:
        return ""
    return (
        "## Size, own task, speed\nAccuracy (times 100) and perplexity are of each arm's own test; perplexities of different "
        "vocabularies do not compare.\nSpeed: forward pass of the encoder, the teacher's seconds over the student's in one "
        f"run.\n\n{_rows(['', 'parameters, M', 'MB', 'accuracy', 'perplexity', 'student faster than'], rows)}"
    )


def _shown(file: ClaimFile, values: Mapping[str, claims.Runs]) -> str:
    rows = []
    for told in file.report.values():
        interval, failed = claims.measure(file, told, values)
        rows.append([told.shows, str(interval or "-") + (f"; failed: {', '.join(failed)}" if failed else "")])
    return _rows(["", "mean over pairs"], rows)


def _reported(file: ClaimFile, columns: list[str]) -> str:
    names = list(file.tasks) or list(dict.fromkeys(name for row in file.reported.rows.values() for name in row.scores))
    rows = [
        [
            name,
            *(
                f"{row.scores.get(each, '')}{' (unverified)' if each in row.unverified else ''}".strip()
                for each in names
            ),
        ]
        for name, row in file.reported.rows.items()
    ]
    return f"{file.reported.source.strip()}\n\n{_rows(['', *(columns or names)], rows)}"


def _made(paper: str, file: ClaimFile, results: Config) -> str:
    hardware = results["hardware"]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return (
        f"{file.recipe.strip()}\n\n```\nkdbench reproduce {paper} --seeds {results['seeds']} --source {results['source']}\n"
        f"```\n{results['hours']} hours of fitting on {hardware['device']}, {hardware['threads']} threads; {versions}.\n"
        "Every value and the run it comes from: [results.json](results.json)."
    )
