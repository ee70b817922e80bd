"""What a sweep varies: values of settings, ranges to draw from, seeds; and the same as a sweep of Weights & Biases."""

import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from kdbench.errors import UserError, nearest
from kdbench.suite.experiment import Config, Request

DIGITS = 4  # significant ones of a drawn number: what the label shows is what is run
_RANGE = re.compile(r"(\w+)\((.*)\)$", re.DOTALL)


class Numbers(yaml.SafeLoader):
    """YAML that reads ``1e-4`` as the number that people mean by it; YAML 1.1 wants ``1.0e-4``."""


Numbers.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Range:
    """Numbers between ``low`` and ``high``, evenly (``uniform``) or evenly in their logarithm (``log``)."""

    kind: str
    low: float
    high: float

    def draw(self, chance: random.Random) -> float:
        """Return one number."""
        if self.kind == "log":
            drawn = math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
        else:
            drawn = chance.uniform(self.low, self.high)
        return float(f"{drawn:.{DIGITS}g}")


Choice = Sequence[Any] | Range


@dataclass(frozen=True)
class Grid:
    """The settings of a sweep: what each key may be, and the number of seeds of each setting."""

    choices: Mapping[str, Choice]
    seeds: int

    def settings(self, samples: int | None = None, sample_seed: int = 0) -> list[Config]:
        """Return every setting, or ``samples`` different ones drawn with a seed, in the order in which they were drawn.

        Raises:
            UserError: a range without ``samples``, or more samples than there are settings.
        """
        ranges = [key for key, choice in self.choices.items() if isinstance(choice, Range)]
        lists = {key: choice for key, choice in self.choices.items() if not isinstance(choice, Range)}
        if samples is None:
            if ranges:
                raise UserError(f"'{ranges[0]}' is a range: say how many draws with --samples N.")
            return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
        chance = random.Random(sample_seed)
        if not ranges:
            total = math.prod(len(choice) for choice in lists.values())
            if samples > total:
                raise UserError(f"--samples {samples} is more than the {total} settings of the grid: leave it out.")
            return [_at(lists, place) for place in chance.sample(range(total), samples)]
        drawn: dict[str, Config] = {}
        for _ in range(100 * samples):
            setting = {
                key: choice.draw(chance) if isinstance(choice, Range) else chance.choice(choice)
                for key, choice in self.choices.items()
            }
            drawn.setdefault(json.dumps(setting), setting)
            if len(drawn) == samples:
                return list(drawn.values())
        raise UserError(f"--samples {samples} is more than the {len(drawn)} settings that could be drawn.")

    def requests(
        self, asked: Request, samples: int | None = None, sample_seed: int = 0
    ) -> Iterator[tuple[str, Request]]:
        """Yield label and request of every run: each setting with each seed."""
        tails = short(self.choices)
        for setting in self.settings(samples, sample_seed):
            told = " ".join(f"{tails[key]}={shown(value)}" for key, value in setting.items())
            for seed in range(self.seeds):
                changes = asked.changes | setting | {"seed_everything": seed}
                yield f"{told} seed={seed}".strip(), Request(asked.files, changes)


def parse(told: Sequence[str], seeds: int) -> Grid:
    """Return the grid of ``key=a,b,c`` or ``key=log(1e-5,1e-2)`` words; values are YAML.

    Raises:
        UserError: a word without ``=``, without values or with a value twice, a key twice, a range that is none.
    """
    if seeds < 1:
        raise UserError(f"--seeds is at least 1, not {seeds}.")
    choices: dict[str, Choice] = {}
    for word in told:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"'--set {word}' is no setting: write --set key=value,value.")
        if key in ("seed", "seed_everything"):
            raise UserError("The seeds of a sweep are counted: --seeds N, not --set.")
        if key in choices:
            raise UserError(f"'--set {key}=' is given twice: list all its values in one.")
        found = _RANGE.match(text)
        choices[key] = _range(key, *found.groups()) if found else _values(key, text)
    return Grid(choices, seeds)


def read_value(text: str) -> Any:
    """Return a value as a person types it, as YAML; raise :class:`yaml.YAMLError` where it is none."""
    return yaml.load(text, Numbers)


def short(keys: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """Return for each dotted key the shortest tail that no other key shares."""
    parts = {key: key.split(".") for key in keys}
    found = {}
    for key, own in parts.items():
        others = [each for other, each in parts.items() if other != key] + [["seed"]]
        fits = (n for n in range(1, len(own) + 1) if all(each[-n:] != own[-n:] for each in others))
        found[key] = ".".join(own[-next(fits, len(own)) :])
    return found


def shown(value: Any) -> str:
    """Return a value as a label shows it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def wandb_sweep(grid: Grid, asked: Request, project: str, samples: int | None) -> str:
    """Return the grid as the YAML of a W&B sweep, whose agents run ``kdbench fit``."""
    parameters: dict[str, Config] = {}
    for key, choice in grid.choices.items():
        if isinstance(choice, Range):
            name = "log_uniform_values" if choice.kind == "log" else "uniform"
            parameters[key] = {"distribution": name, "min": choice.low, "max": choice.high}
        else:
            parameters[key] = {"values": list(choice)}
    parameters["seed"] = {"values": list(range(grid.seeds))}
    if samples is None:
        grid.settings()  # refuses a range
    sweep = {
        "program": "kdbench",
        "command": ["kdbench", "fit", *asked.words(), "--wandb", project, "--quiet", "${args}"],
        "method": "grid" if samples is None else "random",
        **({} if samples is None else {"run_cap": samples * grid.seeds}),
        "parameters": parameters,
    }
    return (
        f"# A sweep of {asked.files[0]} for Weights & Biases, which deals the settings out to its agents:\n"
        f"#   wandb sweep --project {project} THIS_FILE     once; it prints the sweep's name\n"
        "#   wandb agent ENTITY/PROJECT/SWEEP       on every machine that shall work, in the folder of experiments/\n"
        "# Fit what the runs are made from first (kdbench fit ... --prepare), or the first agents wait for each other.\n"
        + yaml.safe_dump(sweep, sort_keys=False, allow_unicode=True)
    )


def _values(key: str, text: str) -> list[Any]:
    try:
        values = read_value(f"[{text}]")
    except yaml.YAMLError:
        raise UserError(f"The values of '--set {key}' are not YAML: {text}") from None
    if not values:
        raise UserError(f"'--set {key}=' has an empty value: write --set {key}=value,value.")
    seen = [json.dumps(value, default=str) for value in values]
    if twice := [each for each in seen if seen.count(each) > 1]:
        raise UserError(f"'--set {key}=' names {twice[0]} twice.")
    return values


def _range(key: str, kind: str, inside: str) -> Choice:
    kinds = ("log", "uniform", "int")
    if kind not in kinds:
        raise UserError(f"'--set {key}': there is no range '{kind}(...)'.{nearest(kind, kinds)}")
    try:
        low, high = (float(each) for each in inside.split(","))
    except ValueError:
        raise UserError(f"'--set {key}': {kind}(...) takes two numbers, as in {kind}(1,8).") from None
    if not low < high or (kind == "log" and low <= 0) or not math.isfinite(high - low):
        above = " above 0" if kind == "log" else ""
        raise UserError(f"'--set {key}': {kind}({inside}) needs two numbers{above}, the smaller one first.")
    if kind != "int":
        return Range(kind, low, high)
    if not low.is_integer() or not high.is_integer():
        raise UserError(f"'--set {key}': int({inside}) takes whole numbers.")
    return list(range(int(low), int(high) + 1))


def _at(lists: Mapping[str, Sequence[Any]], place: int) -> Config:
    """Return the setting at a place of the grid, without building the grid."""
    found = {}
    for key, values in reversed(lists.items()):
        place, digit = divmod(place, len(values))
        found[key] = values[digit]
    return {key: found[key] for key in lists}
