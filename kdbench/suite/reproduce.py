"""Every arm of a paper with every seed, and its table beside ours: ``leaderboards/<paper>/``."""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from kdbench.errors import UserError, nearest
from kdbench.files import write_text
from kdbench.suite import chain, experiment, fit, report
from kdbench.suite.chain import Stage
from kdbench.suite.experiment import Config


@dataclass(frozen=True)
class Cell:
    """One run of the table: an arm on a task with a seed."""

    arm: str
    task: str
    seed: int
    stage: Stage


def reproduce(paper: str, seeds: int | None, source: str | None, home: Path, dry_run: bool = False) -> None:
    """Run what is missing of a paper's arms, write ``results.json`` and ``README.md``, and print the table.

    Args:
        paper: the folder under ``home`` that holds ``claim.yaml``.
        seeds: how many; default: as the claim says.
        source: of all data; default: as the claim says.
        home: the folder of all leaderboards.
        dry_run: only count what is found and what would be run.
    """
    folder = home / paper
    if not (folder / "claim.yaml").exists():
        known = [each.parent.name for each in home.glob("*/claim.yaml")]
        raise UserError(f"There is no '{folder / 'claim.yaml'}'.{nearest(paper, known)}")
    claim = report.read_yaml(folder / "claim.yaml")
    seeds, source = seeds or claim["seeds"], source or claim["source"]
    cells = plan(claim, range(seeds), source)
    missing = [cell for cell in cells if cell.stage.record is None]
    out = report.console()
    out.print(f"{paper}: {len(cells)} runs, {len(cells) - len(missing)} found, {len(missing)} to do; source {source}")
    if dry_run:
        return
    for place, cell in enumerate(cells, 1):
        fit.fit(cell.stage, quiet=True)
        out.print(f"  {place}/{len(cells)} {cell.arm} / {cell.task} / seed {cell.seed}", highlight=False)
    results = collect(claim, cells, seeds, source)
    text = json.dumps(results, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    write_text(folder / "results.json", text)
    write_text(folder / "README.md", page(paper, claim, results))
    out.print(_terminal_table(claim, results))
    out.print(f"Written: {folder / 'README.md'} and {folder / 'results.json'}")


def plan(claim: Config, seeds: range, source: str) -> list[Cell]:
    """Return every run of the table in order: each arm's own experiment, then each of its tasks, per seed.

    An arm marked ``seeded: false`` (a teacher) is trained once with seed 0; its tasks still have every seed.
    """
    cells = []
    common = claim.get("overrides") or {}
    for arm, told in claim["arms"].items():
        for seed in seeds if told.get("seeded", True) else (0,):
            changes = {"data.source": source, "seed_everything": seed}
            cells.append(Cell(arm, "pretraining", seed, _stage(told["experiment"], changes, common)))
    for task, told in claim["tasks"].items():
        for arm in claim["arms"]:
            for seed in seeds:
                changes = _task_changes(claim, arm, seed, source)
                references = {
                    name: {
                        "class_path": "FromRun",
                        "init_args": {
                            "experiment": told["experiment"],
                            "set": _task_changes(claim, name, seed, source) | _of_stage(common, told["experiment"]),
                        },
                    }
                    for name in claim["arms"][arm].get("teachers", [])
                }
                if references:
                    changes["model.references"] = references
                cells.append(Cell(arm, task, seed, _stage(told["experiment"], changes, common)))
    return cells


def collect(claim: Config, cells: list[Cell], seeds: int, source: str) -> dict[str, Any]:
    """Return all measured values by arm, task and seed, with what they rest on; from the records alone."""
    results: dict[str, Any] = {"source": source, "seeds": seeds, "arms": {}, "runs": {}}
    for cell in cells:
        record = cell.stage.record
        values = {name: value for name, value in record["metrics"].items() if name.startswith("test/") or "@" in name}
        values = {name.removeprefix("test/"): value for name, value in values.items() if not name.startswith("val/")}
        results["arms"].setdefault(cell.arm, {}).setdefault(cell.task, {})[str(cell.seed)] = values
        results["runs"][f"{cell.arm}/{cell.task}/{cell.seed}"] = f"{cell.stage.name}/{cell.stage.folder.name}"
    last = cells[-1].stage.record
    results["hardware"], results["versions"] = last["hardware"], last["versions"]
    results["hours"] = round(sum({c.stage.folder: c.stage.record["seconds"] for c in cells}.values()) / 3600, 2)
    return results


def page(paper: str, claim: Config, results: dict[str, Any]) -> str:
    """Return the leaderboard page of a paper in Markdown."""
    tasks, arms = claim["tasks"], claim["arms"]
    head = "| | " + " | ".join(f"{task} ({told['shown']})" for task, told in tasks.items()) + " |"
    rule = "|---" * (len(tasks) + 1) + "|"
    ours = [
        f"| {arm} | " + " | ".join(spread(results, arm, task, told["metric"]) for task, told in tasks.items()) + " |"
        for arm in arms
    ]
    theirs = [
        f"| {arm} | " + " | ".join(str(row.get(task, "")) for task in tasks) + " |"
        for arm, row in claim["reported"]["rows"].items()
    ]
    loyalty = []
    for arm, told in arms.items():
        for teacher in told.get("teachers", []):
            cells = [
                " / ".join(spread(results, arm, task, metric, teacher) for metric in told_task["loyalty"])
                for task, told_task in tasks.items()
            ]
            loyalty.append(f"| {arm} to {teacher} | " + " | ".join(cells) + " |")
    sizes = [
        f"| {arm} | {_mean(results, arm, 'pretraining', 'parameters@student', 1e-6):.2f} | "
        f"{_mean(results, arm, 'pretraining', 'megabytes@student', 1):.2f} | "
        f"{spread(results, arm, 'pretraining', 'accuracy')} | "
        f"{spread(results, arm, 'pretraining', 'perplexity', scale=1)} | {_speeds(results, arm)} |"
        for arm in arms
    ]
    embedded = "**These figures rest on embedded (generated) data.**\n" if results["source"] == "embedded" else ""
    command = f"kdbench reproduce {paper} --seeds {results['seeds']} --source {results['source']}"
    hardware = results["hardware"]
    return f"""# {claim["title"]}

{claim["source_of_claim"]}

{claim["statement"]}

## Measured here
{embedded}Mean ± standard deviation over {results["seeds"]} seeds, times 100; source `{results["source"]}`.

{head}
{rule}
{chr(10).join(ours)}

## Reported by the paper
{claim["reported"]["source"]}

{head}
{rule}
{chr(10).join(theirs)}

## Loyalty to the teachers
The student's predictions against its teacher's on the test inputs, no label involved. Tagging and classification: label
loyalty / probability loyalty (1 - Jensen-Shannon distance, base e); similarity: Pearson. Times 100.

{head}
{rule}
{chr(10).join(loyalty)}

## Size, masked tokens, speed
Masked-token accuracy (times 100) and perplexity are of each arm's own test maskings; perplexities of different
vocabularies do not compare. Speed: forward pass of the encoder, the teacher's seconds over the student's in one run.

| | parameters, M | MB | masked accuracy | perplexity | student faster than |
|---|---|---|---|---|---|
{chr(10).join(sizes)}

## How it was made
{claim["recipe"]}

```
{command}
```
{results["hours"]} hours of fitting on {hardware["device"]}, {hardware["threads"]} threads;
{", ".join(f"{name} {number}" for name, number in results["versions"].items())}.
Every value and the run it comes from: [results.json](results.json).
"""


def spread(results: dict[str, Any], arm: str, task: str, metric: str, of: str = "student", scale: float = 100.0) -> str:
    """Return ``mean ± standard deviation`` of a metric over the seeds, or a dash where there is none."""
    values = _values(results, arm, task, f"{metric}@{of}")
    if not values:
        return "-"
    mean = scale * statistics.fmean(values)
    return f"{mean:.2f} ± {scale * statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def _values(results: dict[str, Any], arm: str, task: str, name: str) -> list[float]:
    seeds = results["arms"].get(arm, {}).get(task, {}).values()
    return [values[name] for values in seeds if values.get(name) is not None and math.isfinite(values[name])]


def _mean(results: dict[str, Any], arm: str, task: str, name: str, scale: float) -> float:
    return scale * statistics.fmean(_values(results, arm, task, name))


def _speeds(results: dict[str, Any], arm: str) -> str:
    seeds = results["arms"][arm]["pretraining"].values()
    names = list(dict.fromkeys(name for values in seeds for name in values if name.startswith("speed_ratio@")))
    shown = [
        f"{name.partition('@')[2]} {spread(results, arm, 'pretraining', 'speed_ratio', name.partition('@')[2], 1)}"
        for name in names
    ]
    return ", ".join(shown) or "-"


def _terminal_table(claim: Config, results: dict[str, Any]) -> Table:
    table = Table(title=claim["title"], title_justify="left")
    table.add_column("")
    for task in claim["tasks"]:
        table.add_column(task, justify="right")
    for arm in claim["arms"]:
        table.add_row(arm, *(spread(results, arm, task, told["metric"]) for task, told in claim["tasks"].items()))
    table.add_section()
    for arm, row in claim["reported"]["rows"].items():
        table.add_row(f"paper: {arm}", *(str(row.get(task, "")) for task in claim["tasks"]))
    return table


def _task_changes(claim: Config, arm: str, seed: int, source: str) -> Config:
    """Return what makes a task's experiment fine-tune the network of an arm."""
    told = claim["arms"][arm]
    own = {"seed_everything": seed if told.get("seeded", True) else 0, "data.source": source}
    return {
        "data.source": source,
        "seed_everything": seed,
        "model.student.experiment": told["experiment"],
        "model.student.set": own | _of_stage(claim.get("overrides") or {}, told["experiment"]),
    }


def _of_stage(common: Config, file: str) -> Config:
    return common.get(Path(file).stem, {})


def _stage(file: str, changes: Config, common: Config) -> Stage:
    """Plan an experiment with changes; ``common`` reaches it and every stage below it by the stem of their files."""
    asked = experiment.read(file, overrides=[*_of_stage(common, file).items(), *changes.items()])
    config = experiment.merge(asked.config, {"stages": common}) if common else asked.config
    return chain.plan(experiment.Experiment(asked.name, asked.root, config))
