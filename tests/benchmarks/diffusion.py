"""What a step of a diffusion method costs beside a hand-written loop: ``python -m tests.benchmarks.diffusion``.

The teacher's step and Diff-Instruct's on the ring, and the teacher's with a U-Net of 0.7 M parameters on digits, each as ``kdbench
fit`` makes it, checkpoints and logs included, and as people write it by hand: the same networks, batches, optimisers and averages,
nothing else. By hand, batches are rows of a tensor in memory, or come from torch's DataLoader, as they do in a fit; Diff-Instruct
takes no more than their size from them, and by hand may do without. The two take turns in one process and one thread, round by
round, after steps that are not counted.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from kdbench.data import registry
from kdbench.models.denoiser import Denoiser, DenoiserConfig
from kdbench.suite import chain, experiment, fit

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "experiments" / "diffusion_kd_baselines"
WARM_UP = 20
SIGMA_DATA = 0.71

EMPTY: dict[str, Any] = {}
UNET = {
    "shape": [1, 8, 8],
    "network": "unet",
    "sizes": {
        "block_out_channels": [32, 64],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
    },
}
DIGITS = {"dataset": "vision/digits", "samples": "image", "value_range": [0, 255]}


class Watch(pl.Callback):
    """Takes the time of the steps after the first ones."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Look at the clocks at the first counted step and at the last."""
        if trainer.global_step == WARM_UP:
            self.begun = time.process_time()
        self.ended = time.process_time()


def kdbench(name: str, steps: int, changes: dict[str, Any]) -> float:
    """Return the CPU seconds of the steps of an experiment."""
    settings = {"trainer.max_steps": WARM_UP + steps, "trainer.limit_val_batches": 0, "trainer.accelerator": "cpu"}
    asked = experiment.read(FOLDER / f"{name}.yaml", overrides=list((settings | changes).items()))
    watch = Watch()
    fit.fit(chain.plan(asked, fresh=True), quiet=True, watch=[watch])
    return watch.ended - watch.begun


def plain(steps: Iterator[None], count: int) -> float:
    """Return the CPU seconds of as many steps of a loop."""
    for _ in range(WARM_UP):
        next(steps)
    begun = time.process_time()
    for _ in range(count):
        next(steps)
    return time.process_time() - begun


def network(config: dict[str, Any]) -> Denoiser:
    """Return a denoiser of the ring, or as a config says."""
    return Denoiser(DenoiserConfig(**{"sigma_data": SIGMA_DATA} | config))


def beside(values: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """Return numbers ``[B]`` so that they multiply samples."""
    return values.view(-1, *[1] * (samples.dim() - 1))


def taken(samples: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    """Return one epoch of batches."""
    return (samples[rows] for rows in torch.randperm(len(samples)).split(batch_size))


def loaded(samples: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    """Return one epoch of batches from torch's DataLoader."""
    return (batch for (batch,) in DataLoader(TensorDataset(samples), batch_size, shuffle=True))


def teacher_steps(
    samples: torch.Tensor,
    total: int,
    config: dict[str, Any] = EMPTY,
    batch_size: int = 512,
    batches: Callable[[torch.Tensor, int], Iterator[torch.Tensor]] = taken,
) -> Iterator[None]:
    """Train a denoiser and its moving average, by hand."""
    student, average = network(config), network(config).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    while True:
        for clean in batches(samples, batch_size):
            sigma = (torch.randn(len(clean)) * 1.2 - 0.8).exp()
            denoised = student(clean + beside(sigma, clean) * torch.randn_like(clean), sigma).denoised
            weight = 1 / sigma**2 + 1 / SIGMA_DATA**2
            loss = (beside(weight, clean) * (denoised - clean) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for ours, theirs in zip(average.parameters(), student.parameters(), strict=True):
                    ours.lerp_(theirs, 0.005)
            yield


def sizes(samples: torch.Tensor, batch_size: int) -> Iterator[range]:
    """Return one epoch of batches that hold nothing."""
    return (range(first, min(first + batch_size, len(samples))) for first in range(0, len(samples), batch_size))


def diff_instruct_steps(
    samples: torch.Tensor, total: int, batches: Callable[[torch.Tensor, int], Iterator[Any]] = sizes
) -> Iterator[None]:
    """Train a one-step generator and the score of what it makes, by hand."""
    generator, fake, real = network({}), network({}), network({}).requires_grad_(False)
    optimizers = [torch.optim.Adam(each.parameters(), lr=1e-4, betas=(0.0, 0.99)) for each in (generator, fake)]
    start = torch.full((256,), 2.5)

    def made(count: int) -> torch.Tensor:
        return generator(2.5 * torch.randn(count, 2), start[:count]).denoised

    def noised(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigma = (torch.randn(len(samples)) * 1.2 - 0.8).exp()
        return samples + sigma[:, None] * torch.randn_like(samples), sigma

    while True:
        for batch in batches(samples, len(start)):
            with torch.no_grad():
                known = made(len(batch))
            seen, sigma = noised(known)
            weight = 1 / sigma**2 + 1 / SIGMA_DATA**2
            loss = (weight[:, None] * (fake(seen, sigma).denoised - known) ** 2).sum(1).mean()
            optimizers[1].zero_grad()
            loss.backward()
            optimizers[1].step()
            known = made(len(batch))
            with torch.no_grad():
                seen, sigma = noised(known)
                gradient = fake(seen, sigma).denoised - real(seen, sigma).denoised
            loss = (gradient * known).sum(1).mean()
            optimizers[0].zero_grad()
            loss.backward()
            optimizers[0].step()
            yield


def points() -> torch.Tensor:
    """Return the ring's training points."""
    return torch.tensor([row["point"] for row in registry.load("synthetic/ring", "embedded", "train")])


def digits() -> torch.Tensor:
    """Return the training digits, in [-1, 1]."""
    rows = registry.load("vision/digits", "embedded", "train")
    return torch.from_numpy(np.stack([row["image"] for row in rows])).float() / 127.5 - 1


class Job(NamedTuple):
    """What is measured: the experiment and its changes, the same by hand, on which data, in how many steps for each asked for."""

    experiment: str
    changes: dict[str, Any]
    by_hand: Callable[[torch.Tensor, int], Iterator[None]]
    samples: Callable[[], torch.Tensor]
    share: float = 1.0


JOBS = {
    "teacher, ring": Job("teacher", {}, teacher_steps, points),
    "teacher, ring, from a DataLoader": Job("teacher", {}, partial(teacher_steps, batches=loaded), points),
    "Diff-Instruct, ring": Job("diff_instruct", {}, diff_instruct_steps, points),
    "Diff-Instruct, ring, from a DataLoader": Job(
        "diff_instruct", {}, partial(diff_instruct_steps, batches=loaded), points
    ),
    "teacher, U-Net, digits": Job(
        "teacher",
        {
            "model.student.config": UNET | {"sizes": UNET["sizes"] | dict.fromkeys(("width", "depth", "frequencies"))},
            "data": {"class_path": "DensitySamples", "init_args": {**DIGITS, "batch_size": 128}},
        },
        partial(teacher_steps, config=UNET, batch_size=128),
        digits,
        0.1,
    ),
}


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| step | plain, ms | kdbench, ms | over plain, ms | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        os.environ["KDBENCH_RUNS"] = place
        first = chain.plan(experiment.read(FOLDER / "teacher.yaml", overrides=[("trainer.max_steps", 1)]))
        fit.fit(first, quiet=True)
        left = {"class_path": "FromFolder", "init_args": {"folder": str(first.folder)}}
        for name, job in JOBS.items():
            changes = job.changes | ({"model.student": left, "model.teacher": left} if "Instruct" in name else {})
            steps, samples, told = round(job.share * asked.steps), job.samples(), []
            for _ in range(asked.rounds):
                by_hand = plain(job.by_hand(samples, WARM_UP + steps), steps)
                told.append((1000 * by_hand / steps, 1000 * kdbench(job.experiment, steps, changes) / steps))
            plainly, ours = (statistics.median(pair[side] for pair in told) for side in (0, 1))
            over = statistics.median(ours - theirs for theirs, ours in told)
            ratio = statistics.median(ours / theirs for theirs, ours in told)
            print(f"| {name} | {plainly:.2f} | {ours:.2f} | {over:+.2f} | {ratio:.2f} |", flush=True)
    print(f"\nCPU time a step in one thread; medians of {asked.rounds} rounds.")


if __name__ == "__main__":
    main()
