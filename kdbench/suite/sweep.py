"""Sweeps: many runs under one name, by workers of this machine or as array jobs of Slurm."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdbench.errors import UserError, nearest
from kdbench.files import write_text
from kdbench.suite import plan_file, report, runs, slurm, sweep_status
from kdbench.suite.chain import Stage
from kdbench.suite.experiment import Config, Request
from kdbench.suite.grid import Grid, wandb_sweep
from kdbench.suite.plan_file import Entry, Run
from kdbench.suite.sweep_status import State


def of_experiment(
    word: str,
    overlays: Sequence[str],
    changes: Config,
    asked: Grid,
    samples: int | None = None,
    sample_seed: int = 0,
    options: slurm.Options | None = None,
) -> list[Run]:
    """Return the runs of a sweep of one experiment.

    Args:
        word: a file, or the name of one in ``experiments/``.
        overlays: files that are laid over it.
        changes: dotted settings that all runs share.
        asked: the grid.
        samples: how many settings are drawn from it; default: all.
        sample_seed: names the draw.
        options: of the cluster; they may spread a run over processes, which makes it another run.
    """
    world = options.world if options else {}
    request = Request((str(experiment_file(word)), *overlays), changes | world)
    found = []
    for label, each in asked.requests(request, samples, sample_seed):
        run = Run.of(label, each)
        if world and options.stages_too:
            stems = {stage.name.rpartition("/")[2] for stage in run.stage.walk()} - {run.stage.name.rpartition("/")[2]}
            below = {f"stages.{stem}.{key}": value for stem in sorted(stems) for key, value in world.items()}
            run = Run.of(label, Request(each.files, below | each.changes))
        found.append(run)
    return found


def of_paper(paper: str, seeds: int | None, source: str | None, home: Path, options: slurm.Options | None) -> list[Run]:
    """Return the runs of all arms of a paper's claim; ``kdbench reproduce`` with the same words judges them."""
    from kdbench.suite import reproduce

    if not (home / paper / "claim.yaml").exists():
        known = [str(each.parent.relative_to(home)) for each in home.rglob("claim.yaml")]
        raise UserError(
            f"There is no paper '{paper}' with a claim in '{home}', and without --set a sweep is that of a paper's "
            f"claim.{nearest(paper, known)}"
        )
    if options and options.world:
        raise UserError(
            "The runs of a claim are as its file says: --nodes and --gpus-per-node would make other runs of them; set "
            "trainer.num_nodes and trainer.devices in the claim."
        )
    file = reproduce.load(home / paper, home)
    file = dataclasses.replace(file, seeds=seeds or file.seeds, source=source or file.source)
    found = []
    for cell in reproduce.plan(file):
        trial = f" trial={cell.trial}" if file.arms[cell.arm].best else ""
        pair = f"{'seed' if cell.pairs == 'seeds' else cell.pairs}={cell.pair}"
        found.append(Run(f"{cell.arm} {cell.task}{trial} {pair}", cell.request, cell.stage))
    return found


def write_wandb(
    word: str,
    overlays: Sequence[str],
    changes: Config,
    asked: Grid,
    samples: int | None,
    file: str,
    project: str | None,
) -> None:
    """Write the sweep as the YAML of a W&B sweep."""
    request = Request((str(experiment_file(word)), *overlays), changes)
    request.read()
    write_text(Path(file), wandb_sweep(asked, request, project or "kdbench", samples))
    report.console().print(f"Written: {file}; its first lines say how to start it.", highlight=False, soft_wrap=True)


def experiment_file(word: str) -> Path:
    """Return the file of an experiment; raise :class:`UserError` with the nearest name where there is none."""
    for file in (Path(word), Path("experiments", f"{word}.yaml")):
        if file.is_file():
            return file
    known = [file.relative_to("experiments").with_suffix("") for file in Path("experiments").rglob("*.yaml")]
    raise UserError(
        f"There is no experiment '{word}' in experiments/, and with --set a sweep is that of an experiment."
        f"{nearest(word, map(str, known))}"
    )


def check(asked: Sequence[Run]) -> None:
    """Raise one :class:`UserError` when a run cannot be built as it is asked for, before anything is fitted."""
    from kdbench.suite import check, fit

    missing = {stage.folder: stage for run in asked for stage in run.stage.walk() if stage.record is None}
    for stage in missing.values():
        check.check(stage.config)
    if first := next((run.stage for run in asked if run.stage.record is None), None):
        with fit.friendly(first):
            fit.build(first, [], False)


def home(word: str, asked: Sequence[Run], name: str | None = None, to: str | None = None) -> Path:
    """Return the folder of a sweep: in ``to``, else in ``$KDBENCH_SWEEPS``, else in ``sweeps``."""
    digest = runs.digest([run.request.words() for run in asked], 6)
    stem = Path(word).with_suffix("").name if Path(word).suffix == ".yaml" else word.replace("/", "-")
    return Path(to or os.environ.get("KDBENCH_SWEEPS") or "sweeps") / (name or f"{stem}-{digest}")


def start(
    folder: Path,
    asked: Sequence[Run],
    options: slurm.Options | None = None,
    jobs: int = 1,
    wandb: str | None = None,
    dry_run: bool = False,
) -> None:
    """Plan runs in the folder of a sweep, and fit or submit what of them is not done and not being done.

    Args:
        folder: of the sweep.
        asked: the runs.
        options: of the cluster; None: they are fitted here.
        jobs: how many are fitted here at once.
        wandb: the project to log to, or None.
        dry_run: only show what would be done.
    """
    check(asked)
    plan = plan_file.settled(folder, plan_file.entries(asked))
    if not dry_run:
        plan_file.write(folder, plan)
    known = [stage for run in asked for stage in run.stage.walk()]
    _go_on(folder, plan, options, jobs, ["--wandb", wandb] if wandb else [], known, dry_run)


def retry(
    folder: Path, index: int | None = None, jobs: int = 1, wandb: str | None = None, dry_run: bool = False
) -> None:
    """Fit or submit what of a sweep failed or is missing, or of that one index alone.

    What was submitted before goes to Slurm with the same options.
    """
    plan = plan_file.opened(folder)
    if index is not None:
        plan_file.entry(folder / plan_file.PLAN, index)  # refuses one that is none
    options, extra = slurm.before(folder) or (None, [])
    _go_on(folder, plan, options, jobs, ["--wandb", wandb] if wandb else extra, (), dry_run, index)


def status(folder: Path) -> None:
    """Print what has become of a sweep, and what was measured so far."""
    plan = plan_file.opened(folder)
    sweep_status.show_status(folder, sweep_status.states(folder, plan))
    sweep_status.show_results(plan)


def _go_on(
    folder: Path,
    plan: Sequence[Entry],
    options: slurm.Options | None,
    jobs: int,
    extra: Sequence[str],
    known: Iterable[Stage],
    dry_run: bool,
    only: int | None = None,
) -> None:
    found = sweep_status.states(folder, plan)
    todo = [each for each, state, _ in found if state in (State.FAILED, State.MISSING) and only in (None, each.index)]
    counts = [sum(state is each for _, state, _ in found) for each in (State.DONE, State.RUNNING, State.WAITING)]
    out = report.console()
    told = "{} done, {} running, {} waiting".format(*counts)
    out.print(f"{folder}: {len(plan)} entries: {told}, {len(todo)} to do", highlight=False, soft_wrap=True)
    if dry_run:
        for each in todo:
            out.print(
                f"  {each.index}  level {each.level}  {each.label}", highlight=False, markup=False, soft_wrap=True
            )
    if options is not None:
        slurm.submit(folder, plan, todo, options, extra, dry_run)
        return
    if dry_run:
        return
    failed = _fit_here(folder, todo, jobs, extra[1] if extra else None, known)
    sweep_status.show_results(plan)
    if failed:
        raise UserError(
            f"{failed} of {len(todo)} runs failed: 'kdbench sweep --status {folder}' says why, --retry runs them again."
        )


def _fit_here(folder: Path, plan: Sequence[Entry], jobs: int, wandb: str | None, known: Iterable[Stage]) -> int:
    """Fit entries on this machine; return how many failed, each with its reason in the folder of the sweep."""
    from kdbench.suite import workers

    there = {(stage.name, stage.id): stage for stage in known}
    todo = [(each, there.get((each.experiment, each.id)) or each.find()) for each in plan]
    labels = {stage.folder: each.label for each, stage in todo}
    failed = workers.fit_all([stage for _, stage in todo], jobs, folder.name, labels, wandb)
    for each, stage in todo:
        log = folder / f"here_{each.index}.log"
        if stage.folder in failed:
            write_text(log, f"{failed[stage.folder]}\n")
        else:
            log.unlink(missing_ok=True)
    return len(failed)
