"""Every arm of a paper's claim with every seed: what is missing is run, and the claims are judged from the records."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.errors import UserError, nearest
from kdbench.files import write_text
from kdbench.suite import chain, claim_file, claims, experiment, fit, page, report
from kdbench.suite.chain import Stage
from kdbench.suite.claims import OWN, Arm, ClaimFile, Task
from kdbench.suite.experiment import Config
from kdbench.suite.statistics import Answer


@dataclass(frozen=True)
class Cell:
    """One run: an arm on a task (or its own run), for one pair of a kind of pairs; ``trial`` counts those of a tuned arm."""

    pairs: str
    arm: str
    task: str
    pair: str
    trial: int
    stage: Stage


def reproduce(
    paper: str,
    seeds: int | None,
    source: str | None,
    home: Path,
    dry_run: bool = False,
) -> dict[str, claims.Verdict]:
    """Run what is missing of a paper's arms, judge its claims, write ``results.json`` and ``README.md``; return the verdicts.

    Args:
        paper: the folder under ``home`` that holds ``claim.yaml``.
        seeds: how many; default: as the claim says.
        source: of the data of all arms that have none of their own; default: as the claim says.
        home: the folder of all leaderboards.
        dry_run: only count what is found and what would be run.
    """
    folder = home / paper
    if not (folder / "claim.yaml").exists():
        known = [each.parent.name for each in home.glob("*/claim.yaml")]
        raise UserError(f"There is no '{folder / 'claim.yaml'}'.{nearest(paper, known)}")
    file = claim_file.load(folder / "claim.yaml")
    file = dataclasses.replace(file, seeds=seeds or file.seeds, source=source or file.source)
    cells = list(plan(file))
    missing = sum(cell.stage.record is None for cell in cells)
    out = report.console()
    out.print(f"{paper}: {len(cells)} runs, {len(cells) - missing} found, {missing} to do; source {file.source}")
    if dry_run:
        return {}
    for place, cell in enumerate(cells, 1):
        told = f"  {place}/{len(cells)} {cell.arm} / {cell.task} / {cell.pairs} {cell.pair}"
        try:
            fit.fit(cell.stage, quiet=True)
        except UserError as error:  # one run that fails is a failed pair, not the end of the others
            told = f"{told} failed: {error}"
        out.print(told, highlight=False, soft_wrap=True)
    values, budgets = collect(file, cells), spent(cells)
    verdicts = claims.judge(file, values, budgets)
    results = results_of(file, cells, values, verdicts)
    write_text(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    write_text(folder / "README.md", page.markdown(paper, file, results, values))
    out.print(page.terminal_table(file, results))
    for name, verdict in verdicts.items():
        out.print(f"[bold]{verdict.answer}[/]  {file.claims[name].says}", highlight=False, soft_wrap=True)
        out.print(f"    {file.claims[name].expect.text}", highlight=False, markup=False, soft_wrap=True)
        out.print(f"    {verdict.evidence}", highlight=False, markup=False, soft_wrap=True)
    out.print(f"Written: {folder / 'README.md'} and {folder / 'results.json'}")
    return verdicts


def contradicted(verdicts: dict[str, claims.Verdict]) -> bool:
    """Tell whether a claim was contradicted."""
    return any(verdict.answer is Answer.CONTRADICTED for verdict in verdicts.values())


def plan(file: ClaimFile) -> Iterator[Cell]:
    """Yield every run of a claim file, the arms' own runs first, then their tasks.

    An arm whose ``seeds`` are ``none`` has one run of its own; its tasks still have every seed.
    """
    for name, arm in file.arms.items():
        for seed in (0,) if arm.seeds == "none" else range(file.seeds):
            yield from _trials(file, arm, Cell("seeds", name, OWN, str(seed), 0, None), {})
    for task_name, task in file.tasks.items():
        for name in task.arms or file.arms:
            for seed in range(file.seeds):
                stage = _stage(file, file.arms[name], task.experiment, _on_task(file, name, task, seed))
                yield Cell("seeds", name, task_name, str(seed), 0, stage)
    for kind, ((key, values),) in ((kind, told.items()) for kind, told in file.over.items()):
        for name in dict.fromkeys(_arms_over(file, kind)):
            for value in values:
                yield from _trials(file, file.arms[name], Cell(kind, name, OWN, str(value), 0, None), {key: value})


def collect(file: ClaimFile, cells: list[Cell]) -> dict[str, claims.Runs]:
    """Return the metrics of all runs by kind of pairs, arm, task and pair; a run without a record has none."""
    found: dict[str, Any] = {}
    for cell in cells:
        table = found.setdefault(cell.pairs, {}).setdefault(cell.arm, {}).setdefault(cell.task, {})
        table.setdefault(cell.pair, []).append(metrics_of(cell.stage.record))
    for arms in found.values():
        for name, tasks in arms.items():
            for pairs in tasks.values():
                for pair, trials in pairs.items():
                    best = file.arms[name].best
                    pairs[pair] = [trials[place] for place in best.chosen(trials)] if best else trials[0]
    return found


def metrics_of(record: fit.Record | None) -> claims.Metrics:
    """Return a record's metrics by the names that claims use: ``macro_f1@student``, ``val/loss``, ``run/seconds``."""
    if record is None:
        return {}
    facts = {f"run/{name}": record[name] for name in ("seconds", "steps", "peak_memory_mb")}
    return {name.removeprefix("test/"): value for name, value in record["metrics"].items()} | facts


def spent(cells: list[Cell]) -> dict[str, dict[str, list[float]]]:
    """Return the steps and seconds of each own run of each arm, summed over the runs that its student is made from."""
    found: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        if cell.task != OWN or cell.stage.record is None:
            continue
        records = [stage.record for stage in _own_chain(cell.stage)]
        for measure in ("steps", "seconds"):
            total = sum(record[measure] for record in records if record is not None)
            found.setdefault(cell.arm, {}).setdefault(measure, []).append(total)
    return found


def results_of(
    file: ClaimFile, cells: list[Cell], values: dict[str, claims.Runs], verdicts: dict[str, claims.Verdict]
) -> Config:
    """Return what ``results.json`` holds: all values, the run of each, the verdicts, and what they rest on."""
    done = [cell for cell in cells if cell.stage.record is not None]
    if not done:
        raise UserError("Every run failed: there is nothing to judge.")
    last = done[-1].stage.record
    return {
        "source": file.source,
        "seeds": file.seeds,
        "values": values,
        "runs": {
            f"{cell.pairs}/{cell.arm}/{cell.task}/{cell.pair}/{cell.trial}": f"{cell.stage.name}/{cell.stage.folder.name}"
            for cell in done
        },
        "claims": {
            name: {
                "answer": str(verdict.answer),
                "says": file.claims[name].says,
                "expect": file.claims[name].expect.text,
                "evidence": verdict.evidence,
                "notes": list(verdict.notes),
            }
            for name, verdict in verdicts.items()
        },
        "hardware": last["hardware"],
        "versions": last["versions"],
        "hours": round(sum({c.stage.folder: c.stage.record["seconds"] for c in done}.values()) / 3600, 2),
    }


def _trials(file: ClaimFile, arm: Arm, cell: Cell, changes: Config) -> Iterator[Cell]:
    seed = int(cell.pair) if cell.pairs == "seeds" else 0
    for trial, told in enumerate(arm.best.of if arm.best else ({},)):
        stage = _stage(file, arm, arm.experiment, _own(file, arm, seed) | changes | told, seed)
        yield dataclasses.replace(cell, trial=trial, stage=stage)


def _own(file: ClaimFile, arm: Arm, seed: int) -> Config:
    """Return the changes that make an arm's experiment its own run with a seed."""
    own = {"data.source": arm.source or file.source, "seed_everything": 0 if arm.seeds == "none" else seed}
    return own | arm.set


def _on_task(file: ClaimFile, name: str, task: Task, seed: int, alone: bool = False) -> Config:
    """Return what makes a task's experiment fine-tune the network of an arm, compared with those of its teachers."""
    arm = file.arms[name]
    changes = {
        "data.source": task.source or arm.source or file.source,
        "seed_everything": seed,
        "model.student.experiment": arm.experiment,
        "model.student.set": _own(file, arm, seed) | _of_stem(_common(file, arm), arm.experiment),
    }
    references = {
        teacher: {
            "class_path": "FromRun",
            "init_args": {
                "experiment": task.experiment,
                "set": _on_task(file, teacher, task, seed, alone=True)
                | _of_stem(_common(file, file.arms[teacher]), task.experiment),
            },
        }
        for teacher in (() if alone else arm.teachers)
        if not task.arms or teacher in task.arms
    }
    return changes | task.set | ({"model.references": references} if references else {})


def _stage(file: ClaimFile, arm: Arm, path: str, changes: Config, seed: int = 0) -> Stage:
    """Plan an experiment with changes; the stages of the file and of the arm reach every stage by the stem of its file."""
    common = _common(file, arm)
    if arm.seeds == "chain":
        stems = {each.stem for each in Path("experiments").rglob("*.yaml")}
        common = {stem: {"seed_everything": seed, **common.get(stem, {})} for stem in stems}
    asked = experiment.read(path, overrides=[*_of_stem(common, path).items(), *changes.items()])
    config = experiment.merge(asked.config, {"stages": common}) if common else asked.config
    return chain.plan(experiment.Experiment(asked.name, asked.root, config))


def _common(file: ClaimFile, arm: Arm) -> Config:
    stems = file.stages.keys() | arm.stages.keys()
    return {stem: file.stages.get(stem, {}) | arm.stages.get(stem, {}) for stem in sorted(stems)}


def _of_stem(common: Config, file: str) -> Config:
    return common.get(Path(file).stem, {})


def _arms_over(file: ClaimFile, kind: str) -> Iterator[str]:
    for told in [*file.claims.values(), *file.report.values()]:
        if told.pairs == kind:
            yield from (each.arm for each in (told.expect if isinstance(told, claims.Claim) else told.value).references)


def _own_chain(stage: Stage) -> Iterator[Stage]:
    """Yield a run and those that its student comes from; its teachers cost their own."""
    yield stage
    if (parent := stage.parents.get("model.student")) is not None:
        yield from _own_chain(parent)
