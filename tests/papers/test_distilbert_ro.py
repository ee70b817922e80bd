"""Distilling the Knowledge of Romanian BERTs (arXiv 2112.12650): the card's numbers through the objective itself."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.data.alignment import aligned_positions
from kdbench.errors import UserError
from kdbench.losses.divergences import KLDivergence, kl_divergence
from kdbench.losses.hints import CosineDistance
from kdbench.losses.language import CrossEntropy
from kdbench.methods.ensemble import FoldVocabulary, SharedWords, _word_means
from kdbench.methods.objective import Objective, Term


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


def triple(temperature=2.0):
    return Objective(
        {
            "soft": Term(KLDivergence(temperature), 5.0, teacher="cased.logits"),
            "masked": Term(CrossEntropy(), 2.0, labels="masked_labels"),
            "hidden": Term(CosineDistance(), 1.0, student="hidden_states.-1", teacher="cased.hidden_states.-1"),
        }
    )


def example():
    labels = torch.full((2, 4), -100)
    labels[0, 1], labels[1, 2] = 2, 4
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    batch = {"inputs": {"attention_mask": mask}, "masked_labels": labels}
    student = {"logits": g((2, 4, 5), 0.37, 0, 3), "hidden_states.-1": g((2, 4, 6), 0.29, 2, 1)}
    teacher = {"logits": g((2, 4, 5), 0.53, 1, 3), "hidden_states.-1": g((2, 4, 6), 0.41, 3, 1)}
    return student, {"cased": teacher}, batch


def total(objective, *values):
    return sum(objective.terms[name].weight * value for name, value in objective(*values).items())


def test_the_triple_loss():
    objective = triple()
    raw = objective(*example())
    assert float(raw["soft"]) == pytest.approx(1.48939030, abs=1e-8)
    assert float(raw["masked"]) == pytest.approx(1.23397691, abs=1e-8)
    assert float(raw["hidden"]) == pytest.approx(1.28272519, abs=1e-8)
    assert float(total(objective, *example())) == pytest.approx(11.19763052, abs=1e-8)


@given(st.floats(-1e3, 1e3))
def test_padding_changes_nothing(value):
    student, teacher, batch = example()
    expected = total(triple(), student, teacher, batch)
    for values in (student, teacher["cased"]):
        for tensor in values.values():
            tensor[1, 3] = value
    assert float(total(triple(), student, teacher, batch)) == pytest.approx(float(expected), abs=1e-12)


def test_a_student_that_equals_its_teacher_has_only_the_labels_to_learn():
    student, _, batch = example()
    raw = triple()(student, {"cased": student}, batch)
    assert float(raw["soft"]) == pytest.approx(0, abs=1e-12)
    assert float(raw["hidden"]) == pytest.approx(0, abs=1e-12)
    assert float(raw["masked"]) > 0


@pytest.mark.parametrize(
    ("combine", "expected"),
    [("mean_probabilities", 1.49183410), ("mean_losses", 1.92750831), ("mean_logits", 1.66546156)],
)
def test_two_teachers(combine, expected):
    term = Term(KLDivergence(2.0), 1.0, teacher=["a.logits", "b.logits"], combine=combine)
    teachers = {"a": {"logits": g((3, 5), 0.53, 1, 3)}, "b": {"logits": g((3, 5), 0.71, 2, 3)}}
    raw = Objective({"soft": term})({"logits": g((3, 5), 0.37, 0, 3)}, teachers, {})
    assert float(raw["soft"]) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("combine", ["mean_probabilities", "mean_losses", "mean_logits"])
def test_two_equal_teachers_are_one(combine):
    student, teacher = {"logits": g((3, 5), 0.37, 0, 3)}, {"logits": g((3, 5), 0.53, 1, 3)}
    two = Term(KLDivergence(2.0), 1.0, teacher=["a.logits", "b.logits"], combine=combine, teacher_weights=[1, 3])
    raw = Objective({"soft": two})(student, {"a": teacher, "b": teacher}, {})
    one = kl_divergence(student["logits"], teacher["logits"], 2.0)
    assert float(raw["soft"]) == pytest.approx(float(one), abs=1e-10)


def test_a_folded_student_is_compared_in_the_teachers_pieces():
    match = FoldVocabulary(torch.tensor([0, 1, 3, 1, 3]))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    student, teacher = g((2, 3, 5), 0.37, 0, 3), g((2, 3, 4), 0.53, 1, 3)
    ours, theirs = match(student, teacher, "logits", 2.0, {}, mask)
    q = (student[mask] / 2.0).softmax(-1)
    folded = torch.stack([q[:, 0], q[:, 1] + q[:, 3], q[:, 2] + q[:, 4]], 1)
    torch.testing.assert_close((ours / 2.0).softmax(-1), folded)
    torch.testing.assert_close(theirs, teacher[mask][:, [0, 1, 3]])  # no piece of the student folds onto the third
    with pytest.raises(UserError, match="use shared_words"):
        match(student, teacher[:, :2], "logits", 2.0, {}, mask)


def shared():
    # words 0, 1, 2; the student cuts word 1 in two pieces, the teacher word 2
    ours = torch.tensor([[-1, 0, 1, 1, 2, -1]])
    theirs = torch.tensor([[-1, 0, 1, 2, 2, 2, -1]])
    batch = {"aligned.b": aligned_positions(ours, theirs), "word_index.inputs": ours, "word_index.b": theirs}
    return SharedWords("b", torch.tensor([-1, 0, 1, 0, 2]), torch.tensor([2, -1, 1, 0]), 3), batch


def test_shared_words_meet_where_both_have_one_piece():
    match, batch = shared()
    student, teacher = g((1, 6, 5), 0.37, 0, 3), g((1, 7, 4), 0.53, 1, 3)
    ours, theirs = match(student, teacher, "logits", 2.0, batch, torch.ones(1, 6).bool())
    assert ours.shape == theirs.shape == (1, 3), "only word 0 is one piece in both"
    q = (student[0, 1] / 2).softmax(-1)
    expected = torch.stack([q[1] + q[3], q[2], q[4]])
    torch.testing.assert_close((ours[0] / 2).softmax(-1), expected / expected.sum())
    torch.testing.assert_close(theirs[0], teacher[0, 1, [3, 2, 0]])


def test_shared_words_compare_hidden_states_by_words():
    match, batch = shared()
    student, teacher = g((1, 6, 8), 0.37, 0), g((1, 7, 8), 0.53, 1)
    ours, theirs = match(student, teacher, "hidden_states.-1", 1.0, batch, torch.ones(1, 6).bool())
    torch.testing.assert_close(ours, torch.stack([student[0, 1], student[0, 2:4].mean(0), student[0, 4]]))
    torch.testing.assert_close(theirs, torch.stack([teacher[0, 1], teacher[0, 2], teacher[0, 3:6].mean(0)]))


def test_word_means_ignore_specials():
    means, exist = _word_means(torch.ones(1, 3, 2), torch.tensor([[-1, 0, -1]]), 3)
    assert exist.tolist() == [[True, False, False]]
    assert means[0, 0].tolist() == [1.0, 1.0]


def test_one_aligned_and_one_plain_teacher_add_their_shares():
    match, batch = shared()
    student = {"logits": g((1, 6, 5), 0.37, 0, 3)}
    teachers = {"a": {"logits": g((1, 6, 5), 0.71, 2, 3)}, "b": {"logits": g((1, 7, 4), 0.53, 1, 3)}}
    batch["inputs"] = {"attention_mask": torch.ones(1, 6)}
    term = Term(KLDivergence(2.0), 1.0, teacher=["a.logits", "b.logits"], combine="mean_probabilities")
    raw = Objective({"soft": term}, {"b": match})(student, teachers, batch)
    plain = kl_divergence(student["logits"][0], teachers["a"]["logits"][0], 2.0)
    rows = match(student["logits"], teachers["b"]["logits"], "logits", 2.0, batch, torch.ones(1, 6).bool())
    assert float(raw["soft"]) == pytest.approx(float((plain + kl_divergence(*rows, 2.0)) / 2), abs=1e-10)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({}, "either 'teacher' or 'labels'"),
        ({"teacher": "a.logits", "labels": "labels"}, "either 'teacher' or 'labels'"),
        ({"teacher": ["a.logits", "b.logits"], "teacher_weights": [1.0]}, "as many weights"),
        ({"teacher": ["a.logits", "b.logits"], "teacher_weights": [0.0, 0.0]}, "sum to more than 0"),
    ],
)
def test_terms_that_cannot_be(arguments, fault):
    with pytest.raises(ValueError, match=fault):
        Term(KLDivergence(2.0), **arguments)


def test_weights_that_sum_to_nothing():
    with pytest.raises(ValueError, match="nothing to learn"):
        Objective({"soft": Term(KLDivergence(2.0), 0.0, teacher="a.logits")})
