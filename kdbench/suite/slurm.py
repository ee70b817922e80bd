"""Submitting the plan of a sweep to Slurm: one array a level, each after the level before it.

What is submitted is ``slurm/sweep.sbatch`` as it lies in the folder of ``experiments/``; options go on sbatch's command line.
"""

import dataclasses
import itertools
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.errors import UserError
from kdbench.files import write_text
from kdbench.suite import report
from kdbench.suite.plan_file import PLAN, Entry

SCRIPT = Path("slurm", "sweep.sbatch")
SUBMITTED = "submitted.json"


@dataclass(frozen=True)
class Options:
    """What a sweep asks of the cluster, by the names of sbatch's options; ``nodes`` and ``gpus_per_node`` are those of a run."""

    partition: str | None = None
    account: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    time: str | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    constraint: str | None = None
    container: str | None = None
    """An image in which srun starts the runs (pyxis)."""
    array_limit: int | None = None
    """How many tasks of an array run at once."""
    setup: str | None = None
    """A file that every job sources first: modules, a virtual environment."""
    stages_too: bool = False
    """Whether what the runs are made from is spread over as many processes as a run."""

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node", "cpus_per_task", "array_limit"):
            if (value := getattr(self, name)) is not None and value < (least := int(name != "gpus_per_node")):
                raise UserError(f"--{name.replace('_', '-')} is at least {least}, not {value}.")

    @property
    def world(self) -> dict[str, Any]:
        """The settings of a trainer that is spread over the nodes and GPUs; none where one process does it all."""
        if self.nodes * max(self.gpus_per_node, 1) == 1:
            return {}
        return {"trainer.num_nodes": self.nodes, "trainer.devices": max(self.gpus_per_node, 1)}

    def words(self, wide: bool) -> list[str]:
        """Return sbatch's options for runs over all the processes, or for one process each."""
        plain = {name: getattr(self, name) for name in ("partition", "account", "time", "mem", "constraint")}
        told = {name: value for name, value in plain.items() if value is not None}
        told |= {"cpus-per-task": self.cpus_per_task} if self.cpus_per_task else {}
        told |= {"nodes": self.nodes if wide else 1}
        told |= {"ntasks-per-node": max(self.gpus_per_node, 1) if wide else 1}
        told |= {"gpus-per-node": self.gpus_per_node if wide else 1} if self.gpus_per_node else {}
        return [f"--{name}={value}" for name, value in told.items()]

    def environment(self) -> dict[str, str]:
        """Return the variables that the script reads."""
        told = {"KDBENCH_SETUP": self.setup, "KDBENCH_CONTAINER": self.container}
        return {name: value for name, value in told.items() if value is not None}


class Queued(NamedTuple):
    """A task in Slurm's queue."""

    job: str
    state: str


def submit(
    folder: Path,
    plan: Sequence[Entry],
    todo: Sequence[Entry],
    options: Options,
    extra: Sequence[str] = (),
    dry_run: bool = False,
) -> None:
    """Submit entries of a sweep, one array a level, or only show what would be submitted.

    Args:
        folder: of the sweep.
        plan: all its entries.
        todo: what to submit.
        options: of the cluster.
        extra: words for ``kdbench fit``.
        dry_run: print the script and the command lines, and submit nothing.

    Raises:
        UserError: no script, no sbatch, or an sbatch that refuses.
    """
    if not SCRIPT.is_file():
        raise UserError(f"There is no '{SCRIPT}' here: give the command where slurm/ and experiments/ lie.")
    if options.setup is not None and not Path(options.setup).is_file():
        raise UserError(f"There is no file '{options.setup}' for --setup.")
    if not dry_run and shutil.which("sbatch") is None:
        raise UserError("There is no sbatch here: --slurm submits on a cluster; --dry-run shows what it would submit.")
    out = report.console()
    if dry_run:
        out.print(SCRIPT.read_text(encoding="utf-8"), highlight=False, markup=False, soft_wrap=True)
    else:
        (folder / SCRIPT.name).write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    ahead = {} if dry_run else queued(folder)
    jobs: list[dict[str, Any]] = []
    for level, entries in itertools.groupby(sorted(todo, key=lambda each: each.level), key=lambda each: each.level):
        lower = {job["job"] for job in jobs if job["level"] < level}
        lower |= {
            f"{ahead[each.index].job}_{each.index}" for each in plan if each.level < level and each.index in ahead
        }
        narrow, wide = [], []
        for each in entries:
            (narrow if each.stage and not options.stages_too else wide).append(each.index)
        for indices, all_processes in ((narrow, False), (wide, True)):
            if not indices:
                continue
            command = _command(folder, indices, sorted(lower), options, all_processes, extra)
            if dry_run:
                job = f"<job {len(jobs)}>"
                line = _line(command, options)
                out.print(f"# {job}\n{line}", highlight=False, markup=False, soft_wrap=True)
            else:
                job = _sbatch(command, options, f"level {level}", [each["job"] for each in jobs])
                out.print(f"level {level}: job {job}, {len(indices)} tasks", highlight=False, soft_wrap=True)
            jobs.append({"job": job, "level": level, "indices": _compact(indices)})
            if not dry_run:
                _remember(folder, options, extra, jobs[-1])


def queued(folder: Path) -> dict[int, Queued]:
    """Return what Slurm's queue holds of a sweep, by index; nothing where there is no Slurm or none was submitted."""
    told = _submitted(folder)
    if not told["jobs"] or shutil.which("squeue") is None:
        return {}
    mine = {job["job"] for job in told["jobs"]}
    command = ["squeue", "--noheader", "--array", "--me", "--format=%F|%K|%T"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(f"squeue does not answer: {_last_line(answer.stderr)}")
    rows = [line.strip().split("|") for line in answer.stdout.splitlines()]
    return {int(index): Queued(job, state) for job, index, state in rows if job in mine}


def before(folder: Path) -> tuple[Options, list[str]] | None:
    """Return the options and the words for ``kdbench fit`` of an earlier submission, None where there was none."""
    told = _submitted(folder)
    return (Options(**told["options"]), told["extra"]) if told["jobs"] else None


def _command(
    folder: Path, indices: Sequence[int], after: Sequence[str], options: Options, wide: bool, extra: Sequence[str]
) -> list[str]:
    limit = f"%{options.array_limit}" if options.array_limit else ""
    wait = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    return [
        *("sbatch", "--parsable", "--export=ALL", f"--job-name=kdbench-{folder.name}"),
        *(f"--array={_compact(indices)}{limit}", f"--output={folder}/%A_%a.log", *wait),
        *options.words(wide),
        *(str(folder / SCRIPT.name), str(folder / PLAN), *extra),
    ]


def _line(command: Sequence[str], options: Options) -> str:
    """Return a command as a person types it, with the variables of ours that it hands on."""
    told = {name: value for name, value in os.environ.items() if name.startswith("KDBENCH_")} | options.environment()
    variables = [f"{name}={shlex.quote(value)}" for name, value in told.items()]
    return " ".join([*variables, *(word if "<job" in word else shlex.quote(word) for word in command)])


def _sbatch(command: Sequence[str], options: Options, what: str, done: Sequence[str]) -> str:
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | options.environment()
    )
    if answer.returncode:
        rest = f" Submitted before it: {', '.join(done)}; 'kdbench sweep --retry' submits the rest." if done else ""
        raise UserError(f"sbatch refuses {what}: {_last_line(answer.stderr)}.{rest}")
    return answer.stdout.strip().partition(";")[0]


def _remember(folder: Path, options: Options, extra: Sequence[str], job: dict[str, Any]) -> None:
    told = _submitted(folder)
    told = {"options": dataclasses.asdict(options), "extra": list(extra), "jobs": [*told["jobs"], job]}
    write_text(folder / SUBMITTED, json.dumps(told, indent=1) + "\n")


def _submitted(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / SUBMITTED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"options": {}, "extra": [], "jobs": []}
    except ValueError:
        raise UserError(f"'{folder / SUBMITTED}' is damaged: cancel its jobs and remove it.") from None


def _compact(indices: Sequence[int]) -> str:
    """Return indices as sbatch reads them: ``0-3,7``."""
    spans = []
    for _, pairs in itertools.groupby(enumerate(sorted(indices)), key=lambda pair: pair[1] - pair[0]):
        span = [index for _, index in pairs]
        spans.append(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}")
    return ",".join(spans)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].removeprefix("sbatch: ").removeprefix("error: ").rstrip(".") if lines else "it says nothing"
