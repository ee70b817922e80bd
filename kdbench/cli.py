"""The one door: ``kdbench <verb> ...``. Torch is imported only when a verb needs it."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kdbench.errors import UserError, nearest, refused_by_disk

HELP = """\
kdbench: knowledge distillation papers as runnable experiments and checkable claims

  kdbench fit       --config FILE [--config FILE ...] [--key value ...]   fit an experiment and what it is made from
  kdbench validate  --config FILE ...            score the finished run of an experiment on its validation split
  kdbench test      --config FILE ...            score it on its test split, with loyalty to the references
  kdbench predict   --config FILE ...            write its predictions for the test split
  kdbench reproduce PAPER [--seeds N] [--source S]   run every arm of a paper's claim, print its table and the verdicts;
                                                 --jobs N fits N runs at once, --fresh runs all anew, --dry-run only
                                                 counts, --strict exits 3 when a claim is contradicted
  kdbench sweep     EXPERIMENT --set key=a,b,c [--set key=log(1e-5,1e-2) --samples N] [--seeds N]   run a grid, or draws;
                    PAPER                        or without --set all runs of a paper's claim; --jobs N at once here,
                                                 --slurm as arrays of a cluster, with sbatch's --partition, --time, ...,
                                                 --nodes N and --gpus-per-node N of a run; --dry-run only shows them
  kdbench sweep     --status | --retry FOLDER    what has become of a sweep; run again what failed or is missing, or only
                                                 --index N of it
  kdbench leaderboard [PAPER ...]                render leaderboards/ from the records; --wandb ENTITY/PROJECT adds those of
                                                 finished Weights & Biases runs, --leaderboards DIR is another folder
  kdbench recommend PAPER --data.dataset NAME ...    the pipelines of a paper's records to try first on a new task;
                                                 --top N, --metric NAME, --teacher-score X where it is known
  kdbench cache     --config FILE ...            compute ahead what the teachers of an experiment say; later runs read it
  kdbench cache     list | prune [--keep-gb N]   what is stored of teachers; remove all, or the least recently used
  kdbench list      [papers|data|models|losses|methods|metrics|studies]   what there is
  kdbench export    RUN [--to FOLDER] [--exit N] the student of a run as a plain transformers folder with a model card; of
                                                 a network with exits one of them, as far as it goes
  kdbench speed     RUN [--batch N] [--length N] size and latency of a run's student against its teachers and its exits

Options of fit, validate, test and predict:
  --config FILE     an experiment, then overlays: dicts merge, a changed class_path replaces its node, null deletes
  --key value       any setting by its dotted name: --data.source local --model.objective.soft.weight 0.5
                    --trainer.max_steps 100 --stages.teacher_cased.trainer.max_steps 50
  --seed N          the seed (default 0)
  --dry-run         print the chain: what is found, what will be fitted, what would be fetched from the hub
  --cache MODE      auto (default), on or off: keep what teachers say, and read it in later epochs and runs
  --fresh           keep the finished run and make a new attempt
  --prepare         fit only what the experiment is made from, before srun starts the fit itself (slurm/README.md)
  --wandb PROJECT   log to Weights & Biases too (offline without a key)
  --print_config    print the merged config and stop
  --runs FOLDER     where runs lie (default: $KDBENCH_RUNS, else ./runs)
  --quiet           no progress bars

Exit codes: 0 done, 2 a mistake of yours in one sentence, 1 a bug with its traceback.
"""


@dataclass
class Arguments:
    """The words after a verb, sorted: flags and options of ours, dotted overrides, plain words."""

    words: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    configs: list[str] = field(default_factory=list)
    overrides: list[tuple[str, Any]] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> None:
    """Run one command and exit: 0 done, 2 the user's mistake, 1 a bug."""
    argv = sys.argv[1:] if argv is None else argv
    if "SLURM_JOB_ID" in os.environ:  # kept from the first moment on for kdbench.callbacks.requeue, else it would kill
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        run(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # as of `kdbench list | head`: who read has seen enough, and nothing more is written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except UserError as error:
        from kdbench.suite import runs

        if runs.first_process():  # the other processes of a run make the same mistake
            print(f"kdbench: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if (why := refused_by_disk(error)) is None:
            raise
        print(f"kdbench: a file cannot be written ({why}): make room, and give the same command.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("kdbench: interrupted; the same command resumes.", file=sys.stderr)
        sys.exit(130)


def run(argv: list[str]) -> None:
    """Run one command."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP)
        return
    verb, rest = argv[0], argv[1:]
    if verb in ("--version", "version"):
        from importlib.metadata import version

        print(f"kdbench {version('kdbench')}")
        return
    if verb not in VERBS:
        raise UserError(f"There is no verb '{verb}'.{nearest(verb, VERBS)} See 'kdbench --help'.")
    if {"-h", "--help"} & set(rest):
        print(HELP)
        return
    VERBS[verb](rest)


def _fit(argv: list[str]) -> None:
    arguments = parse(
        argv,
        {"seed", "wandb", "runs", "cache", "plan", "index"},
        {"dry-run", "fresh", "prepare", "print_config", "quiet"},
    )
    planned = "plan" in arguments.options or "index" in arguments.options
    stage = _planned(arguments) if planned else _stage(arguments, fresh="fresh" in arguments.flags)
    if stage is None:
        return
    from kdbench.suite import report, runs

    if "dry-run" in arguments.flags:
        report.show_plan(stage)
        return
    if "prepare" in arguments.flags:
        _fit_parents(stage, "quiet" in arguments.flags)
        return
    found = stage.record is not None
    _prepare_torch()
    from kdbench.suite import fit

    project = arguments.options.get("wandb")
    record = fit.fit(stage, runs.Tracking(project) if project else None, quiet="quiet" in arguments.flags)
    if runs.first_process():
        report.show_record(record, stage.folder, found)


def _planned(arguments: Arguments) -> Any:
    """Return the planned chain of one entry of a sweep's plan."""
    from kdbench.suite import plan_file

    if not {"plan", "index"} <= arguments.options.keys():
        raise UserError("--plan FILE and --index N belong together: N is a line of the plan of a sweep.")
    if alone := [*arguments.configs, *(key for key, _ in arguments.overrides), *({"seed"} & arguments.options.keys())]:
        raise UserError(f"An entry of a plan is as it was planned: leave '{alone[0]}' out.")
    entry = plan_file.entry(Path(arguments.options["plan"]), _whole("index", arguments.options["index"]))
    return entry.find()


def _fit_parents(stage: Any, quiet: bool) -> None:
    """Fit what a stage is made from, in this process alone, whatever Slurm started beside it."""
    from kdbench.suite import runs

    if not runs.first_process():
        return
    missing = {each.folder for each in stage.walk() if each is not stage and not each.finished}
    if missing:
        os.environ.pop("SLURM_NTASKS", None)  # else Lightning waits for the other tasks of the job
        if gpus := os.environ.get("CUDA_VISIBLE_DEVICES"):
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus.partition(",")[0]
        _prepare_torch()
        from kdbench.suite import fit

        for parent in stage.parents.values():
            fit.fit(parent, quiet=quiet)
    print(f"All that {stage.name} is made from is there; {len(missing)} fitted.")


def _evaluate(verb: str) -> Callable[[list[str]], None]:
    def command(argv: list[str]) -> None:
        arguments = parse(argv, {"seed", "runs"}, {"quiet", "print_config"})
        stage = _stage(arguments)
        if stage is None:
            return
        _prepare_torch()
        from kdbench.suite import fit, report

        if verb == "predict":
            print(fit.predict(stage))
        else:
            report.show_record(fit.evaluate(stage, verb, quiet=True), stage.folder, found=True)

    return command


def _cache(argv: list[str]) -> None:
    arguments = parse(argv, {"seed", "runs", "keep-gb"}, {"quiet", "print_config"})
    if not arguments.configs and arguments.words in (["list"], ["prune"]):
        kept = _number("keep-gb", arguments.options.get("keep-gb", "0"))
        _prepare_torch()
        from kdbench.suite import cache

        if arguments.words == ["list"]:
            cache.show()
        else:
            cache.prune(kept)
        return
    stage = _stage(arguments)
    if stage is None:
        return
    _prepare_torch()
    from kdbench.suite import cache

    cache.show_filled(cache.fill(stage, quiet="quiet" in arguments.flags))


def _list(argv: list[str]) -> None:
    from kdbench.suite import report

    arguments = parse(argv, set(), set())
    report.show_list(arguments.words[0] if arguments.words else None)


def _export(argv: list[str]) -> None:
    arguments = parse(argv, {"to", "exit", "runs"}, set())
    _prepare_torch()
    from kdbench.suite import product

    told = arguments.options
    to = Path(told["to"]) if "to" in told else None
    print(product.export(_run_folder(arguments), to, _whole("exit", told["exit"]) if "exit" in told else None))


def _speed(argv: list[str]) -> None:
    arguments = parse(argv, {"batch", "length", "repeats", "runs"}, set())
    _prepare_torch()
    from kdbench.suite import product

    numbers = {key: _whole(key, value) for key, value in arguments.options.items() if key != "runs"}
    product.show_speed(_run_folder(arguments), **numbers)


def _reproduce(argv: list[str]) -> None:
    arguments = parse(
        argv, {"seeds", "source", "runs", "leaderboards", "jobs", "wandb"}, {"dry-run", "strict", "fresh"}
    )
    if len(arguments.words) != 1:
        raise UserError("Name one paper: 'kdbench reproduce distilbert_ro'.")
    _prepare_torch()
    from kdbench.suite import reproduce

    verdicts = reproduce.reproduce(
        arguments.words[0],
        seeds=_whole("seeds", arguments.options["seeds"]) if "seeds" in arguments.options else None,
        source=arguments.options.get("source"),
        home=Path(arguments.options.get("leaderboards", "leaderboards")),
        dry_run="dry-run" in arguments.flags,
        jobs=_whole("jobs", arguments.options.get("jobs", "1")),
        fresh="fresh" in arguments.flags,
        wandb=arguments.options.get("wandb"),
    )
    if "strict" in arguments.flags and reproduce.contradicted(verdicts):
        sys.exit(3)


def _leaderboard(argv: list[str]) -> None:
    arguments = parse(argv, {"leaderboards", "wandb", "runs"}, set())
    if foreign := [*arguments.configs, *(key for key, _ in arguments.overrides)]:
        raise UserError(f"A leaderboard is rendered from records as they are: leave '{foreign[0]}' out.")
    home = Path(arguments.options.get("leaderboards", "leaderboards"))
    if "wandb" in arguments.options:
        _prepare_torch()
        from kdbench.suite import wandb_records

        for line in wandb_records.gather(home, arguments.words, arguments.options["wandb"]):
            print(line)
    from kdbench.suite import leaderboard

    print("\n".join(f"Written: {path}" for path in leaderboard.render(home, arguments.words)))


def _sweep(argv: list[str]) -> None:
    cluster = {"partition", "account", "nodes", "gpus-per-node", "time", "cpus-per-task", "mem", "constraint"}
    cluster |= {"container", "array-limit", "setup"}
    numbers = {"nodes", "gpus-per-node", "cpus-per-task", "array-limit"}
    own = {"set", "seeds", "samples", "sample-seed", "name", "to", "jobs", "wandb", "wandb-sweep", "status", "retry"}
    arguments = parse(
        argv, own | cluster | {"index", "runs", "source", "leaderboards"}, {"slurm", "stages-too", "dry-run"}
    )
    told, dry_run = arguments.options, "dry-run" in arguments.flags
    jobs = _whole("jobs", told.get("jobs", "1"))
    if alone := ({"stages-too"} & arguments.flags | cluster & told.keys()) if "slurm" not in arguments.flags else ():
        raise UserError(f"'--{min(alone)}' is for a cluster: it goes with --slurm.")
    if "index" in told and "retry" not in told:
        raise UserError("'--index' goes with --retry FOLDER, or with --plan of 'kdbench fit'.")
    _prepare_torch()
    from kdbench.suite import grid, slurm, sweep

    if "status" in told:
        sweep.status(Path(told["status"]))
        return
    if "retry" in told:
        index = _whole("index", told["index"]) if "index" in told else None
        sweep.retry(Path(told["retry"]), index, jobs, told.get("wandb"), dry_run)
        return
    if len(arguments.words) != 1:
        raise UserError("Name one experiment with --set, or one paper: 'kdbench sweep distilbert_ro --set key=1,2'.")
    options = None
    if "slurm" in arguments.flags:
        asked = {name: _whole(name, told[name]) if name in numbers else told[name] for name in cluster & told.keys()}
        asked = {name.replace("-", "_"): value for name, value in asked.items()}
        options = slurm.Options(**asked, stages_too="stages-too" in arguments.flags)
    (word,), seeds = arguments.words, _whole("seeds", told["seeds"]) if "seeds" in told else None
    samples = _whole("samples", told["samples"]) if "samples" in told else None
    if arguments.settings:
        found = grid.parse(arguments.settings, seeds or 1)
        changes = dict(arguments.overrides) | ({"data.source": told["source"]} if "source" in told else {})
        if "wandb-sweep" in told:
            sweep.write_wandb(word, arguments.configs, changes, found, samples, told["wandb-sweep"], told.get("wandb"))
            return
        draw = _whole("sample-seed", told.get("sample-seed", "0"))
        runs = sweep.of_experiment(word, arguments.configs, changes, found, samples, draw, options)
    else:
        if foreign := [*arguments.configs, *(key for key, _ in arguments.overrides), *({"samples"} & told.keys())]:
            raise UserError(f"The runs of a claim are as its file says: leave '{foreign[0]}' out, or say --set key=...")
        runs = sweep.of_paper(word, seeds, told.get("source"), Path(told.get("leaderboards", "leaderboards")), options)
    folder = sweep.home(word, runs, told.get("name"), told.get("to"))
    sweep.start(folder, runs, options, jobs, told.get("wandb"), dry_run)


def _recommend(argv: list[str]) -> None:
    arguments = parse(argv, {"top", "metric", "teacher-score", "seed", "leaderboards"}, set())
    if len(arguments.words) != 1:
        raise UserError(
            "Name one paper whose records are learnt from: 'kdbench recommend distiller --data.dataset ...'."
        )
    told = arguments.options
    _prepare_torch()
    from kdbench.suite import recommend

    recommend.recommend(
        arguments.words[0],
        Path(told.get("leaderboards", "leaderboards")),
        dict(arguments.overrides),
        top=_whole("top", told.get("top", "3")),
        metric=told.get("metric", "accuracy"),
        teacher_score=_number("teacher-score", told["teacher-score"]) if "teacher-score" in told else None,
        seed=_whole("seed", told.get("seed", "0")),
    )


VERBS: dict[str, Callable[[list[str]], None]] = {
    "fit": _fit,
    "validate": _evaluate("validate"),
    "test": _evaluate("test"),
    "predict": _evaluate("predict"),
    "cache": _cache,
    "reproduce": _reproduce,
    "leaderboard": _leaderboard,
    "recommend": _recommend,
    "sweep": _sweep,
    "list": _list,
    "export": _export,
    "speed": _speed,
}


def parse(argv: list[str], options: set[str], flags: set[str]) -> Arguments:
    """Sort the words after a verb; a dotted option is an override of the config, its value read as YAML."""
    found = Arguments()
    words = iter(argv)
    for word in words:
        if not word.startswith("--"):
            found.words.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if name in flags:
            found.flags.add(name)
            continue
        if name != "config" and name not in options and "." not in name:
            raise UserError(f"There is no option '--{name}'.{nearest(name, {'config', *options, *flags})}")
        if not equals:
            value = next(words, None)
            if value is None:
                raise UserError(f"'--{name}' needs a value.")
        if name == "config":
            found.configs.append(value)
        elif name == "set" and name in options:
            found.settings.append(value)
        elif name in options:
            found.options[name] = value
        else:
            found.overrides.append((name, _yaml_value(name, value)))
    if "runs" in found.options:
        os.environ["KDBENCH_RUNS"] = found.options["runs"]
    return found


def _stage(arguments: Arguments, fresh: bool = False) -> Any:
    """Return the planned chain of the experiment, or None when only its config was asked for."""
    from kdbench.suite import chain, experiment

    if not arguments.configs:
        raise UserError("Name an experiment: --config experiments/distilbert_ro.yaml ('kdbench list' shows them).")
    if arguments.words:
        raise UserError(f"'{arguments.words[0]}' is no option; files are given as --config FILE.")
    if "cache" in arguments.options:
        arguments.overrides.append(("cache.mode", arguments.options["cache"]))
    if "seed" in arguments.options:
        arguments.overrides.append(("seed_everything", _whole("seed", arguments.options["seed"])))
    asked = experiment.read(*arguments.configs, overrides=arguments.overrides)
    if "print_config" in arguments.flags:
        print(yaml.safe_dump(asked.config, sort_keys=False, allow_unicode=True), end="")
        return None
    return chain.plan(asked, fresh=fresh)


def _run_folder(arguments: Arguments) -> Path:
    if len(arguments.words) != 1:
        raise UserError("Name one run folder, such as runs/distilbert_ro/<id>.")
    folder = Path(arguments.words[0])
    if not (folder / "record.json").exists():
        raise UserError(f"'{folder}' is no finished run: there is no record.json in it.")
    return folder


def _whole(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(f"'--{name}' takes a whole number, not '{value}'.") from None


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UserError(f"'--{name}' takes a number, not '{value}'.") from None


def _yaml_value(name: str, value: str) -> Any:
    from kdbench.suite import grid

    try:
        return grid.read_value(value)
    except yaml.YAMLError:
        raise UserError(f"The value of '--{name}' is not YAML: {value}") from None


def _prepare_torch() -> None:
    """Let idle OpenMP threads sleep: spinning ones cost a shared machine several times the work itself."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when libgomp loads, so before torch is imported
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


if __name__ == "__main__":
    main()
