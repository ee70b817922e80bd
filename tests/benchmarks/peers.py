"""The classification job in other suites, where they are installed (``pip install -e '.[peers]'``)."""

import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from kdbench.data.samplers import GroupedBatches
from tests.benchmarks.job import BATCH, EPOCHS, ROWS, EpochSeconds, clocks, rows, since

State = dict[str, Tensor]


def networks(folder: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return teacher and student as they were saved."""
    kind = AutoModelForSequenceClassification
    return kind.from_pretrained(folder / "teacher").eval(), kind.from_pretrained(folder / "student").train()


def encoded(folder: Path) -> tuple[list[dict], Callable]:
    """Return the training rows in pieces, and what pads them."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    data = [
        {**tokenizer(row["text"], truncation=True, max_length=128, return_token_type_ids=False), "labels": row["label"]}
        for row in rows("train", ROWS)
    ]
    return data, DataCollatorWithPadding(tokenizer)


def loss_of(ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
    """Return half the softened divergence and half the cross-entropy."""
    soft = functional.kl_div((ours / 4).log_softmax(-1), (theirs / 4).softmax(-1), reduction="batchmean")
    return 0.5 * 16 * soft + 0.5 * functional.cross_entropy(ours, labels)


class Loader(DataLoader):
    """The same batches in the same order as in the plain loop; it takes the time of each pass."""

    def __init__(self, folder: Path) -> None:
        data, collate = encoded(folder)
        self.order = GroupedBatches(ROWS, BATCH, seed=0, draws=1)
        self.data, self.collate = data, collate
        self.begun: tuple[float, float] | None = None
        super().__init__(data, batch_size=BATCH)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.end()
        self.order.set_epoch(len(EpochSeconds.epochs))
        self.begun = clocks()
        for batch in self.order:
            yield dict(self.collate([self.data[row] for row, _ in batch]))

    def end(self) -> None:
        """Note the seconds of the pass that has begun; who trains does so after the last one."""
        if self.begun is not None:
            EpochSeconds.epochs.append(since(self.begun))
        self.begun = None


def hugging_face(folder: Path) -> State:
    """The Trainer of transformers, with its loss replaced."""
    from transformers import Trainer, TrainingArguments

    teacher, student = networks(folder)
    loader = Loader(folder)

    class Distilling(Trainer):
        def get_train_dataloader(self) -> DataLoader:
            return loader

        def compute_loss(self, model, inputs, **_):
            labels = inputs.pop("labels")
            with torch.no_grad():
                theirs = teacher(**inputs).logits
            return loss_of(model(**inputs).logits, theirs, labels)

    with tempfile.TemporaryDirectory() as place:
        arguments = TrainingArguments(
            output_dir=place,
            per_device_train_batch_size=BATCH,
            num_train_epochs=EPOCHS,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            logging_steps=50,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        Distilling(student, arguments, train_dataset=loader.data).train()
        loader.end()
    return student.state_dict()


def textbrewer(folder: Path) -> State:
    """TextBrewer's basic distiller."""
    from textbrewer import BasicDistiller, DistillationConfig, TrainingConfig

    teacher, student = networks(folder)
    loader = Loader(folder)

    def adaptor(batch: dict[str, Tensor], outputs: dict[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
        return {"logits": (outputs["logits"],), "losses": (outputs["loss"],)}

    with tempfile.TemporaryDirectory() as place:
        distiller = BasicDistiller(
            TrainingConfig(output_dir=place, log_dir=None, device="cpu", ckpt_frequency=0),
            DistillationConfig(temperature=4, kd_loss_weight=0.5 * 16, hard_label_weight=0.5),  # it leaves out T^2
            teacher,
            student,
            adaptor,
            adaptor,
        )
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.0)
        with distiller:
            distiller.train(optimizer, loader, num_epochs=EPOCHS)
        loader.end()
    return student.state_dict()


PEERS = {
    name: run
    for name, (run, package) in {
        "Hugging Face Trainer": (hugging_face, "accelerate"),
        "TextBrewer": (textbrewer, "textbrewer"),
    }.items()
    if find_spec(package)
}
