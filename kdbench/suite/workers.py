"""Many fits in few long-lived processes: the imports of a fit cost seconds, so a process fits one run after another."""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kdbench.errors import UserError
from kdbench.suite.chain import Stage
from kdbench.suite.runs import Tracking

LOG = "logs/worker.log"
_SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in an unknown state


def fit_all(
    stages: Iterable[Stage],
    jobs: int = 1,
    title: str = "",
    labels: Mapping[Path, str] | None = None,
    wandb: str | None = None,
    arms: Mapping[Path, str] | None = None,
    after: Callable[[Stage], Iterable[str]] = lambda _: (),
) -> dict[Path, str]:
    """Fit stages and all that they are made from, each once and deepest first; return what failed: run folder, sentence.

    One failure stops only what is made from it. What a fit prints goes to ``logs/worker.log`` in its run folder; a fit with
    several devices gets processes of its own.

    Args:
        stages: the last stages of their chains.
        jobs: how many are fitted at once; the cores are shared evenly among them.
        title: of the progress view.
        labels: what a stage is called there, by its folder; default: the name of its experiment.
        wandb: the project to log to, or None.
        arms: the arm of a claim that a stage is there for, by its folder; W&B shows it.
        after: what there is to say when a stage is done, in lines.

    Raises:
        UserError: ``jobs`` is less than 1.
    """
    if jobs < 1:
        raise UserError(f"--jobs is at least 1, not {jobs}.")
    ordered = {stage.folder: stage for each in stages for stage in each.walk()}
    todo = {folder: stage for folder, stage in ordered.items() if not stage.finished}
    told = {folder: (labels or {}).get(folder, stage.name) for folder, stage in todo.items()}
    view = _View(title, todo, told, [stage for stage in ordered.values() if stage.finished], jobs)
    tracking = {folder: Tracking(wandb, (arms or {}).get(folder)) for folder in todo} if wandb else {}
    failed: dict[Path, str] = {}
    crew = [_Worker(jobs) for _ in range(min(jobs, len(todo)))]
    try:
        with view:
            while todo or any(worker.stage for worker in crew):
                _assign(crew, todo, failed, told, view, tracking)
                _listen(crew, failed, view, after)
    except BaseException:
        for worker in crew:
            worker.process.kill()  # every fit resumes exactly, so there is nothing to wait for
        raise
    for worker in crew:
        worker.dismiss()
    return failed


class _Worker:
    """A process that fits one stage after another."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.stage: Stage | None = None
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        threads = max(1, (os.cpu_count() or 1) // self.jobs) if self.jobs > 1 else None
        self.process = _SPAWN.Process(target=_work, args=(theirs, threads))
        self.process.start()
        theirs.close()  # with its only other end in the process, the pipe tells of its death

    def give(self, stage: Stage, wandb: Tracking | None) -> None:
        self.stage = stage
        self.pipe.send((stage, wandb))

    def receive(self) -> tuple[str, Any]:
        """Return what the process says; of one that died, how, and start another in its place."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            self._start()
            how = f"was killed by signal {-code}: memory?" if code < 0 else f"ended with exit code {code}"
            return "ended", f"its process {how}"

    def dismiss(self) -> None:
        self.pipe.close()
        self.process.join()


def _assign(
    crew: list[_Worker],
    todo: dict[Path, Stage],
    failed: dict[Path, str],
    told: Mapping[Path, str],
    view: "_View",
    tracking: Mapping[Path, Tracking],
) -> None:
    """Give every idle worker the first stage whose parents are there; note those whose parents failed."""
    for folder, stage in list(todo.items()):
        if lost := [parent.folder for parent in stage.parents.values() if parent.folder in failed]:
            failed[folder] = f"it is made from '{told[lost[0]]}', which failed"
            del todo[folder]
            view.ended(stage, failed[folder])
    busy = {worker.stage.folder for worker in crew if worker.stage}
    open_ = busy | todo.keys()
    for worker in (each for each in crew if each.stage is None):
        ready = (s for s in todo.values() if open_.isdisjoint(parent.folder for parent in s.parents.values()))
        if (stage := next(ready, None)) is None:
            return
        del todo[stage.folder]
        worker.give(stage, tracking.get(stage.folder))
        view.began(stage)


def _listen(
    crew: list[_Worker], failed: dict[Path, str], view: "_View", after: Callable[[Stage], Iterable[str]]
) -> None:
    """Take in what the workers say, for half a second at most."""
    pipes = {worker.pipe: worker for worker in crew if worker.stage}
    for pipe in wait(list(pipes), timeout=0.5):
        worker = pipes[pipe]
        what, content = worker.receive()
        if what == "step":
            view.moved(worker.stage, *content)
            continue
        stage, worker.stage = worker.stage, None
        if content is not None:
            failed[stage.folder] = content
        view.ended(stage, content)
        for line in after(stage) if content is None else ():
            view.say(line)
    view.refresh()


class _View:
    """One bar over all runs with the time left, one for each that is being fitted; plain lines where there is no terminal."""

    def __init__(
        self, title: str, todo: Mapping[Path, Stage], told: Mapping[Path, str], found: Iterable[Stage], jobs: int
    ) -> None:
        self.told, self.jobs = told, jobs
        self.console = Console(stderr=True)
        self.open = {folder: stage.name for folder, stage in todo.items()}
        self.seconds: dict[str, list[float]] = {}  # by experiment, to guess the time left
        for stage in found:
            self.seconds.setdefault(stage.name, []).append(stage.record["seconds"])
        self.clock: dict[Path, float] = {}
        self.rows: dict[Path, Any] = {}
        self.done, self.total = 0, len(todo)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[more]}"),
            console=self.console,
            auto_refresh=False,
            transient=True,
        )
        self.whole = self.bars.add_task(f"[bold]{title}[/]", total=self.total, more="")

    def __enter__(self) -> "_View":
        if self.console.is_terminal and self.total:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal and self.total:
            self.bars.stop()

    def began(self, stage: Stage) -> None:
        self.clock[stage.folder] = time.monotonic()
        self.rows[stage.folder] = self.bars.add_task(f"  {self.told[stage.folder]}", total=1, more="starting")

    def moved(self, stage: Stage, doing: str, done: int, total: int | None) -> None:
        self.bars.update(self.rows[stage.folder], completed=done, total=total or done, more=doing)

    def ended(self, stage: Stage, fault: str | None) -> None:
        """Say that a stage is done, or in one line why not."""
        took = time.monotonic() - self.clock.pop(stage.folder, time.monotonic())
        self.open.pop(stage.folder)
        self.done += 1
        if fault is None:
            self.seconds.setdefault(stage.name, []).append(took)
        if (row := self.rows.pop(stage.folder, None)) is not None:
            self.bars.remove_task(row)
        if fault is not None or not self.console.is_terminal:
            how = f"{took:.0f} s{self._left()}" if fault is None else f"failed: {fault}"
            self.say(f"{self.done}/{self.total} {self.told[stage.folder]}: {how}")

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def refresh(self) -> None:
        if self.console.is_terminal:
            self.bars.update(self.whole, completed=self.done, more=self._left().lstrip(", "))
            self.bars.refresh()

    def _left(self) -> str:
        """Return the time left, guessed from the runs of the same experiments so far."""
        known = [each for every in self.seconds.values() for each in every]
        if not known or not self.open:
            return ""
        means = {name: sum(every) / len(every) for name, every in self.seconds.items()}
        ahead = sum(means.get(name, sum(known) / len(known)) for name in self.open.values())
        ahead -= sum(time.monotonic() - began for began in self.clock.values())
        minutes = max(0.0, ahead) / min(self.jobs, len(self.open)) / 60
        return f", about {minutes:.0f} min left" if minutes >= 1 else ", under a minute left"


# ---- in the worker ----


def _work(pipe: Connection, threads: int | None) -> None:
    """Fit what comes through the pipe until it is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    while True:
        try:
            stage, wandb = pipe.recv()
        except EOFError:
            return
        pipe.send(("ended", _fitted(stage, wandb, pipe)))


def _fitted(stage: Stage, wandb: Tracking | None, pipe: Connection) -> str | None:
    """Fit a stage; return None, or one sentence that says why it failed."""
    from kdbench.callbacks.progress import Steps
    from kdbench.suite import fit

    log = stage.folder / LOG
    try:
        with _output_to(log):
            try:
                if _processes(stage) > 1:
                    _fit_apart(stage, wandb, log)
                else:
                    fit.fit(stage, wandb, quiet=True, watch=[Steps(lambda *told: pipe.send(("step", told)))])
            except (UserError, SystemExit):
                raise
            except Exception as error:
                traceback.print_exc()
                return f"{type(error).__name__}: {error}; the traceback is in '{log}'"
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"'{log}' cannot be written: {error.strerror}"
    except SystemExit:
        return "it was terminated"
    return None


def _processes(stage: Stage) -> int:
    """Return how many processes the trainer of a stage asks for."""
    trainer = stage.config.get("trainer", {})
    devices = trainer.get("devices", 1)
    return (devices if isinstance(devices, int) else 1) * trainer.get("num_nodes", 1)


def _fit_apart(stage: Stage, wandb: Tracking | None, log: Path) -> None:
    """Fit a stage with several devices: the launcher starts the command of this process again, so it needs one of its own."""
    file = stage.folder / "stage.json"
    file.write_text(json.dumps({"stage": stage.as_json(), "wandb": asdict(wandb) if wandb else None}), encoding="utf-8")
    code = subprocess.run([sys.executable, "-m", "kdbench.suite.workers", str(file)]).returncode
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise UserError(f"{''.join(last) or 'it ended'} (exit code {code}); more is in '{log}'")


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Send all that this process prints to a file, what its children print too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(1), os.dup(2)]
    try:
        with log.open("a", encoding="utf-8") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)


def _end_with_parent() -> None:
    """End when the process that gives the work is gone, however it went."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _main(file: str) -> None:
    from kdbench.suite import fit

    told = json.loads(Path(file).read_text(encoding="utf-8"))
    try:
        fit.fit(Stage.from_json(told["stage"]), Tracking(**told["wandb"]) if told["wandb"] else None, quiet=True)
    except UserError as error:
        print(f"kdbench: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    _main(sys.argv[1])
