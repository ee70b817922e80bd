"""What a teacher and padding cost, and what is left of it: ``python -m tests.benchmarks.speed [--rounds 3] [--job ...]``.

Each variant runs in a process of its own; the variants take turns, round by round, so that a drift of the machine meets all
alike. Figures are medians over the rounds; the first epoch (which fills the cache) and the later ones stand apart.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tests.benchmarks import job as jobs

ROOT = Path(__file__).parent.parent.parent
DEFAULT = {
    "classification": ["plain", "kdbench", "grouped", "cached", "both"],
    "masked": ["plain", "kdbench", "grouped", "cached, top 64", "both, top 64"],
}
TINY = ["plain", "kdbench", "kdbench, logging each step"]


def main() -> None:
    """Run all variants in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", choices=list(DEFAULT), default="classification")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="networks of one layer: what the loop itself costs a step")
    asked = parser.parse_args()
    variants = TINY if asked.tiny else DEFAULT[asked.job]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        jobs.prepare(folder, asked.job, asked.tiny)
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "BENCHMARK_ROWS": str(jobs.ROWS)}
        told: dict[str, list[dict]] = {variant: [] for variant in variants}
        for _ in range(asked.rounds):
            for variant in variants:
                command = [sys.executable, "-m", "tests.benchmarks.job", str(folder), asked.job, variant]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
                if done.returncode:
                    sys.exit(done.stderr)
                told[variant].append(json.loads(done.stdout.splitlines()[-1]))
        weights = {variant: torch.load(folder / f"{asked.job} {variant}.pt") for variant in variants}
    if asked.tiny:
        show_overhead(told)
        return
    print(f"{asked.job}: {asked.rounds} rounds, {jobs.ROWS} rows, {told['plain'][0]['threads']} threads\n")
    print("| | samples/s, first epoch | later epochs | ratio to plain | per CPU second | peak MB | weights differ by |")
    print("|---|---|---|---|---|---|---|")
    base = [rates(each, "seconds") for each in told["plain"]]
    base_cpu = [rates(each, "cpu")[1] for each in told["plain"]]
    for variant in variants:
        pairs = [rates(each, "seconds") for each in told[variant]]
        ratio = statistics.median(ours[1] / theirs[1] for ours, theirs in zip(pairs, base, strict=True))
        cpu = statistics.median(
            rates(ours, "cpu")[1] / theirs for ours, theirs in zip(told[variant], base_cpu, strict=True)
        )
        first, later = (statistics.median(pair[place] for pair in pairs) for place in (0, 1))
        peak = statistics.median(each["peak_mb"] for each in told[variant])
        apart = max(float((weights[variant][name] - value).abs().max()) for name, value in weights["plain"].items())
        print(f"| {variant} | {first:.1f} | {later:.1f} | {ratio:.2f} | {cpu:.2f} | {peak:.0f} | {apart:.1e} |")


def show_overhead(told: dict[str, list[dict]]) -> None:
    """Print CPU milliseconds a step, of the later epochs."""
    print("| | CPU ms a step | over plain |")
    print("|---|---|---|")
    steps = -(-jobs.ROWS // jobs.BATCH)
    cost = {
        variant: [1000 * statistics.fmean(epoch["cpu"] for epoch in each["epochs"][1:]) / steps for each in runs]
        for variant, runs in told.items()
    }
    for variant, own in cost.items():
        over = statistics.median(ours - theirs for ours, theirs in zip(own, cost["plain"], strict=True))
        print(f"| {variant} | {statistics.median(own):.2f} | {over:+.2f} |")


def rates(told: dict, clock: str) -> tuple[float, float]:
    """Return samples per second of the first epoch and of the later ones together."""
    first, *later = (epoch[clock] for epoch in told["epochs"])
    return jobs.ROWS / first, len(later) * jobs.ROWS / sum(later)


if __name__ == "__main__":
    main()
