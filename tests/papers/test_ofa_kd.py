"""OFA-KD (arXiv 2310.19444): its numbers, and what it promises."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from kdbench.losses.enhanced_target import EnhancedTarget, enhanced_target
from kdbench.metrics.similarity import linear_cka
from kdbench.models.exits import PatchMerging


def s(shape, a, b, c=1.0):
    return (c * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b)).reshape(shape)


def q(shape, a, b):
    t = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(a * t + 0.013 * t**2 + b).reshape(shape)


STUDENT, TEACHER = s((4, 6), 0.37, 0.1, 3), s((4, 6), 0.53, 0.7, 4)
LABELS = torch.tensor([0, 3, 5, 2])


@pytest.mark.parametrize(
    ("exponent", "temperature", "expected"), [(1.0, 1.0, 3.19870046), (1.5, 1.0, 2.40326426), (0.7, 2.0, 3.21098384)]
)
def test_the_official_loss(exponent, temperature, expected):
    value = EnhancedTarget(exponent, temperature)(STUDENT, TEACHER, labels=LABELS)
    assert float(value) == pytest.approx(expected, abs=1e-8)


def test_its_gradients():
    student = STUDENT.clone().requires_grad_()
    (plain,) = torch.autograd.grad(enhanced_target(student, TEACHER, LABELS), student)
    expected = [-0.0199871669, -0.0679692197, -0.0619515193, 0.0228649722, 0.0677142201, 0.0593287136]
    assert plain[0].tolist() == pytest.approx(expected, abs=1e-10)
    torch.testing.assert_close(plain, (STUDENT.softmax(-1) - TEACHER.softmax(-1)) / 4)
    (raised,) = torch.autograd.grad(enhanced_target(student, TEACHER, LABELS, 1.5), student)
    assert raised[0, [0, 3]].tolist() == pytest.approx([-0.0351635488, 0.0246502535], abs=1e-10)


@pytest.mark.parametrize(("exponent", "expected"), [(1.0, 5.55318947), (1.5, 5.61458926)])
def test_the_papers_formula_with_the_labels(exponent, expected):
    hard = cross_entropy(STUDENT, LABELS)
    assert float(hard) == pytest.approx(2.35448901, abs=1e-8)
    value = hard + enhanced_target(STUDENT, TEACHER, LABELS, exponent, form="paper")
    assert float(value) == pytest.approx(expected, abs=1e-8)


def test_both_forms_agree_at_the_exponent_1_alone():
    values = {
        exponent: [enhanced_target(STUDENT, TEACHER, LABELS, exponent, form=form) for form in ("code", "paper")]
        for exponent in (1.0, 1.5)
    }
    torch.testing.assert_close(*values[1.0])
    assert float(values[1.5][1]) > float(values[1.5][0]) + 0.5


def test_patch_merging():
    merging = PatchMerging(3, 2).double()
    merging.reduction.weight.data = s((2, 12), 0.29, 0.1)
    merged = merging(s((1, 16, 3), 0.41, 0.3))
    assert merged.shape == (1, 4, 2)
    expected = [-1.46641957, 2.26175682, 0.318470093, -1.31581589, 2.25544171, -2.73991885, -1.00053381, 1.90366712]
    assert merged.flatten().tolist() == pytest.approx(expected, abs=1e-8)


def test_alignment():
    assert float(linear_cka(q((10, 4), 0.31, 0.2), q((10, 5), 0.23, 0.5))) == pytest.approx(0.322856633, abs=1e-9)
