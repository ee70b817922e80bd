"""What the terminal shows: plans, results, lists."""

import itertools
import re
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from kdbench.errors import UserError, nearest
from kdbench.suite import catalogue
from kdbench.suite.chain import Stage
from kdbench.suite.tables import factor

ROWS = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "entity_macro_f1": "entity macro-F1",
    "entity_micro_f1": "entity micro-F1",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "mrr": "MRR",
    "recall_1": "recall at 1",
    "recall_10": "recall at 10",
    "perplexity": "perplexity",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "frechet": "Frechet distance of the judge's features",
    "diversity_pairwise": "diversity inside a class",
    "modes": "modes reached",
    "within": "samples at a mode",
    "nfe": "evaluations of the network for a sample",
    "label_loyalty": "label loyalty of the student",
    "probability_loyalty": "probability loyalty (base e)",
    "retention": "share of its score that the student keeps",
    "regression_loyalty_pearson": "regression loyalty (Pearson)",
    "parameters": "parameters",
    "megabytes": "size, MB",
    "seconds": "forward pass of the encoder, ms",
    "speed_ratio": "speed of the student over it",
}

NO_TEACHER = "there is no teacher"


def console() -> Console:
    """Return a console as wide as a table needs when nobody looks at a terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=120)


def show_plan(stage: Stage) -> None:
    """Print the chain, deepest first, a fleet in one line: what is found, what would be fitted, what would be fetched."""
    out = console()
    last = 0
    for name, found in itertools.groupby(stage.walk(), key=lambda each: each.name):
        fleet = list(found)
        first, last = last + 1, last + len(fleet)
        done = sum(each.record is not None for each in fleet)
        if len(fleet) == 1:
            place, state, folder = f"{last}", "found" if done else "to fit", fleet[0].folder
        else:
            place, state = f"{first}-{last}", f"{done} found, {len(fleet) - done} to fit"
            folder = fleet[0].folder.parent
        out.print(f"{place}. {name}  [bold]{state}[/]  {folder}", highlight=False, soft_wrap=True)
        for hub in fleet[0].hub():
            out.print(f"     would fetch from the hub: {hub}", highlight=False, soft_wrap=True)


def show_record(record: dict[str, Any], folder: Path, found: bool) -> None:
    """Print what a run measured, the networks side by side, and where it lies."""
    metrics = {name.removeprefix("test/"): value for name, value in record["metrics"].items()}
    networks = list(
        dict.fromkeys(
            name.partition("@")[2] for name in metrics if "@" in name and not name.startswith(("val/", "train/"))
        )
    )
    networks.sort(key=lambda name: name != "student")
    table = Table(box=SIMPLE)
    table.add_column(record["experiment"])
    for name in networks:
        table.add_column(name, justify="right")
    for key, label in ROWS.items():
        cells = [shown(key, metrics.get(f"{key}@{name}")) for name in networks]
        if any(cells):
            table.add_row(label, *cells)
        for place in _exits(metrics, key):
            table.add_row(f"{label} at exit {place}", shown(key, metrics[f"{key}_{place}@student"]))
    if not networks:  # a study: numbers of nobody
        table.add_column("", justify="right")
        for key, value in metrics.items():
            table.add_row(key, f"{value:.4g}")
    out = console()
    out.print(table)
    if "objective@student" in metrics:  # texts without labels: what the objective says of those held out
        names = [name for name in record["metrics"] if name.startswith("test/") and name.endswith("@student")]
        told = ", ".join(f"{name[5:-8]} {record['metrics'][name]:.4g}" for name in names)
        out.print(f"On texts held out: {told}.", highlight=False, soft_wrap=True)
    if told := _cache_told(record.get("cache", {})):
        out.print(told, highlight=False, soft_wrap=True)
    if record["data"]["source"] == "embedded":
        out.print("These figures rest on embedded data.")
    if found:
        out.print("This run was finished before; --fresh makes a new attempt.")
    out.print(f"Run folder: {folder}", highlight=False, soft_wrap=True)


def _exits(metrics: dict[str, float], key: str) -> list[int]:
    """Return the exits of the student at which a score is known."""
    matches = (re.fullmatch(rf"{key}_(\d+)@student", name) for name in metrics)
    return sorted(int(match[1]) for match in matches if match)


def _cache_told(cache: dict[str, Any]) -> str | None:
    """Return what became of the teachers' targets, or None where there is no teacher."""
    if "off" in cache:
        return None if cache["off"] == NO_TEACHER else f"Teachers ran at each step: {cache['off']}."
    if not cache:
        return None
    closed = f"; then no more were kept: {cache['closed']}" if cache["closed"] else ""
    return (
        f"Teacher targets: {cache['rows_read']} rows read from the store, {cache['rows_computed']} computed, "
        f"{cache['megabytes']} MB kept{closed}."
    )


def shown(key: str, value: float | None) -> str:
    """Return a metric as people read it: scores times 100, parameters in millions, seconds in milliseconds."""
    if value is None:
        return ""
    if factor(key) == 100:
        return f"{100 * value:.2f}"
    if key == "parameters":
        return f"{value / 1e6:.2f} M"
    if key == "seconds":
        return f"{1000 * value:.2f}"
    if key in ("modes", "nfe"):
        return f"{value:.0f}"
    if key == "sliced_wasserstein":
        return f"{value:.4f}"
    return f"{value:.2f}x" if key == "speed_ratio" else f"{value:.2f}"


def show_list(what: str | None) -> None:
    """Print papers, data sets or classes, each with one line."""
    kinds = ("papers", "data", *catalogue.ROOMS)
    if what is not None and what not in kinds:
        raise UserError(f"There is no list of '{what}'.{nearest(what, kinds)} There are: {', '.join(kinds)}.")
    out = console()
    for kind in (what,) if what else ("papers", "data", "methods", "losses", "models", "metrics", "studies"):
        rows = _papers() if kind == "papers" else _data() if kind == "data" else _classes(kind)
        out.print(f"[bold]{kind}[/]")
        for name, line in rows:
            out.print(f"  {name:<28} {line}", highlight=False, soft_wrap=True, markup=False)


def _papers() -> list[tuple[str, str]]:
    found = []
    for file in sorted(Path("experiments").glob("*.yaml")):
        comment = re.match(r"#\s*(.*)", file.read_text(encoding="utf-8"))
        found.append((str(file), comment.group(1) if comment else ""))
    return found or [("(none here)", "run this in a folder that holds experiments/")]


def _data() -> list[tuple[str, str]]:
    from kdbench.data.cards import CARDS

    return [(name, f"{card.task}: {card.description}") for name, card in CARDS.items()]


def _classes(room: str) -> list[tuple[str, str]]:
    return [(name, line) for name, (_, line) in sorted(catalogue.classes(room).items())]


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the content of a YAML file of the suite."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no '{file}'.") from None
    except yaml.YAMLError as error:
        raise UserError(f"'{file}' is not YAML: {error}.") from None
