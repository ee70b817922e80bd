"""The enhanced target: what it is at the exponent 1, its gradient, which class it raises, and what it refuses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.losses.divergences import soft_cross_entropy
from kdbench.losses.enhanced_target import EnhancedTarget, enhanced_target

seeds = st.integers(0, 10_000)
exponents = st.floats(0.3, 3.0)
forms = st.sampled_from(["code", "paper"])


def drawn(seed, rows=5, classes=7):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(classes, (rows,), generator=generator)


@given(seeds, st.floats(0.5, 5.0), forms)
def test_at_the_exponent_1_it_is_the_cross_entropy_of_the_soft_targets(seed, temperature, form):
    student, teacher, labels = drawn(seed)
    expected = soft_cross_entropy(student, teacher, temperature)
    torch.testing.assert_close(enhanced_target(student, teacher, labels, 1.0, temperature, form), expected)


@given(seeds, exponents, forms)
def test_the_gradient_of_a_row_is_its_mass_times_q_less_its_weights(seed, exponent, form):
    """The gradient of ``-sum_c w_c log q_c`` is ``W q - w`` with ``W = sum_c w_c``; the weights come from a loop."""
    student, teacher, labels = drawn(seed)
    student.requires_grad_()
    enhanced_target(student, teacher, labels, exponent, form=form).backward()
    p, q = teacher.softmax(-1), student.detach().softmax(-1)
    for row, label in enumerate(labels.tolist()):
        weights = [
            (1 + float(share)) ** exponent - 1
            if place == label
            else float(share) ** (exponent if form == "code" else 1.0)
            for place, share in enumerate(p[row])
        ]
        w = torch.tensor(weights, dtype=torch.float64)
        torch.testing.assert_close(student.grad[row], (w.sum() * q[row] - w) / len(labels))


@given(seeds)
def test_at_the_exponent_1_the_student_is_best_where_it_is_the_teacher(seed):
    student, teacher, labels = drawn(seed)
    same = teacher.clone().requires_grad_()
    value = enhanced_target(same, teacher, labels)
    value.backward()
    torch.testing.assert_close(same.grad, torch.zeros_like(same))
    assert float(enhanced_target(student, teacher, labels)) > float(value.detach())


@given(exponents, forms)
def test_a_teacher_that_is_sure_and_right_gives_the_label_a_weight_of_2_to_the_exponent_less_1(exponent, form):
    teacher = torch.tensor([[1000.0, 0.0, 0.0]], dtype=torch.float64)
    even = torch.zeros(1, 3, dtype=torch.float64)
    value = enhanced_target(even, teacher, torch.tensor([0]), exponent, form=form)
    assert float(value) == pytest.approx((2**exponent - 1) * torch.tensor(3.0).log().item())


@given(seeds, exponents, forms, st.lists(st.floats(-50, 50), min_size=5, max_size=5))
def test_it_does_not_see_what_is_added_to_a_row(seed, exponent, form, shifts):
    student, teacher, labels = drawn(seed)
    shift = torch.tensor(shifts, dtype=torch.float64)[:, None]
    plain = enhanced_target(student, teacher, labels, exponent, form=form)
    torch.testing.assert_close(enhanced_target(student + shift, teacher - shift, labels, exponent, form=form), plain)


def test_of_a_soft_label_the_largest_class_counts():
    student, teacher, labels = drawn(3)
    smooth = torch.nn.functional.one_hot(labels, 7).double() * 0.9 + 0.1 / 7
    expected = enhanced_target(student, teacher, labels, 1.5)
    torch.testing.assert_close(enhanced_target(student, teacher, smooth, 1.5), expected)


def test_a_row_without_a_label_has_no_class_that_is_raised():
    student, teacher, labels = drawn(4)
    labels[2] = -100
    values = enhanced_target(student, teacher, labels, 1.5, reduction="none")
    p, log_q = teacher.softmax(-1), student.log_softmax(-1)
    torch.testing.assert_close(values[2], -(p[2] ** 1.5 * log_q[2]).sum())


def test_the_teacher_gets_no_gradient_and_the_students_is_exact():
    student, teacher, labels = drawn(5)
    student, teacher = student.requires_grad_(), teacher.requires_grad_()
    loss = EnhancedTarget(1.5, 2.0)
    loss(student, teacher, labels=labels).backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, labels=labels), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_no_tail(dtype):
    student = torch.tensor([[60.0, 0.0, -60.0]], dtype=dtype, requires_grad=True)
    teacher, labels = torch.tensor([[-60.0, 0.0, 60.0]], dtype=dtype), torch.tensor([2])
    value = enhanced_target(student, teacher, labels, 1.5)
    value.backward()
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx((2**1.5 - 1) * 120)
    assert student.grad.isfinite().all()


def test_a_class_that_the_student_excludes_costs_nothing_where_it_has_no_weight():
    student = torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.float64)
    assert enhanced_target(student, teacher, torch.tensor([0]), 1.5).isfinite()


def test_weights_of_rows():
    student, teacher, labels = drawn(6)
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    values = enhanced_target(student, teacher, labels, 1.5, reduction="none")
    weighted = EnhancedTarget(1.5)(student, teacher, weights, labels=labels)
    torch.testing.assert_close(weighted, (weights * values).sum() / weights.sum())


def test_what_is_refused():
    student, teacher, labels = drawn(7)
    with pytest.raises(ValueError, match="must have the same shape"):
        enhanced_target(student, teacher[:, :5], labels)
    with pytest.raises(ValueError, match="the label 7 is outside the 7 classes"):
        enhanced_target(student, teacher, labels.clone().fill_(7))
    with pytest.raises(ValueError, match=r"labels of shape \(4,\) do not fit"):
        enhanced_target(student, teacher, labels[:4])
    for exponent in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="exponent of an enhanced target must be positive"):
            EnhancedTarget(exponent)
    with pytest.raises(ValueError, match="form is 'code' or 'paper'"):
        EnhancedTarget(form="official")
    with pytest.raises(ValueError, match="temperature must be positive"):
        EnhancedTarget(temperature=0.0)
