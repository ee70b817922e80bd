"""The decoupled divergence: oracles, the identity that it comes from, and rows without a label."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from kdbench.losses.decoupled import DecoupledKL, decoupled_kl, non_target_kl, target_kl
from kdbench.losses.divergences import kl_divergence
from kdbench.methods.objective import Objective, Term


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


STUDENT, TEACHER, LABELS = g((4, 6), 0.37, 0.1, 3), g((4, 6), 0.53, 0.7, 4), torch.tensor([0, 3, 5, 2])
seeds = st.integers(0, 10_000)
temperatures = st.floats(0.5, 8.0)


def draw(seed, rows=5, classes=7, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return *logits, torch.randint(classes, (rows,), generator=generator)


def test_oracles():
    assert float(decoupled_kl(STUDENT, TEACHER, LABELS)) == pytest.approx(24.6675034, abs=5e-8)
    assert float(target_kl(STUDENT, TEACHER, LABELS)) == pytest.approx(0.321118941, abs=5e-10)
    assert float(non_target_kl(STUDENT, TEACHER, LABELS)) == pytest.approx(1.95781388, abs=5e-9)


@given(seeds, temperatures)
def test_both_parts_are_divergences_of_the_distributions_by_scipy(seed, temperature):
    student, teacher, labels = draw(seed)
    right, wrong = [], []
    for s, t, y in zip(student.numpy(), teacher.numpy(), labels.tolist(), strict=True):
        q, p = softmax(s / temperature), softmax(t / temperature)
        pairs = [[each[y], 1 - each[y]] for each in (p, q)]
        others = [[value / (1 - each[y]) for c, value in enumerate(each) if c != y] for each in (p, q)]
        right.append(temperature**2 * sum(rel_entr(*pairs)))
        wrong.append(temperature**2 * sum(rel_entr(*others)))
    for part, expected in ((target_kl, right), (non_target_kl, wrong)):
        values = part(student, teacher, labels, temperature, reduction="none")
        assert values.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(seeds, st.floats(0.5, 8.0))
def test_the_plain_divergence_is_one_choice_of_the_weights_by_row(seed, temperature):
    student, teacher, labels = draw(seed)
    target = (teacher / temperature).softmax(-1).gather(1, labels[:, None]).squeeze(1)
    parts = [part(student, teacher, labels, temperature, "none") for part in (target_kl, non_target_kl)]
    expected = kl_divergence(student, teacher, temperature, reduction="none")
    torch.testing.assert_close(parts[0] + (1 - target) * parts[1], expected)


@given(seeds, temperatures, st.floats(-50, 50))
def test_zero_at_equality_and_blind_to_a_constant_in_a_row(seed, temperature, constant):
    student, teacher, labels = draw(seed)
    loss = DecoupledKL(temperature, alpha=0.5, beta=2.0)
    assert float(loss(teacher, teacher, labels=labels)) == pytest.approx(0, abs=1e-12)
    shift = constant * torch.randn(5, 1, generator=torch.Generator().manual_seed(seed)).double()
    value = loss(student, teacher, labels=labels)
    assert float(value) > 0
    torch.testing.assert_close(loss(student + shift, teacher - shift, labels=labels), value)


@given(seeds, st.lists(st.booleans(), min_size=5, max_size=5))
def test_rows_without_a_label_are_left_out(seed, known):
    student, teacher, labels = draw(seed)
    known = torch.tensor(known)
    some = labels.masked_fill(~known, -100)
    student.requires_grad_()
    value = decoupled_kl(student, teacher, some)
    value.backward()
    assert (student.grad[~known] == 0).all()
    if known.any():
        expected = decoupled_kl(student[known], teacher[known], labels[known])
        torch.testing.assert_close(value, expected)
        assert decoupled_kl(student, teacher, some, reduction="none").shape == (int(known.sum()),)
    else:
        assert float(value.detach()) == 0


def test_the_right_class_is_that_of_the_label_and_of_a_mixture_its_largest_share():
    by_label = decoupled_kl(STUDENT, TEACHER, LABELS)
    assert float(decoupled_kl(STUDENT, TEACHER, TEACHER.argmax(1))) != pytest.approx(float(by_label), abs=0.1)
    shares = 0.9 * torch.nn.functional.one_hot(LABELS, 6).double() + 0.1 / 6
    torch.testing.assert_close(decoupled_kl(STUDENT, TEACHER, shares), by_label)


def test_gradients():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: decoupled_kl(z, TEACHER, LABELS), student)
    decoupled_kl(student, teacher, LABELS).backward()
    assert teacher.grad is None
    for scale in (1e3, 1e5):  # a class that is certain, and one that is impossible
        student.grad = None
        decoupled_kl(scale * student, scale * TEACHER, LABELS, 1.0).backward()
        assert student.grad.isfinite().all()


def test_half_precision_is_computed_wider():
    value = decoupled_kl(STUDENT.bfloat16(), TEACHER.bfloat16(), LABELS)
    assert value.dtype == torch.float32
    expected = decoupled_kl(STUDENT.bfloat16().double(), TEACHER.bfloat16().double(), LABELS)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "labels", "told"),
    [
        (STUDENT, TEACHER[:, :5], LABELS, "must have the same shape"),
        (STUDENT, TEACHER, LABELS[:3], "need logits"),
        (STUDENT[:, :1], TEACHER[:, :1], LABELS * 0, "need logits"),
        (STUDENT, TEACHER, LABELS + 3, "the label 8 is outside the 6 classes"),
    ],
)
def test_what_does_not_fit(student, teacher, labels, told):
    with pytest.raises(ValueError, match=told):
        decoupled_kl(student, teacher, labels)


def test_settings():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        DecoupledKL(0.0)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        target_kl(STUDENT, TEACHER, LABELS, 0.0)


def test_a_term_gives_it_the_labels_and_whole_logits():
    objective = Objective({"decoupled": Term(DecoupledKL(), teacher="teacher.logits")})
    values = objective({"logits": STUDENT}, {"teacher": {"logits": TEACHER}}, {"labels": LABELS})
    assert float(values["decoupled"]) == pytest.approx(24.6675034, abs=5e-8)
    assert objective.short_logits() == {}, "the classes keep their places"
