"""Closed forms: every batch is seen once, what is solved is there before anything is scored or kept, and mistakes are told."""

import lightning.pytorch as pl
import pytest
import torch
from torch.nn.functional import one_hot

from kdbench.data.plain_text import PlainText
from kdbench.data.tokenizers import TrainWordLevel
from kdbench.data.vectors import VectorClassification
from kdbench.errors import UserError
from kdbench.files import write_text
from kdbench.methods.closed_form import ClosedForm
from kdbench.models.origins import FromConfig


class NearestMean(ClosedForm):
    """A linear classifier by the class means: ``w_c = m_c``, ``b_c = -||m_c||^2 / 2``."""

    def __init__(self):
        super().__init__(FromConfig("MLPClassifier", {"widths": []}))
        self.order = []

    def complete(self):
        self.register_buffer("sums", torch.zeros(20, 32))
        self.register_buffer("counts", torch.zeros(20))

    def observe(self, batch):
        assert not self.student.training
        assert not torch.is_grad_enabled()
        self.order.append("observe")
        hot = one_hot(batch["labels"], 20).float()
        self.sums += hot.T @ batch["inputs"]["features"]
        self.counts += hot.sum(0)

    def solve(self):
        self.order.append("solve")
        means = self.sums / self.counts[:, None]
        self.student.classifier.weight.copy_(means)
        self.student.classifier.bias.copy_(-means.square().sum(1) / 2)
        write_text(self.folder / "counts.txt", " ".join(str(int(count)) for count in self.counts))

    def on_validation_epoch_end(self):
        self.order.append("validate")
        super().on_validation_epoch_end()


def trainer(folder, **changes):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": 1, "num_sanity_val_steps": 0, "enable_checkpointing": False}
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, **quiet | settings | changes)


def data(**changes):
    return VectorClassification("synthetic/gaussian_tree", batch_size=256, **changes)


def test_every_batch_is_seen_and_validation_meets_the_solved_student(tmp_path):
    pl.seed_everything(0, verbose=False)
    module = NearestMean()
    fit = trainer(tmp_path)
    fit.fit(module, datamodule=data())
    assert module.order == ["observe"] * 8 + ["solve", "validate"]
    assert int(module.counts.sum()) == 2000
    assert fit.callback_metrics["val/accuracy@student"] > 0.7
    assert sum(map(int, (tmp_path / "counts.txt").read_text().split())) == 2000


def test_a_checkpoint_holds_the_solved_student(tmp_path):
    pl.seed_everything(0, verbose=False)
    module = NearestMean()
    fit = trainer(tmp_path)
    fit.fit(module, datamodule=data())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    again = NearestMean()
    (scores,) = trainer(tmp_path).test(again, datamodule=data(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert again.student.classifier.weight.equal(module.student.classifier.weight)
    assert scores["test/accuracy@student"] > 0.7
    resumed = NearestMean()
    trainer(tmp_path).fit(resumed, datamodule=data(), ckpt_path=tmp_path / "last.ckpt")
    assert "observe" not in resumed.order, "a fit that has ended has nothing more to see"
    assert resumed.student.classifier.weight.equal(module.student.classifier.weight)


def test_texts_without_labels_are_seen_too(tmp_path):
    class CountTokens(ClosedForm):
        tokens = 0

        def observe(self, batch):
            self.tokens += int(batch["inputs"]["attention_mask"].sum())

        def solve(self):
            self.student.embeddings.LayerNorm.weight.fill_(self.tokens)

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    module = CountTokens(FromConfig("BertModel", sizes))
    texts = PlainText(
        "synthetic/hidden_markov", tokenizer=TrainWordLevel(lowercase=False), train_rows=40, max_length=16
    )
    fit = trainer(tmp_path, limit_test_batches=1)
    fit.fit(module, datamodule=texts)
    assert module.tokens == 40 * 16
    assert module.student.embeddings.LayerNorm.weight.unique().tolist() == [640]
    (scores,) = fit.test(module, datamodule=texts, verbose=False)
    assert scores == {"test/objective@student": 0.0}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_epochs": 2}, "NearestMean sees every batch once, .* set trainer.max_epochs to 1, and no max_steps"),
        ({"max_epochs": -1, "max_steps": 3}, "NearestMean sees every batch once"),
        ({"limit_train_batches": 0}, "NearestMean has no batch to look at"),
    ],
)
def test_mistakes_are_told_in_one_sentence(settings, sentence, tmp_path):
    module = NearestMean()
    module.check_optimizers()
    with pytest.raises(UserError, match=sentence):
        trainer(tmp_path, **settings).fit(module, datamodule=data())
    assert module.order == []


def test_several_processes_are_refused(tmp_path, monkeypatch):
    several = trainer(tmp_path)
    monkeypatch.setattr(type(several), "world_size", 2)
    module = NearestMean()
    module.trainer = several
    with pytest.raises(UserError, match=r"NearestMean sees all batches in one process: set trainer\.devices to 1"):
        module.setup("fit")
