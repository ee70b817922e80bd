"""One timed run of the benchmark's job, in a process of its own: ``python -m tests.benchmarks.job FOLDER JOB VARIANT``.

It prints one line of JSON: seconds, CPU seconds and samples of each epoch, peak memory, a digest of the student's weights.
"""

import json
import math
import os
import resource
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch.nn import functional
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
)

from kdbench.data import registry
from kdbench.data.cards import CARDS, Card
from kdbench.data.corruption import mask_tokens, token_weights
from kdbench.data.samplers import GroupedBatches
from kdbench.data.tokenizers import train_word_level
from kdbench.suite import chain, experiment, fit, runs

ROOT = Path(__file__).parent.parent.parent
WORDS, CLASSES, EPOCHS, BATCH = 8000, 8, 3, 16
ROWS = int(os.environ.get("BENCHMARK_ROWS", "192"))
# What the plain loop does with the teacher and the batches: the targets may lie at hand from the second epoch on.
PLAIN = {
    "plain": {},
    "plain, targets at hand": {"kept": True},
    "plain, grouped, targets at hand": {"kept": True, "grouped": True},
}
# What each variant changes of the experiment.
VARIANTS = {
    "kdbench": [],
    "kdbench, logging each step": [("trainer.log_every_n_steps", 1)],
    "grouped": [("data.group_by_length", True)],
    "packed": [("model.unpad", True)],
    "cached": [("cache.mode", "on")],
    "cached by an earlier run": [("cache.mode", "on")],
    "both": [("data.group_by_length", True), ("cache.mode", "on")],
    "cached, top 64": [("cache.mode", "on"), ("cache.top_k", 64), ("cache.dtype", "float16")],
    "both, top 64": [
        ("data.group_by_length", True),
        ("cache.mode", "on"),
        ("cache.top_k", 64),
        ("cache.dtype", "float16"),
    ],
}


def rows(split: str, count: int) -> list[dict]:
    """Texts of random words with log-normal lengths (median 24, cut at 128): a third of a padded batch is real."""
    random = np.random.default_rng(registry.SPLITS.index(split))
    lengths = np.clip(np.round(np.exp(random.normal(math.log(22), 0.9, count))), 4, 126).astype(int)
    return [
        {"text": " ".join(f"w{word}" for word in random.integers(0, WORDS, length)), "label": int(label)}
        for length, label in zip(lengths, np.arange(count) % CLASSES, strict=True)
    ]


CARDS["benchmark/skewed"] = Card(
    name="benchmark/skewed",
    task="classification",
    languages=(),
    licence="none",
    description="random words of skewed lengths",
    embedded="nothing can be learnt",
    loaders={"embedded": rows},
    splits={"embedded": (ROWS, 8, 16)},
)


class EpochSeconds(pl.Callback):
    """Takes the time of each epoch, the loader's work included, evaluation left out."""

    epochs: list[dict[str, float]] = []  # noqa: RUF012 - one run in a process
    peak_mb = 0.0

    def on_train_epoch_start(self, trainer, module):
        """Start the clocks."""
        self.begun = clocks()

    def on_train_epoch_end(self, trainer, module):
        """Stop them."""
        EpochSeconds.epochs.append(since(self.begun))
        EpochSeconds.peak_mb = peak_mb()


def peak_mb() -> float:
    """Return the most memory that the process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def clocks() -> tuple[float, float]:
    """Return wall and CPU seconds."""
    return time.perf_counter(), time.process_time()


def since(begun: tuple[float, float]) -> dict[str, float]:
    """Return the seconds since then."""
    return {"seconds": time.perf_counter() - begun[0], "cpu": time.process_time() - begun[1]}


def prepare(folder: Path, job: str, tiny: bool = False) -> None:
    """Save teacher and student with random weights from seeds, and the vocabulary that both share.

    With ``tiny`` they have one layer of width 32, so that little but the loop is left.
    """
    texts = [row["text"] for split in registry.SPLITS for row in rows(split, ROWS)]
    tokenizer = train_word_level([*texts, " ".join(f"w{word}" for word in range(WORDS))], lowercase=False)
    kind = BertForSequenceClassification if job == "classification" else BertForMaskedLM
    for place, (name, layers) in enumerate((("teacher", 12), ("student", 4))):
        torch.manual_seed(place)
        config = BertConfig(
            vocab_size=len(tokenizer),
            num_hidden_layers=1 if tiny else layers,
            hidden_size=32 if tiny else 256,
            num_attention_heads=1 if tiny else 4,
            intermediate_size=32 if tiny else 1024,
            max_position_embeddings=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=CLASSES,
            pad_token_id=tokenizer.pad_token_id,
        )
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def plain(folder: Path, job: str, kept: bool = False, grouped: bool = False) -> dict[str, torch.Tensor]:
    """The loop that people write by hand: the same rows, batches, losses and optimiser, nothing else.

    With ``kept`` the teacher's logits of the first epoch lie in memory as they are, and nobody checks that they fit: what
    no cache can beat. ``grouped`` makes batches of like length.
    """
    kind = AutoModelForSequenceClassification if job == "classification" else AutoModelForMaskedLM
    teacher, student = kind.from_pretrained(folder / "teacher").eval(), kind.from_pretrained(folder / "student").train()
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    data = rows("train", ROWS)
    ids = [np.array(tokenizer(row["text"], truncation=True, max_length=128)["input_ids"]) for row in data]
    labels = torch.tensor([row["label"] for row in data])
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.0)
    lengths = [len(each) for each in ids] if grouped else None
    order = GroupedBatches(ROWS, BATCH, lengths=lengths, seed=0, draws=1)
    known: dict[int, torch.Tensor] = {}
    counts = np.bincount(np.concatenate(ids), minlength=len(tokenizer))
    weights = token_weights(counts, tokenizer.all_special_ids)
    random_ids = np.array([each for each in range(len(tokenizer)) if each not in tokenizer.all_special_ids])
    for epoch in range(EPOCHS):
        order.set_epoch(epoch)
        begun = clocks()
        for batch in order:
            chosen = [row for row, _ in batch]
            longest = max(len(ids[row]) for row in chosen)
            padded = np.zeros((len(chosen), longest), dtype=np.int64)
            mask = np.zeros((len(chosen), longest), dtype=np.int64)
            for place, row in enumerate(chosen):
                padded[place, : len(ids[row])], mask[place, : len(ids[row])] = ids[row], 1
            real = torch.from_numpy(mask)
            if job == "masked":
                noise = {"seed": 0, "rows": np.array(chosen), "draws": np.zeros(len(chosen), int), "per": "row"}
                mask_id = tokenizer.mask_token_id
                padded, targets = mask_tokens(
                    padded, weights[padded] * mask, mask, mask_id=mask_id, random_ids=random_ids, **noise
                )
                targets = torch.from_numpy(targets)
            view = {"input_ids": torch.from_numpy(padded), "attention_mask": real}
            if kept and epoch:
                theirs = torch.nn.utils.rnn.pad_sequence([known[row] for row in chosen], batch_first=True)
            else:
                with torch.no_grad():
                    theirs = teacher(**view).logits
            if kept and not epoch:
                sizes = real.sum(1).tolist() if job == "masked" else [None] * len(chosen)
                known |= {row: each[:size].clone() for row, each, size in zip(chosen, theirs, sizes, strict=True)}
            ours = student(**view).logits
            if job == "masked":
                temperature, hard = 2.0, functional.cross_entropy(ours[targets != -100], targets[targets != -100])
                ours, theirs = ours[real.bool()], theirs[real.bool()]
            else:
                temperature, hard = 4.0, functional.cross_entropy(ours, labels[chosen])
            soft = functional.kl_div(
                (ours / temperature).log_softmax(-1), (theirs / temperature).softmax(-1), reduction="batchmean"
            )
            loss = 0.5 * temperature**2 * soft + 0.5 * hard
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        EpochSeconds.epochs.append(since(begun))
    return student.state_dict()


def kdbench(folder: Path, job: str, variant: str) -> dict[str, torch.Tensor]:
    """The same job as an experiment, as ``kdbench fit`` runs it."""
    changes = [
        ("model.student.folder", str(folder / "student")),
        (
            "model.teacher.folder" if job == "classification" else "model.teachers.teacher.folder",
            str(folder / "teacher"),
        ),
        *VARIANTS[variant],
    ]
    asked = experiment.read(ROOT / "tests/benchmarks" / f"{job}.yaml", overrides=changes)
    stage = chain.plan(asked, fresh=True)
    fit.fit(stage, quiet=True)
    state = torch.load(stage.folder / runs.CHECKPOINT, weights_only=True)["state_dict"]
    return {name.removeprefix("student."): value for name, value in state.items()}


def main() -> None:
    """Run one variant and print what it took."""
    from tests.benchmarks import peers

    folder, job, variant = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.environ["KDBENCH_RUNS"] = str(folder / "runs")
    store = variant.removesuffix(" by an earlier run")
    os.environ["KDBENCH_CACHE"] = str(folder / "targets" / f"{store} {os.environ.get('BENCHMARK_ROUND', '')}")
    if variant in peers.PEERS:
        weights = peers.PEERS[variant](folder)
    else:
        weights = plain(folder, job, **PLAIN[variant]) if variant in PLAIN else kdbench(folder, job, variant)
    told = {
        "epochs": EpochSeconds.epochs,
        "rows": ROWS,
        "peak_mb": EpochSeconds.peak_mb or peak_mb(),  # of training: evaluation loads the teacher too
        "threads": torch.get_num_threads(),
    }
    torch.save(weights, folder / f"{variant}.pt")
    print(json.dumps(told))


if __name__ == "__main__":
    from tests.benchmarks import job  # under the name that the experiments use

    job.main()
