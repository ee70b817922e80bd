import pytest
import torch

from kdbench.losses.divergences import KLDivergence
from kdbench.losses.hints import CosineDistance
from kdbench.losses.language import CrossEntropy
from kdbench.losses.top_k import top_k
from kdbench.methods.objective import Objective, Term, labels_of, same_rows


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
