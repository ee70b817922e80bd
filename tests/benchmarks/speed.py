"""What a teacher and padding cost, and what is left of it: ``python -m tests.benchmarks.speed`` (``--help`` shows more).

Each variant runs in a process of its own; the variants take turns, round by round, so that a drift of the machine meets all
alike. Figures are medians over the rounds; the first epoch (which fills the cache) and the later ones stand apart.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tests.benchmarks import job as jobs
from tests.benchmarks import peers

ROOT = Path(__file__).parent.parent.parent
VARIANTS = {
    "classification": [
        *jobs.PLAIN,
        *peers.PEERS,
        "kdbench",
        "grouped",
        "cached",
        "cached by an earlier run",
        "both",
    ],
    "masked": [*jobs.PLAIN, "kdbench", "grouped", "packed", "cached, top 64", "both, top 64"],
    "tiny": ["plain", *peers.PEERS, "kdbench", "kdbench, logging each step"],
}
ROWS = {"classification": 192, "masked": 192, "tiny": 3200}

Told = dict[str, list[dict]]


def main() -> None:
    """Run all variants in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", choices=list(VARIANTS), default="classification", help="tiny: networks of one layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--into", type=Path, help="a Markdown file whose text between <!-- JOB --> and <!-- end --> it becomes"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        told = measured(Path(place), asked.job, asked.rounds)
        apart = differences(Path(place), VARIANTS[asked.job])
    table = (overhead if asked.job == "tiny" else speeds)(told, apart)
    command = f"python -m tests.benchmarks.speed --job {asked.job} --rounds {asked.rounds}"
    text = (
        f"{table}\n\n`{command}`: medians of {asked.rounds} rounds, threads of a CPU: {told['plain'][0]['threads']}.\n"
    )
    print(text)
    if asked.into is not None:
        marks = rf"(<!-- {asked.job} -->\n).*?(<!-- end -->)"
        page = re.sub(marks, lambda found: found[1] + text + found[2], asked.into.read_text(), flags=re.DOTALL)
        asked.into.write_text(page)


def measured(folder: Path, job: str, rounds: int) -> Told:
    """Return what each variant told in each round."""
    kind = "classification" if job == "tiny" else job
    jobs.prepare(folder, kind, tiny=job == "tiny")
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "BENCHMARK_ROWS": str(ROWS[job])}
    if job == "tiny":
        # The loop runs in one thread; what it costs to wake a second one for so little work would drown it.
        environment |= {"OMP_NUM_THREADS": "1"}
    told: Told = {variant: [] for variant in VARIANTS[job]}
    for each in range(rounds):
        for variant, runs in told.items():
            command = [sys.executable, "-m", "tests.benchmarks.job", str(folder), kind, variant]
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, env=environment | {"BENCHMARK_ROUND": str(each)}
            )
            if done.returncode:
                sys.exit(done.stderr)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    return told


def differences(folder: Path, variants: list[str]) -> dict[str, float]:
    """Return how far the weights of each variant are from those of the plain loop."""
    states = {variant: torch.load(folder / f"{variant}.pt") for variant in variants}
    return {
        variant: max(float((state[name] - value).abs().max()) for name, value in states["plain"].items())
        for variant, state in states.items()
    }


def speeds(told: Told, apart: dict[str, float]) -> str:
    """Return samples per second, and the ratio to the plain loop of the same round in the later epochs."""
    lines = [
        "| | samples/s, first epoch | later epochs | ratio to plain | per CPU second | peak MB | weights differ by |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant, runs in told.items():
        first, later = (statistics.median(rates(run)[place] for run in runs) for place in (0, 1))
        ratios = {
            clock: statistics.median(
                rates(run, clock)[1] / rates(base, clock)[1] for run, base in zip(runs, told["plain"], strict=True)
            )
            for clock in ("seconds", "cpu")
        }
        peak = statistics.median(run["peak_mb"] for run in runs)
        lines.append(
            f"| {variant} | {first:.1f} | {later:.1f} | {ratios['seconds']:.2f} | {ratios['cpu']:.2f} | {peak:.0f} "
            f"| {apart[variant]:.0e} |"
        )
    return "\n".join(lines)


def overhead(told: Told, apart: dict[str, float]) -> str:
    """Return CPU milliseconds a step of the later epochs, and how many more than the plain loop of the same round."""
    lines = ["| | CPU ms a step | over plain | weights differ by |", "|---|---|---|---|"]
    cost = {variant: [1000 * jobs.BATCH / rates(run, "cpu")[1] for run in runs] for variant, runs in told.items()}
    for variant, own in cost.items():
        over = statistics.median(ours - theirs for ours, theirs in zip(own, cost["plain"], strict=True))
        lines.append(f"| {variant} | {statistics.median(own):.2f} | {over:+.2f} | {apart[variant]:.0e} |")
    return "\n".join(lines)


def rates(run: dict, clock: str = "seconds") -> tuple[float, float]:
    """Return samples per second of the first epoch and of the later ones together."""
    first, *later = (epoch[clock] for epoch in run["epochs"])
    return run["rows"] / first, len(later) * run["rows"] / sum(later)


if __name__ == "__main__":
    main()
