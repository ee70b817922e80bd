"""Which plots a paper has: the score of its arms against their size, and against their speed."""

import math
from collections.abc import Mapping

from kdbench.suite import plots
from kdbench.suite.claims import OWN
from kdbench.suite.plots import Point
from kdbench.suite.tables import Number, Tables, factor, times

SCORES = ("accuracy", "macro_f1", "pearson", "spearman", "cross_entropy", "perplexity", "loss")
"""Metrics of an arm's own run that stand for it where a paper has no tasks."""


def drawn(made: Tables) -> list[tuple[str, str, str]]:
    """Return caption, what the score is, and drawing of each plot; none where all arms stand at one place."""
    score, heights = _heights(made)
    size = {arm: made.number(arm, OWN, "parameters@student", 1e-6) for arm in heights}
    words, speed = _speeds(made, heights)
    teachers = {name for each in made.file.arms.values() for name in each.teachers}
    found = []
    for caption, axis, places in (
        ("Score against size", "parameters, millions", size),
        ("Score against speed", words, speed),
    ):
        known = [arm for arm in heights if arm in places and places[arm].runs]
        if len({float(f"{places[arm].mean:.6g}") for arm in known}) > 1:
            points = [_point(arm, places[arm], heights[arm], arm in teachers) for arm in known]
            found.append((caption, score, plots.scatter(points, axis, score)))
    return found


def _point(arm: str, x: Number, y: Number, teacher: bool) -> Point:
    return Point(arm, x.mean, x.sd or 0.0, y.mean, y.sd or 0.0, teacher)


def _heights(made: Tables) -> tuple[str, dict[str, Number]]:
    """Return what the score is, and each arm's: the mean over all tasks, seed by seed, or a metric of its own run."""
    if made.file.tasks:
        return _task_means(made)
    named = {each.metric for claim in made.file.claims.values() for each in claim.expect.references}
    for metric in SCORES:
        numbers = {arm: made.number(arm, OWN, f"{metric}@student", factor(metric)) for arm in made.arms}
        found = {arm: number for arm, number in numbers.items() if number.runs}
        if metric in named and found:
            return f"{metric.replace('_', ' ')}{times([metric])}", found
    return "", {}


def _task_means(made: Tables) -> tuple[str, dict[str, Number]]:
    tasks, found = list(made.file.tasks), {}
    for arm in made.arms:
        tables = [{pair: value for pair, _, value in made.score(arm, task).runs} for task in tasks]
        pairs = [pair for pair in tables[0] if all(pair in table for table in tables)]
        if pairs:
            means = [(pair, "", math.fsum(table[pair] for table in tables) / len(tasks)) for pair in pairs]
            found[arm] = Number("score", 1, tuple(means))
    shown = times(each.metric for each in made.file.tasks.values())
    if len(tasks) > 1:
        partial = any(made.arms[arm].keys() & set(tasks) for arm in made.arms.keys() - found.keys())
        rest = "; arms without a score on all of them are left out" if partial else ""
        return f"mean score of {len(tasks)} tasks{shown}{rest}", found
    return f"{tasks[0]}: {made.file.tasks[tasks[0]].shown}{shown}", found


def _speeds(made: Tables, arms: Mapping[str, Number]) -> tuple[str, dict[str, Number]]:
    """Return what the speed is, and each arm's: times as fast as the first teacher, else the seconds of the fit."""
    teacher = next((name for arm in made.file.arms.values() for name in arm.teachers), None)
    key = f"speed_ratio@{teacher}"
    ratios = {arm: number for arm in arms if (number := made.number(arm, OWN, key)).runs}
    if teacher in arms and ratios:
        return f"forward pass, times as fast as {teacher}", ratios | {teacher: Number(key, 1, (("", "", 1.0),))}
    return "seconds of the fit", {arm: made.number(arm, OWN, "run/seconds") for arm in arms}
