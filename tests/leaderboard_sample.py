"""Three small leaderboards with results that nobody fitted: a paper, a part of it, and a paper that was not run."""

import json
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
CASED, STUDENT = "experiments/distilbert_ro/teacher_cased.yaml", "experiments/distilbert_ro.yaml"
SCORES = {"teacher": 0.9, "student": 0.8, "plain": 0.7}
SIZES = {"teacher": 2e6, "student": 1e6, "plain": 1e6}
CLAIM = {
    "title": "small: A Small Paper <of> Nobody",
    "source_of_claim": "Nobody, 2022.",
    "statement": "The student is better than the plain one.",
    "recipe": "Three steps.",
    "seeds": 5,
    "source": "embedded",
    "arms": {
        "teacher": {"experiment": CASED, "seeds": "none", "says": "the teacher"},
        "student": {"experiment": STUDENT, "teachers": ["teacher"], "says": "distilled"},
        "plain": {"experiment": STUDENT, "teachers": ["teacher"]},
    },
    "tasks": {
        "tags": {
            "experiment": "experiments/distilbert_ro/upos.yaml",
            "metric": "macro_f1",
            "shown": "macro-F1",
            "loyalty": ["label_loyalty", "probability_loyalty"],
        }
    },
    "claims": {
        "better": {"says": "The student is better.", "expect": "student.tags.macro_f1 > plain.tags.macro_f1"},
        "smaller": {"says": "It is smaller.", "expect": "student.parameters < teacher.parameters", "judged": "every"},
        "perfect": {"says": "It is perfect.", "expect": "student.tags.macro_f1 > 0.99"},
        "built_on": {"says": "And so on.", "expect": "student.tags.macro_f1 > 0", "premise": ["perfect"]},
        "between": {"says": "It lies between.", "expect": "0.7 < student.tags.macro_f1 < 0.8"},
    },
    "report": {"gap": {"shows": "The gap", "value": "teacher.tags.macro_f1 - student.tags.macro_f1"}},
    "reported": {
        "source": "Table 2",
        "rows": {
            "Theirs": {"arm": "student", "scores": {"tags": 98.0}, "unverified": ["tags"]},
            "Alone": {"scores": {"tags": "90 to 91"}},
        },
    },
    "equations": [
        {"says": "Soft targets", "equation": "T² KL(p || q)", "code": "kdbench/losses/divergences.py:kl_divergence"}
    ],
    "differences": ["The code divides by the rows; it is followed."],
}
ANSWERS = {
    "better": "holds",
    "smaller": "holds",
    "perfect": "contradicted",
    "built_on": "void",
    "between": "not shown",
}


def record(experiment, arm, seed, threads=1, task=None):
    """Return a record as a fit writes it, its numbers made up."""
    metrics = {"parameters@student": SIZES[arm], "megabytes@student": SIZES[arm] / 250_000}
    if task is None:
        metrics |= {"test/accuracy@student": SCORES[arm] / 2 + 0.01 * seed, "test/perplexity@student": 20.0 + seed}
    else:
        metrics["test/macro_f1@student"] = SCORES[arm] + 0.01 * (seed - 2)
    if arm != "teacher":
        metrics |= {"seconds@student": 0.01, "seconds@teacher": 0.02, "speed_ratio@teacher": 2 + 0.1 * seed}
        metrics |= {"test/label_loyalty@teacher": 0.9 + 0.001 * seed, "test/probability_loyalty@teacher": 0.8}
    return {
        "experiment": experiment,
        "id": f"{arm}{task or ''}{seed}",
        "seed": seed,
        "data": {"dataset": "ro/text", "source": "embedded"},
        "parents": {} if arm == "teacher" else {"model.student": "distilbert_ro/teacher_cased/teacher0"},
        "references": {},
        "metrics": metrics,
        "curves": {"val/loss@student": {"values": [2.0, 1.5, 1.25], "steps": [100, 200, 300], "best": 2}},
        "steps": 300,
        "seconds": 10.1 + 0.1 * seed,
        "resumed": False,
        "peak_memory_mb": 500,
        "hardware": {"device": "cpu", "processes": 1, "threads": threads},
        "versions": {"kdbench": "0.1.0", "torch": "2.13.0"},
        "source_version": "0000000",
        "finished": f"2026-01-0{seed + 1}T00:00:00Z",
    }


def results(source="embedded"):
    """Return what ``results.json`` holds."""
    cells, records = [], {}
    for arm in CLAIM["arms"]:
        experiment = "distilbert_ro/teacher_cased" if arm == "teacher" else "distilbert_ro"
        for task in (None, "tags"):
            for seed in range(1 if arm == "teacher" and task is None else 5):
                made = record("distilbert_ro/upos" if task else experiment, arm, seed, 1 + seed % 2, task)
                name = f"{made['experiment']}/{made['id']}"
                records[name] = made
                cells.append(["seeds", arm, task or "own", str(seed), 0, name])
    return {"source": source, "seeds": 5, "claims": {}, "cells": cells, "records": records}


def write(home):
    """Write the three papers under ``home``."""
    for paper, source in (("small", "embedded"), ("small/real", "local"), ("other", None)):
        folder = home / paper
        folder.mkdir(parents=True)
        (folder / "claim.yaml").write_text(yaml.safe_dump(CLAIM, sort_keys=False, allow_unicode=True))
        if source:
            (folder / "results.json").write_text(json.dumps(results(source)))
    return home
