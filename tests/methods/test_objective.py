import pytest
import torch
from torch import nn

from kdbench.losses.divergences import KLDivergence
from kdbench.losses.hints import CosineDistance
from kdbench.losses.language import CrossEntropy
from kdbench.losses.top_k import top_k
from kdbench.methods.objective import Objective, Ramp, Term, labels_of, same_rows


class Comparing(KLDivergence):
    compares_rows = True


SOFT = Term(KLDivergence(2.0), 5.0, teacher="cased.logits")
MASKED = Term(CrossEntropy(), 2.0, labels="masked_labels")
HIDDEN = Term(CosineDistance(), student="hidden_states.-1", teacher="cased.hidden_states.-1")


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"masked": MASKED}, "masked_labels"),
        ({"masked": MASKED, "hidden": HIDDEN}, "masked_labels"),
        ({"masked": MASKED, "soft": SOFT}, None),
        ({"masked": MASKED, "other": Term(CrossEntropy(), labels="labels")}, None),
        ({"hidden": HIDDEN}, None),
    ],
)
def test_the_head_runs_on_labelled_positions_where_nothing_else_is_read(terms, field):
    assert Objective(terms).labelled_only("logits") == field


def test_labels_meet_logits_of_all_positions_or_of_the_labelled_ones():
    labels = torch.tensor([[-100, 3, -100], [1, -100, 2]])
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    few = logits[labels != -100]
    assert labels_of(logits, labels) is labels
    assert labels_of(few, labels).tolist() == [3, 1, 2]
    objective = Objective({"masked": MASKED})
    batch = {"masked_labels": labels}
    whole = objective({"logits": logits}, {}, batch)["masked"]
    torch.testing.assert_close(objective({"logits": few}, {}, batch)["masked"], whole)


@pytest.mark.parametrize(
    ("terms", "short"),
    [
        ({"soft": SOFT}, {"cased": 2.0}),
        ({"soft": SOFT, "hidden": HIDDEN}, {"cased": 2.0}),
        ({"soft": SOFT, "warm": Term(KLDivergence(4.0), teacher="cased.logits")}, {}),
        ({"soft": Term(KLDivergence(2.0), teacher=["cased.logits", "other.logits"])}, {}),
        ({"soft": Term(CosineDistance(), teacher="cased.logits")}, {}),
    ],
)
def test_logits_may_be_kept_in_short_for_one_temperature_of_one_teacher(terms, short):
    assert Objective(terms).short_logits() == short


def test_a_teacher_of_other_pieces_is_kept_whole():
    assert Objective({"soft": SOFT}, {"cased": lambda *_: None}).short_logits() == {}


def test_an_objective_says_when_it_compares_the_rows_of_a_batch():
    assert not Objective({"soft": SOFT, "masked": MASKED}).compares_rows
    assert Objective({"soft": SOFT, "relation": Term(Comparing(), teacher="cased.logits")}).compares_rows


def test_a_short_teacher_meets_the_students_classes_row_by_row():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 7, generator=generator) for _ in range(2))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    ours, theirs = same_rows(student, top_k(teacher, 6, 2.0), "logits", 2.0, {}, mask)
    assert ours.shape == theirs.shape == (3, 7)
    short = Objective({"soft": SOFT})._loss(SOFT, ours, theirs, {}, mask)
    whole = Objective({"soft": SOFT})._loss(SOFT, *same_rows(student, teacher, "logits", 2.0, {}, mask), {}, mask)
    torch.testing.assert_close(short, whole, msg="one class in the tail loses nothing")


class Gap(nn.Module):
    """The mean difference of paired values at the positions that count."""

    takes_mask = True

    def forward(self, students, teachers, mask):
        return sum((ours - theirs)[mask].mean() for ours, theirs in zip(students, teachers, strict=True))


def values_of(*names, shape=(2, 3, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator) for name in names}


def test_a_loss_of_lists_gets_the_taps_one_by_one_and_the_mask():
    term = Term(Gap(), student=["query.-1", "key.-1"], teacher=["large.query.-1", "large.key.-1"])
    student, teacher = values_of("query.-1", "key.-1"), values_of("query.-1", "key.-1", seed=1)
    batch = {"inputs": {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}}
    found = Objective({"gap": term})(student, {"large": teacher}, batch)["gap"]
    real = batch["inputs"]["attention_mask"].bool()
    wanted = sum((student[tap] - teacher[tap])[real].mean() for tap in student)
    torch.testing.assert_close(found, wanted)
    single = Objective({"gap": Term(Gap(), student="key.-1", teacher="large.key.-1")})
    torch.testing.assert_close(
        single(student, {"large": teacher}, batch)["gap"], (student["key.-1"] - teacher["key.-1"])[real].mean()
    )


@pytest.mark.parametrize(
    ("student", "teacher", "why"),
    [
        (["query.-1", "key.-1"], "large.query.-1", "need as many"),
        (["query.-1", "key.-1"], ["large.query.-1", "other.key.-1"], "one teacher"),
    ],
)
def test_lists_of_taps_are_pairs_of_one_teacher(student, teacher, why):
    with pytest.raises(ValueError, match=why):
        Term(Gap(), student=student, teacher=teacher)


def test_numbers_move_in_a_line_by_steps_or_epochs():
    # Two of five epochs from 2 to 1: the annealed temperature 1.75 of the second epoch.
    terms = {
        "soft": Term(KLDivergence(2.0), teacher="cased.logits", ramps={"temperature": Ramp(2.0, 1.0, by="epoch")}),
        "hidden": Term(CosineDistance(), 1.0, "h", "cased.h", ramps={"weight": Ramp(1.0, 0.0)}),
    }
    objective = Objective(terms)
    objective.move({"step": (50, 101), "epoch": (1, 5)})
    assert objective.terms["soft"].loss.temperature == 1.75
    assert objective.terms["hidden"].weight == 0.5
    assert objective.short_logits() == {}, "a temperature that moves needs all logits"
    with pytest.raises(ValueError, match=r"no number 'temprature' that could move\. Did you mean 'temperature'"):
        Term(KLDivergence(2.0), teacher="cased.logits", ramps={"temprature": Ramp(2.0, 1.0)})


def test_a_warm_up_counts_from_one_and_stays_at_its_end():
    ramp = Ramp(0.0, 1.0, by="epoch", over=20)
    assert [ramp.at(epoch, 240) for epoch in (0, 9, 19, 20, 239)] == [1 / 20, 0.5, 1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="after at least 1 epoch, not over 0"):
        Ramp(0.0, 1.0, by="epoch", over=0)


class Weighed(nn.Module):
    fields = ("labels", "sigma")

    def forward(self, student, teacher, labels, sigma):
        return ((student - teacher).mean(-1) * sigma)[labels > 0].sum()


def test_a_loss_is_given_the_fields_that_it_names():
    objective = Objective({"weighed": Term(Weighed(), teacher="t.logits")})
    student, teacher = torch.ones(3, 2), {"t": {"logits": torch.zeros(3, 2)}}
    batch = {"labels": torch.tensor([0, 1, 2]), "sigma": torch.tensor([1.0, 2.0, 4.0])}
    assert float(objective({"logits": student}, teacher, batch)["weighed"]) == 6.0
    with pytest.raises(ValueError, match="no field 'sigma'"):
        objective({"logits": student}, teacher, {"labels": batch["labels"]})


def test_labels_count_only_where_the_mask_says():
    term = Term(CrossEntropy(), labels="labels", mask="gold")
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    batch = {"labels": torch.tensor([0, 1, 2, 0]), "gold": torch.tensor([True, False, True, False])}
    found = Objective({"hard": term})({"logits": logits}, {}, batch)["hard"]
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits[[0, 2]], batch["labels"][[0, 2]]))


def test_a_loss_that_compares_rows_needs_all_logits_of_the_teacher():
    assert Objective({"relation": Term(Comparing(2.0), teacher="cased.logits")}).short_logits() == {}


def test_a_term_may_not_be_named_like_a_method():
    with pytest.raises(ValueError, match="a term cannot be named 'values'"):
        Objective({"values": SOFT})
