"""Distillation at exit branches: for students of every kind, what is learnt, what is exported, and mistakes."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kdbench.callbacks.export import StudentExport
from kdbench.data.images import ImageClassification
from kdbench.errors import UserError
from kdbench.losses.divergences import KLDivergence
from kdbench.losses.enhanced_target import enhanced_target
from kdbench.losses.resized_hint import ResizedHint
from kdbench.methods.multi_exit import BranchDistillation, BranchLoss
from kdbench.methods.objective import Term
from kdbench.models.exits import ConvolutionBranch, TokenBranch
from kdbench.models.origins import FromConfig, FromFolder

CNN = {"architecture": "ConvNet", "config": {"widths": [4, 8, 16, 32]}}
VIT = {
    "architecture": "ViTForImageClassification",
    "config": {
        "patch_size": 4,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
}
MLP = {"architecture": "ResMLP", "config": {"patch_size": 4, "hidden_size": 16, "num_hidden_layers": 4}}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def module(student=CNN, teacher=VIT, **settings):
    return BranchDistillation(FromConfig(**student), FromConfig(**teacher), optimizer=sgd, **settings)


def fitted(found, steps=2, folder=None):
    pl.seed_everything(0, verbose=False)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    callbacks = [StudentExport(folder)] if folder else []
    trainer = pl.Trainer(max_steps=steps, accelerator="cpu", enable_checkpointing=False, callbacks=callbacks, **quiet)
    trainer.fit(found, datamodule=ImageClassification("synthetic/painted_scenes", batch_size=8, train_rows=32))
    return found


def branches(found):
    return {name: loss.branch for name, loss in found.objective.losses.items() if isinstance(loss, BranchLoss)}


@pytest.mark.parametrize(("student", "kind"), [(CNN, ConvolutionBranch), (VIT, TokenBranch), (MLP, TokenBranch)])
@pytest.mark.parametrize("teacher", [CNN, VIT])
def test_students_and_teachers_of_all_kinds(student, teacher, kind):
    found = fitted(module(student, teacher, exponent=1.5))
    made = branches(found)
    assert list(made) == ["branch_1", "branch_2", "branch_3", "branch_4"]
    assert {type(branch) for branch in made.values()} == {kind}
    assert all(branch.classifier.out_features == 20 for branch in made.values())
    if kind is ConvolutionBranch:
        assert {branch.classifier.in_features for branch in made.values()} == {32}, "the wider network's, CNN or not"


def test_the_loss_is_the_weighted_sum_of_the_labels_the_logits_and_the_branches():
    exponents = [1.1, 1.2, 1.3]
    found = fitted(module(stages=[2, 4], exponent=exponents, temperature=2.0, form="paper", branch_weight=0.5))
    batch = found.data.example()
    student, teacher = found.learn(batch, {}), found.teach(batch)
    labels, logits = batch["labels"], teacher["teacher"]["logits"]
    values = found.objective(student, teacher, batch)
    torch.testing.assert_close(values["hard"], cross_entropy(student["logits"], labels))
    said = {name: branch(student[f"stages.{name[-1]}"]) for name, branch in branches(found).items()}
    said = {**said, "soft": student["logits"]}
    assert list(said) == ["branch_2", "branch_4", "soft"]
    for exponent, (name, each) in zip(exponents, said.items(), strict=True):
        torch.testing.assert_close(values[name], enhanced_target(each, logits, labels, exponent, 2.0, "paper"))
    weights = {name: term.weight for name, term in found.objective.terms.items()}
    assert weights == {"hard": 1.0, "soft": 1.0, "branch_2": 0.5, "branch_4": 0.5}


def test_branches_learn_beside_the_student_and_are_not_exported(tmp_path):
    start = fitted(module(), steps=0)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    found = fitted(module(), steps=3, folder=tmp_path / "student")
    after = found.state_dict()
    assert before.keys() == after.keys()
    inside = [name for name in after if ".branch." in name]
    assert any("running_mean" in name for name in inside), "batch normalisation with statistics of its own"
    assert all(not torch.equal(before[name], after[name]) for name in inside if "num_batches" not in name)
    plain = FromConfig(CNN["architecture"], {**CNN["config"], "num_labels": 20}).build()
    exported = FromFolder(str(tmp_path / "student")).build()
    assert exported.state_dict().keys() == plain.state_dict().keys() == found.student.state_dict().keys()
    optimised = {id(each) for group in found.optimizers().param_groups for each in group["params"]}
    assert optimised == {id(each) for each in (*found.student.parameters(), *found.objective.parameters())}
    assert all(not each.requires_grad for each in found.network("teacher").parameters())


def test_the_student_begins_as_it_does_without_branches():
    with_branches, without = (fitted(module(stages=stages), steps=0).student for stages in ([1, 2, 3, 4], []))
    ours, theirs = with_branches.state_dict(), without.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_without_branches_and_with_other_terms_it_is_a_baseline_of_the_same_student():
    soft = Term(KLDivergence(), teacher="teacher.logits")
    found = fitted(module(stages=[], objective={"soft": soft}))
    assert list(found.objective.terms) == ["hard", "soft"]
    assert found.objective.terms["soft"] is soft
    taps = [f"stages.{stage}" for stage in range(1, 5)]
    hint = Term(ResizedHint(), student=taps, teacher=[f"teacher.{tap}" for tap in taps])
    found = fitted(module(stages=[], soft_weight=0.0, objective={"hint": hint}))
    assert list(found.objective.terms) == ["hard", "hint"]
    assert [tuple(each.weight.shape) for each in hint.loss.projections] == [(16, 4), (16, 8), (16, 16), (16, 32)]
    assert list(fitted(module(stages=[], soft_weight=0.0)).objective.terms) == ["hard"]


def test_at_the_exponent_1_without_branches_it_learns_as_from_the_divergence():
    """The cross-entropy of soft targets and the KL differ by the teacher's entropy alone."""
    ours = fitted(module(stages=[]), steps=4).student.state_dict()
    divergence = Term(KLDivergence(), teacher="teacher.logits")
    theirs = fitted(module(stages=[], objective={"soft": divergence}), steps=4).student.state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stages", [[0], [1, 5], [2, 2]])
def test_stages_that_do_not_exist(stages):
    with pytest.raises(ValueError, match=rf"stages are different numbers from 1 to 4, got \[{stages[0]}"):
        module(stages=stages)


def test_exponents_that_are_not_one_more_than_the_branches():
    with pytest.raises(ValueError, match="2 branches and one for the student's logits: 3 numbers, got 2"):
        module(stages=[1, 2], exponent=[1.0, 1.5])
    with pytest.raises(ValueError, match="exponent of an enhanced target must be positive"):
        module(exponent=0.0)


def test_a_teacher_of_other_classes():
    teacher = {**CNN, "config": {**CNN["config"], "num_labels": 10}}
    with pytest.raises(UserError, match="ConvNet tells 10 classes apart, and the data have 20"):
        fitted(module(teacher=teacher))


def test_a_student_of_three_stages():
    with pytest.raises(UserError, match=r"'stages.4' is out of range: the network has a stem and 3 stages"):
        fitted(module({"architecture": "ConvNet", "config": {"widths": [4, 8, 16]}}))


def test_branch_losses_name_the_fields_of_the_loss_inside():
    assert BranchLoss(KLDivergence(), 1).fields == ()
    loss = BranchLoss(KLDivergence(), 1)
    loss.branch = nn.Identity()
    values = torch.randn(2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(loss(*values), KLDivergence()(*values))
