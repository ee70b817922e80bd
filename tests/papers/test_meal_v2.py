"""MEAL V2 (arXiv 2009.08453): its numbers and what it promises."""

import math

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.callbacks.export import StudentExport
from kdbench.data.images import ImageClassification
from kdbench.data.mixing import CutMix
from kdbench.losses.adversarial import OutputDiscriminator
from kdbench.losses.divergences import KLDivergence, SoftCrossEntropy, combine_logits
from kdbench.methods.ensemble import EnsembleDistillation
from kdbench.methods.objective import Objective, Term
from kdbench.models.ensemble import Ensemble
from kdbench.models.origins import FromConfig, FromFolder

# ---- the losses: oracles and invariants ----


def s(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


STUDENT = s((4, 8), 0.37, 0.1, 3)
TEACHERS = [s((4, 8), 0.53, 0.7, 4), s((4, 8), 0.29, 1.1, 2)]
Q0 = [0.129669678, 0.260599181, 0.290917881, 0.161647620, 0.0762253446, 0.0425772397, 0.0245523927, 0.0138106637]
seeds = st.integers(0, 10_000)


def soft_label(teachers=TEACHERS):
    return combine_logits(teachers, "mean_probabilities").softmax(-1)


def discriminator():
    """The discriminator of the official code on eight classes, its widths divided by 2, with the weights of the oracle."""
    found = OutputDiscriminator(divisor=2).double()
    found(STUDENT, TEACHERS[0])  # makes the weights
    with torch.no_grad():
        for place, layer in enumerate(found.layers):
            layer.weight.copy_(s(layer.weight.shape, 0.31 + 0.1 * place, 0.2 + place, 0.3))
            layer.bias.copy_(s(layer.bias.shape, 0.31, 0.5 + place) + 0.6)
    return found


def objective(similarity=None, loss=None):
    """The two terms of the paper: two different ensembles of the same teachers."""
    names = [f"{name}.logits" for name in "ab"]
    return Objective(
        {
            "similarity": Term(similarity or SoftCrossEntropy(), teacher=names, combine="mean_probabilities"),
            "discriminator": Term(loss or discriminator(), teacher=names, combine="mean_logits"),
        }
    )


def terms(student=STUDENT, teachers=TEACHERS, similarity=None, loss=None):
    told = {name: {"logits": each} for name, each in zip("ab", teachers, strict=True)}
    return objective(similarity, loss)({"logits": student}, told, {})


def test_the_soft_label_is_the_mean_of_the_probabilities():
    assert soft_label()[0].tolist() == pytest.approx(Q0, abs=1e-9)
    torch.testing.assert_close(soft_label().sum(-1), torch.ones(4).double())


def test_the_similarity_loss_in_both_forms():
    assert terms()["similarity"].item() == pytest.approx(2.46930862, abs=1e-8)
    assert terms(similarity=KLDivergence())["similarity"].item() == pytest.approx(0.719393757, abs=1e-9)


def test_the_discriminator_sees_the_mean_of_the_logits():
    student = STUDENT.clone().requires_grad_()
    value = terms(student)["discriminator"]
    assert value.item() == pytest.approx(0.950754371, abs=1e-9)
    value.backward()
    assert student.grad.norm().item() == pytest.approx(0.00124456264, abs=1e-11)


@pytest.mark.parametrize("similarity", [SoftCrossEntropy(), KLDivergence()])
def test_both_forms_have_the_gradient_of_the_distance_of_the_probabilities(similarity):
    student = STUDENT.clone().requires_grad_()
    terms(student, similarity=similarity)["similarity"].backward()
    torch.testing.assert_close(student.grad, (STUDENT.softmax(-1) - soft_label()) / 4)


@given(st.lists(st.floats(-50, 50), min_size=4, max_size=4))
def test_nothing_is_left_to_learn_where_the_student_says_what_all_say_together(constants):
    same = soft_label().log() + torch.tensor(constants, dtype=torch.float64)[:, None]
    assert terms(same, similarity=KLDivergence())["similarity"].item() == pytest.approx(0, abs=1e-12)
    assert terms(similarity=KLDivergence())["similarity"] > 0.1


@given(st.floats(0.5, 5), st.integers(0, 1))
def test_a_constant_on_a_teachers_logits_changes_the_discriminator_alone(constant, which):
    moved = [each + constant * (place == which) for place, each in enumerate(TEACHERS)]
    before, after = terms(), terms(teachers=moved)
    torch.testing.assert_close(after["similarity"], before["similarity"])
    assert abs(after["discriminator"].item() - before["discriminator"].item()) > 1e-4


@given(st.integers(1, 4))
def test_teachers_that_agree_are_one(count):
    torch.testing.assert_close(soft_label([TEACHERS[0]] * count), TEACHERS[0].softmax(-1))


def test_a_discriminator_that_says_nothing_loses_log_2():
    loss = discriminator()
    with torch.no_grad():
        loss.layers[-1].weight.zero_()
        loss.layers[-1].bias.zero_()
    assert terms(loss=loss)["discriminator"].item() == pytest.approx(math.log(2))


def test_teachers_get_no_gradient():
    teachers = [each.clone().requires_grad_() for each in TEACHERS]
    student = STUDENT.clone().requires_grad_()
    sum(terms(student, teachers).values()).backward()
    assert student.grad.abs().sum() > 0 and all(each.grad is None for each in teachers)


# ---- a fit ----


def network(*widths):
    return FromConfig("ConvNet", {"widths": list(widths)})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short fit with mixed images; the module, its data, what the teachers were before, and where the student lies."""
    folder = tmp_path_factory.mktemp("meal") / "student"
    pl.seed_everything(0, verbose=False)
    names = ["a.logits", "b.logits"]
    teachers = {"a": network(8, 8), "b": network(4, 4, 4)}
    module = EnsembleDistillation(
        network(4, 4),
        teachers,
        {
            "similarity": Term(SoftCrossEntropy(), teacher=names, combine="mean_probabilities"),
            "discriminator": Term(OutputDiscriminator(divisor=2), teacher=names, combine="mean_logits"),
        },
        references={"ensemble": Ensemble([network(8, 8), network(4, 4, 4)])},
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    )
    data = ImageClassification("vision/digits", mix=[CutMix()])
    seen = {}

    class Watch(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            for name in teachers:
                state = pl_module.network(name).state_dict()
                seen[name] = {key: value.clone() for key, value in state.items()}
            for layer in pl_module.objective.losses["discriminator"].layers:
                torch.nn.init.constant_(layer.bias, 0.6)  # else a rectifier may be off from the beginning
            seen["losses"] = {key: value.clone() for key, value in pl_module.objective.state_dict().items()}

    fitting = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=12,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[Watch(), StudentExport(folder)],
    )
    fitting.fit(module, datamodule=data)
    (scores,) = fitting.test(module, datamodule=data, verbose=False)
    return module, data, seen, folder, scores


def test_the_statistics_of_the_teachers_norms_do_not_move(run):
    module, _, before, _, _ = run
    for name in ("a", "b"):
        state = before[name]
        after = module.network(name).state_dict()
        assert any("running_mean" in key for key in state)
        assert all(torch.equal(after[key], value) for key, value in state.items())


def test_the_discriminator_is_trained_and_left_out_of_the_student(run):
    module, _, before, folder, _ = run
    after = module.objective.state_dict()
    assert len(after) == 6 and all(not torch.equal(after[key], value) for key, value in before["losses"].items())
    student = FromFolder(str(folder)).build()
    assert student.state_dict().keys() == module.student.state_dict().keys()
    assert sum(each.numel() for each in student.parameters()) == sum(
        each.numel() for each in module.student.parameters()
    )


def test_teachers_and_student_see_the_same_mixed_images(run):
    module, data, *_ = run
    batch = data.finish(next(iter(data.train_dataloader())))
    assert set(data.views.values()) == {"inputs"} and "mixed" in batch
    with torch.no_grad():
        told = module.teach(batch)
        expected = module.network("a")(pixel_values=batch["inputs"]["pixel_values"]).logits
    torch.testing.assert_close(told["a"]["logits"], expected)


def test_the_ensemble_is_the_mean_of_its_members(run):
    module, data, _, _, scores = run
    whole = module.network("ensemble")
    batch = data.example()["inputs"]
    with torch.no_grad():
        found = whole(**batch).logits
        members = [member(**batch).logits for member in whole.members]
    torch.testing.assert_close(found.exp(), soft_label(members))
    assert 0 <= scores["test/accuracy@ensemble"] <= 1
    with pytest.raises(ValueError, match="at least one member"):
        Ensemble([])
