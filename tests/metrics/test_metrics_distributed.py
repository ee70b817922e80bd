"""Two gloo processes with unequal batches score as one process with all rows does."""

import json

import pytest
import torch
from torch import distributed, multiprocessing

from kdbench.metrics.decoding import TokenDistances
from kdbench.metrics.densities import FrechetDistance, ModeCoverage, SampleDiversity, SlicedWasserstein
from kdbench.metrics.loyalty import LabelLoyalty, ProbabilityLoyalty, RegressionLoyalty
from kdbench.metrics.scores import ClassificationScore, MaskedTokenScore, RegressionScore
from kdbench.metrics.similarity import FEWEST, MinibatchCKA
from kdbench.metrics.spans import SpanF1

TAGS = ["O", "B-a", "I-a", "B-b", "I-b"]
BATCHES = {"unequal": [[7, 2, 11], [5]], "one without rows": [[], [9, 4]]}


def metrics():
    return {
        "label": LabelLoyalty(),
        "probability": ProbabilityLoyalty(),
        "regression loyalty": RegressionLoyalty(range=5.0),
        "classification": ClassificationScore(classes=5),
        "masked tokens": MaskedTokenScore(),
        "regression": RegressionScore(),
        "spans": SpanF1(TAGS),
        "density: sliced Wasserstein": SlicedWasserstein(),
        "density: Frechet": FrechetDistance(5),
        "modes": ModeCoverage(torch.eye(5).tolist(), std=0.4),
        "diversity": SampleDiversity(),
        "alignment": MinibatchCKA(1, 1),
        "token distances": TokenDistances(),
    }


def batches(process, sizes):
    generator = torch.Generator().manual_seed(process)
    for size in sizes:
        student, teacher = torch.randn(2, size, 5, dtype=torch.float64, generator=generator)
        gold = torch.randint(5, (size,), generator=generator)
        yield student, teacher, gold, torch.arange(size) // 3


def update(all_metrics, batch):
    student, teacher, gold, sentence = batch
    for name, metric in all_metrics.items():
        if name in ("label", "probability", "token distances"):
            metric.update(student, teacher)
        elif name.startswith("regression"):
            metric.update(student[:, 0], teacher[:, 0] + student[:, 0])
        elif name.startswith("density"):
            metric.update(student, teacher)
        elif name == "modes":
            metric.update(student)
        elif name == "diversity":
            metric.update(student, gold)
        elif name == "alignment":
            if len(student) >= FEWEST:
                metric.update([student], [teacher])
        elif name == "spans":
            metric.update(student.argmax(-1), gold, sentence)
        else:
            metric.update(student, gold)


def results(all_metrics):
    computed = {name: metric.compute() for name, metric in all_metrics.items()}
    scores = {name: value if isinstance(value, dict) else {"value": value} for name, value in computed.items()}
    return {f"{name}.{key}": value.item() for name, parts in scores.items() for key, value in parts.items()}


def run(rank, folder):
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found = {}
    for name, sizes in BATCHES.items():
        mine = metrics()
        for batch in batches(rank, sizes[rank]):
            update(mine, batch)
        found[name] = results(mine)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    multiprocessing.spawn(run, args=(tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for name, sizes in BATCHES.items():
        alone = metrics()
        for rank in (0, 1):
            for batch in batches(rank, sizes[rank]):
                update(alone, batch)
        expected = results(alone)
        assert len(expected) == 1 + 1 + 3 + 2 + 3 + 3 + 4 + 1 + 1 + 2 + 2 + 1 + 6
        assert first[name] == pytest.approx(expected, rel=1e-12)
        assert second[name] == pytest.approx(expected, rel=1e-12)
