"""The losses that papers on distilling image networks compare with: each number of the public code, as a term of an objective."""

import functools
import math

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from kdbench.callbacks.resume import ExactResume
from kdbench.data.images import ImageClassification
from kdbench.data.mixing import Mixup
from kdbench.losses.batch import AngleRelation, BatchGramDistance, DistanceRelation, SimilarityDivergence
from kdbench.losses.correlation import CorrelationDistance
from kdbench.losses.decoupled import DecoupledKL, non_target_kl, target_kl
from kdbench.losses.divergences import KLDivergence, kl_divergence
from kdbench.losses.feature_maps import AttentionTransfer, MapHint, ReviewedLevels, hierarchical_context
from kdbench.losses.hints import mean_squared_error
from kdbench.losses.memory import ContrastiveMemory
from kdbench.methods.logit import LogitDistillation
from kdbench.methods.objective import Objective, Ramp, Term
from kdbench.models.origins import FromConfig
from tests.losses import test_memory

seeds = st.integers(0, 10_000)


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([0, 3, 5, 2])
STUDENT = {
    "logits": g((4, 6), 0.37, 0.1, 3),
    "stages.1": g((4, 3, 8, 8), 0.31, 0.2),
    "stages.2": g((4, 3, 4, 4), 0.31, 0.2),
    "pooled": g((4, 6), 0.31, 0.2),
}
TEACHER = {
    "logits": g((4, 6), 0.53, 0.7, 4),
    "stages.1": g((4, 5, 4, 4), 0.23, 0.5),
    "stages.2": g((4, 5, 4, 4), 0.23, 0.5),
    "pooled": g((4, 8), 0.23, 0.5),
}


def value(loss, tap, student=STUDENT, teacher=TEACHER, **batch):
    """Return what a term of an objective says."""
    taps = [tap] if isinstance(tap, str) else tap
    theirs = [f"teacher.{each}" for each in taps]
    term = Term(loss, student=tap, teacher=theirs[0] if isinstance(tap, str) else theirs)
    return Objective({"term": term})(student, {"teacher": teacher}, {"labels": LABELS, **batch})["term"]


# ---- the table of the public code ----


@pytest.mark.parametrize(
    ("loss", "tap", "expected"),
    [
        (KLDivergence(1.0), "logits", 2.23223379),
        (KLDivergence(4.0), "logits", 3.35231463),
        (DecoupledKL(4.0, 1.0, 8.0), "logits", 24.6675034),
        (DecoupledKL(1.0, 1.0, 0.0), "logits", 0.321118941),
        (DecoupledKL(1.0, 0.0, 1.0), "logits", 1.95781388),
        (CorrelationDistance(1.0), "logits", 2.97748515),
        (CorrelationDistance(4.0), "logits", 48.8752417),
        (AttentionTransfer(), "stages.2", 0.00346524877),
        (AttentionTransfer(), "stages.1", 0.00105571491),
        (AttentionTransfer(), ["stages.1", "stages.2"], 0.00346524877 + 0.00105571491),
        (BatchGramDistance(), "stages.2", 0.470766610),
        (DistanceRelation(), "pooled", 0.0042863375),
        (AngleRelation(), "pooled", 0.00384183945),
        (SimilarityDivergence(), "pooled", 0.00591768968),
    ],
)
def test_the_table(loss, tap, expected):
    assert float(value(loss, tap)) == pytest.approx(expected, rel=5e-9)


def test_hints_and_levels_whose_networks_pass_them_through():
    """With regressors and fusions that change nothing, the numbers are those of squared error and levels alone."""
    wide = g((2, 3, 8, 8), 0.31, 0.2), g((2, 3, 8, 8), 0.23, 0.5)
    point = g((4, 6, 1, 1), 0.31, 0.2), g((4, 6, 1, 1), 0.23, 0.5)
    assert float(mean_squared_error(*wide)) == pytest.approx(1.01774521, rel=5e-9)
    assert float(hierarchical_context(*wide)) == pytest.approx(0.612055150, rel=5e-9)
    assert float(hierarchical_context(*point)) == pytest.approx(0.373313096, rel=5e-9)
    hint, review = MapHint(), ReviewedLevels()
    hint(*wide), review([wide[0]], [wide[1]])
    hint.regressors[0] = review.fusions[0].inward = review.fusions[0].outward = torch.nn.Conv2d(3, 3, 1).double()
    with torch.no_grad():
        hint.regressors[0].weight.copy_(torch.eye(3)[..., None, None])
        hint.regressors[0].bias.zero_()
    assert float(hint(*wide).detach()) == pytest.approx(1.01774521, rel=5e-9)
    assert float(review([wide[0]], [wide[1]]).detach()) == pytest.approx(0.612055150, rel=5e-9)


def test_two_calls_of_the_contrast_with_memories():
    loss = test_memory.memory()
    student, teacher = {"pooled": test_memory.STUDENT}, {"pooled": test_memory.TEACHER}
    for expected in (20.4491751, 14.6161508):
        found = value(loss, "pooled", student, teacher, **test_memory.BATCH)
        assert float(found.detach()) == pytest.approx(expected, rel=5e-9)
        assert loss.normalisers.tolist() == pytest.approx([2883.27312, 1485634.35], rel=5e-9)


def test_the_whole_of_rkd_is_two_terms():
    objective = Objective(
        {
            "distances": Term(DistanceRelation(), 25.0, "pooled", "teacher.pooled"),
            "angles": Term(AngleRelation(), 50.0, "pooled", "teacher.pooled"),
        }
    )
    found = objective(STUDENT, {"teacher": TEACHER}, {})
    total = sum(objective.terms[name].weight * each for name, each in found.items())
    assert float(total) == pytest.approx(0.299250410, rel=5e-9)


# ---- what all of them promise ----


@pytest.mark.parametrize(
    ("loss", "tap"),
    [
        (KLDivergence(4.0), "logits"),
        (DecoupledKL(), "logits"),
        (CorrelationDistance(), "logits"),
        (AttentionTransfer(), ["stages.1", "stages.2"]),
        (BatchGramDistance(), "stages.2"),
        (DistanceRelation(), "pooled"),
        (AngleRelation(), "pooled"),
        (SimilarityDivergence(), "pooled"),
    ],
)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(loss, tap):
    assert float(value(loss, tap, TEACHER)) == pytest.approx(0, abs=3e-6)


@given(seeds, st.floats(-30, 30))
def test_a_constant_added_to_the_logits_of_an_image_changes_nothing(seed, constant):
    student, teacher = draw(seed, 5, 6), draw(seed + 1, 5, 6)
    labels, shift = torch.arange(5), constant * draw(seed + 2, 5, 1)
    for loss in (KLDivergence(4.0), DecoupledKL(), CorrelationDistance(4.0)):
        fields = {"labels": labels} if getattr(loss, "fields", ()) else {}
        torch.testing.assert_close(loss(student + shift, teacher, **fields), loss(student, teacher, **fields))


@given(seeds)
def test_a_high_temperature_compares_centred_logits(seed):
    student, teacher = draw(seed, 5, 6), draw(seed + 1, 5, 6)
    centred = [each - each.mean(-1, keepdim=True) for each in (student, teacher)]
    limit = (centred[0] - centred[1]).square().sum(-1).mean() / 12
    torch.testing.assert_close(KLDivergence(1e4)(student, teacher), limit, rtol=1e-3, atol=0)


@given(seeds)
def test_the_divergence_is_its_two_parts_with_the_second_by_what_is_left(seed):
    student, teacher, labels = draw(seed, 5, 6), draw(seed + 1, 5, 6), torch.arange(5)
    left = 1 - teacher.softmax(-1)[torch.arange(5), labels]
    parts = [part(student, teacher, labels, reduction="none") for part in (target_kl, non_target_kl)]
    torch.testing.assert_close(parts[0] + left * parts[1], kl_divergence(student, teacher, reduction="none"))


def test_a_warm_up_counts_epochs_from_1():
    ramp = Ramp(0.0, 1.0, "epoch", over=20)
    assert [ramp.at(epoch, 240) for epoch in (0, 9, 19, 100)] == [0.05, 0.5, 1.0, 1.0]


# ---- in training ----


def term(loss, *taps):
    return Term(loss, 1.0, list(taps), [f"teacher.{tap}" for tap in taps])


def digits(**settings):
    return ImageClassification("vision/digits", batch_size=50, labelled_rows=200, **settings)


def fitted(data, terms, checkpoint=None, watch=None, soft_weight=0.0):
    """Return a student of a teacher that knows nothing, after six steps."""
    pl.seed_everything(0, verbose=False)
    student, teacher = (FromConfig("ConvNet", {"widths": widths, "num_channels": 1}) for widths in ([4, 6], [8, 12]))
    module = LogitDistillation(student, teacher, soft_weight=soft_weight, objective=terms)
    callbacks = [ExactResume(), *([watch] if watch else [])]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    saves = isinstance(watch, ModelCheckpoint)
    trainer = pl.Trainer(max_steps=6, accelerator="cpu", callbacks=callbacks, enable_checkpointing=saves, **quiet)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return module


def with_networks():
    return {
        "review": term(ReviewedLevels(), "preactivations.1", "preactivations.2", "pooled"),
        "hint": term(MapHint(), "stages.1"),
        "contrast": Term(ContrastiveMemory(rows=1000, width=8), 1.0, "pooled", "teacher.pooled"),
    }


def test_networks_and_memories_of_losses_are_trained_and_resumed_to_the_last_bit(tmp_path):
    kept = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    whole = fitted(digits(negatives=16), with_networks(), watch=kept).state_dict()
    early = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["state_dict"]
    resumed = fitted(digits(negatives=16), with_networks(), checkpoint=str(tmp_path / "step=2.ckpt")).state_dict()
    assert {name for name, each in whole.items() if not each.equal(resumed[name])} == set()
    own = [name for name in whole if name.startswith("objective.losses.")]
    still = [name for name in own if whole[name].equal(early[name])]
    assert [name for name in still if not name.endswith("normalisers")] == []
    assert (whole["objective.losses.contrast.normalisers"] > 0).all()
    assert len([name for name in own if name.endswith("weight")]) == 3 * 4 + 2 + 2 + 2


class Views(pl.Callback):
    """What the two networks are given in training, and the images as they were."""

    def __init__(self):
        self.seen = {"student": [], "teacher": [], "clean": []}

    def on_train_start(self, trainer, pl_module):
        for name in ("student", "teacher"):
            hook = functools.partial(self.keep, name)
            pl_module.network(name).register_forward_pre_hook(hook, with_kwargs=True)

    def keep(self, name, network, args, view):
        self.seen[name].append(view["pixel_values"])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        takes = trainer.datamodule.takes["inputs"]
        self.seen["clean"].append(takes.pixel_values(batch["images"].float() / 255))


def test_a_student_of_mixed_images_sees_what_its_teacher_sees():
    views = Views()
    module = fitted(digits(mix=[Mixup()]), {}, watch=views, soft_weight=1.0)
    assert list(module.objective.terms) == ["soft"], "no label is read"
    assert [len(each) for each in views.seen.values()] == [6, 6, 6]
    for ours, theirs, clean in zip(*views.seen.values(), strict=True):
        assert ours.equal(theirs)
        before = clean.roll(1, 0) - clean
        shares = (ours - clean).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
        torch.testing.assert_close(shares, shares[:1].expand(50), rtol=1e-4, atol=1e-5)
        assert 0 < float(shares[0]) <= 0.5, "the share of the image before it, one for the whole batch"
