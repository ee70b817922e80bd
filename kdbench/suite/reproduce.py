"""Every arm of a paper's claim with every seed: what is missing is run, and the claims are judged from the records."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

from kdbench.errors import UserError, nearest
from kdbench.files import write_text
from kdbench.suite import chain, claim_file, claims, entries, experiment, page, report, results, workers
from kdbench.suite.claims import OWN, Arm, ClaimFile, Task
from kdbench.suite.experiment import Config, Request
from kdbench.suite.results import Cell, Results
from kdbench.suite.statistics import Answer, Verdict


def reproduce(
    paper: str,
    seeds: int | None,
    source: str | None,
    home: Path,
    dry_run: bool = False,
    jobs: int = 1,
    fresh: bool = False,
    wandb: str | None = None,
) -> dict[str, Verdict]:
    """Run what is missing of a paper's arms, judge its claims, write ``results.json`` and ``README.md``; return the verdicts.

    Args:
        paper: the folder under ``home`` that holds ``claim.yaml``.
        seeds: how many; default: as the claim says.
        source: of the data of all arms that have none of their own; default: as the claim says.
        home: the folder of all leaderboards.
        dry_run: only count what is found and what would be run.
        jobs: how many runs are fitted at once.
        fresh: make a new attempt of every run that is finished.
        wandb: the project to log to, or None.
    """
    folder = home / paper
    file = load(folder, home)
    file = dataclasses.replace(file, seeds=seeds or file.seeds, source=source or file.source)
    cells = list(plan(file, fresh))
    missing = sum(not cell.stage.finished for cell in cells)
    out = report.console()
    out.print(
        f"{paper}: {len(cells)} runs, {len(cells) - missing} found, {missing} to do; source {file.source}",
        highlight=False,
    )
    if dry_run:
        return {}
    labels = {cell.stage.folder: f"{paper} {cell.arm} {cell.task} {cell.pairs} {cell.pair}" for cell in cells}
    arms = {cell.stage.folder: cell.arm for cell in cells}
    noted: set[str] = set()

    def read_in_vain(stage: chain.Stage) -> list[str]:
        """Return what the claims read of a run that does not have it, while there are runs to come: a wrong name, perhaps."""
        mine = [cell for cell in cells if cell.stage.folder == stage.folder]
        faults = claims.unknown_values(file, results.gather(file, mine).values(file)) if mine else []
        new = [each for each in faults if each not in noted]
        noted.update(new)
        return [f"note: {each}" for each in new]

    failed = workers.fit_all([cell.stage for cell in cells], jobs, paper, labels, wandb, arms, read_in_vain)
    found = results.gather(file, cells)
    verdicts = found.verdicts(file)
    results.write(folder, found, verdicts)
    for name, text in page.files(paper, file, found, verdicts, entries.papers(home)).items():
        write_text(folder / name, text)
    show(file, found, verdicts)
    for run, why in failed.items():
        out.print(f"failed: {labels.get(run, run)}: {why}", highlight=False, markup=False, soft_wrap=True)
    out.print(f"Written: {folder / 'README.md'} and {folder / results.FILE}", highlight=False, soft_wrap=True)
    return verdicts


def load(folder: Path, home: Path) -> ClaimFile:
    """Return the claim file of a paper (``distilbert_ro``) or of one of its parts (``distilbert_ro/romanian``)."""
    if not (folder / "claim.yaml").exists():
        known = [str(each.parent.relative_to(home)) for each in home.rglob("claim.yaml")]
        raise UserError(f"There is no '{folder / 'claim.yaml'}'.{nearest(str(folder.relative_to(home)), known)}")
    return claim_file.load(folder / "claim.yaml")


def show(file: ClaimFile, found: Results, verdicts: Mapping[str, Verdict]) -> None:
    """Print the table and the answer to every claim."""
    out = report.console()
    if file.tasks:
        out.print(page.terminal_table(file, found))
    for name, verdict in verdicts.items():
        out.print(f"[bold]{verdict.answer}[/]  {file.claims[name].says}", highlight=False, soft_wrap=True)
        for line in (file.claims[name].expect.text, verdict.evidence, *verdict.notes):
            out.print(f"    {line}", highlight=False, markup=False, soft_wrap=True)


def contradicted(verdicts: Mapping[str, Verdict]) -> bool:
    """Tell whether a claim was contradicted."""
    return any(verdict.answer is Answer.CONTRADICTED for verdict in verdicts.values())


def plan(file: ClaimFile, fresh: bool = False) -> Iterator[Cell]:
    """Yield every run of a claim file, the arms' own runs first, then their tasks.

    An arm whose ``seeds`` are ``none`` has one run of its own; its tasks still have every seed.
    """
    for name, arm in file.arms.items():
        for seed in (0,) if arm.seeds == "none" else range(file.seeds):
            yield from _trials(file, name, "seeds", str(seed), {}, fresh)
    for task_name, task in file.tasks.items():
        for name in task.arms or file.arms:
            for seed in range(file.seeds):
                asked = _request(file, file.arms[name], task.experiment, _on_task(file, name, task, seed))
                yield Cell("seeds", name, task_name, str(seed), 0, asked, _planned(asked, fresh))
    for kind, ((key, values),) in ((kind, told.items()) for kind, told in file.over.items()):
        for name in dict.fromkeys(each.arm for pairs, each in file.references() if pairs == kind):
            for value in values:
                yield from _trials(file, name, kind, str(value), {key: value}, fresh)


def _trials(file: ClaimFile, name: str, pairs: str, pair: str, changes: Config, fresh: bool) -> Iterator[Cell]:
    arm = file.arms[name]
    seed = int(pair) if pairs == "seeds" else 0
    for trial, told in enumerate(arm.best.of if arm.best else ({},)):
        asked = _request(file, arm, arm.experiment, _own(file, arm, seed) | changes | told, seed)
        yield Cell(pairs, name, OWN, pair, trial, asked, _planned(asked, fresh))


def _planned(asked: Request, fresh: bool) -> chain.Stage:
    return chain.plan(asked.read(), fresh=fresh, parents=fresh)


def _own(file: ClaimFile, arm: Arm, seed: int) -> Config:
    """Return the changes that make an arm's experiment its own run with a seed."""
    own = {"seed_everything": 0 if arm.seeds == "none" else seed}
    if _has_data(arm.experiment):
        own = {"data.source": arm.source or file.source, **own}
    return own | ({} if arm.fit else {"fit": False}) | arm.set


@functools.cache
def _has_data(path: str) -> bool:
    """Whether an experiment has a DataModule, whose source a claim chooses; a study says its own."""
    return "data" in experiment.read(path).config


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


def _request(file: ClaimFile, arm: Arm, path: str, changes: Config, seed: int = 0) -> Request:
    """Return an experiment with changes; the stages of the file and of the arm reach every stage by the stem of its file."""
    common = _common(file, arm)
    if arm.seeds == "chain":
        stems = sorted({each.stem for each in Path("experiments").rglob("*.yaml")})
        common = {stem: {"seed_everything": seed, **common.get(stem, {})} for stem in stems}
    stages = {f"stages.{stem}.{key}": value for stem, told in common.items() for key, value in told.items()}
    return Request((path,), _of_stem(common, path) | changes | stages)


def _common(file: ClaimFile, arm: Arm) -> Config:
    stems = file.stages.keys() | arm.stages.keys()
    return {stem: file.stages.get(stem, {}) | arm.stages.get(stem, {}) for stem in sorted(stems)}


def _of_stem(common: Config, file: str) -> Config:
    return common.get(Path(file).stem, {})
