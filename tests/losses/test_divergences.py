"""The cards' oracles (official code, float64) and the invariants of the divergences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.losses import divergences as d
from kdbench.losses.hints import cosine_distance, mean_squared_error, normalised_mse
from kdbench.losses.language import CrossEntropy, masked_token_cross_entropy
from kdbench.losses.regression import CosineRegression
from kdbench.losses.rows import select_rows


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


STUDENT, TEACHER = g((4, 3), 0.37, 0, 3), g((4, 3), 0.53, 1, 3)
LABELS = torch.arange(4) % 3
seeds = st.integers(0, 10_000)


def logits(seed, rows=5, classes=7, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (d.kl_divergence(STUDENT, TEACHER, 2.0, square_temperature=False), 0.199075989),
        (d.kl_divergence(STUDENT, TEACHER, 2.0), 0.796303955),
        (d.kl_divergence(STUDENT, TEACHER, 2.0, "reverse", square_temperature=False), 0.208626704),
        (d.jensen_shannon(STUDENT, TEACHER, 2.0), 0.048829975),
        (d.total_variation(STUDENT, TEACHER, 2.0), 0.255785254),
        (d.soft_cross_entropy(STUDENT, TEACHER, 2.0), 1.211758275),
        (d.soft_cross_entropy(STUDENT, TEACHER, 1.75), 1.244171297),
        (d.soft_cross_entropy(STUDENT, TEACHER, 2.0, class_mean=True), 0.403919425),
        (masked_token_cross_entropy(STUDENT, LABELS), 1.537323080),
        (0.7 * d.kl_divergence(STUDENT, TEACHER, 2.0) + 0.3 * masked_token_cross_entropy(STUDENT, LABELS), 1.018609692),
        (d.kl_divergence(STUDENT, TEACHER, 2.0) / 3, 0.265434652),
        (
            0.7 * d.kl_divergence(STUDENT, TEACHER, 2.0) / 3 + 0.3 * masked_token_cross_entropy(STUDENT, LABELS),
            0.647001180,
        ),
    ],
)
def test_oracles_of_the_baselines(value, expected):
    assert float(value) == pytest.approx(expected, abs=2e-9)


def test_patient_loss_oracle():
    teacher, student = g((2, 3, 5), 0.53, 1), g((2, 3, 5), 0.37, 0)
    value = normalised_mse(student.flatten(0, 1), teacher.flatten(0, 1))
    assert float(value) == pytest.approx(0.514136395, abs=2e-9)


def test_triple_loss_oracle():
    shape = (2, 4)
    z_s, z_t = g((*shape, 5), 0.37, 0, 3), g((*shape, 5), 0.53, 1, 3)
    h_s, h_t = g((*shape, 6), 0.29, 2, 1), g((*shape, 6), 0.41, 3, 1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    labels = torch.full(shape, -100)
    labels[0, 1], labels[1, 2] = 2, 4
    soft = d.KLDivergence(2.0)(select_rows(z_s, mask), select_rows(z_t, mask))
    masked = CrossEntropy()(z_s, labels)
    cosine = cosine_distance(select_rows(h_s, mask), select_rows(h_t, mask))
    assert float(soft) == pytest.approx(1.48939030, abs=1e-8)
    assert float(masked) == pytest.approx(1.23397691, abs=1e-8)
    assert float(cosine) == pytest.approx(1.28272519, abs=1e-8)
    assert float(5 * soft + 2 * masked + cosine) == pytest.approx(11.19763052, abs=1e-8)


def test_two_teachers_oracle():
    student, teachers = g((3, 5), 0.37, 0, 3), [g((3, 5), 0.53, 1, 3), g((3, 5), 0.71, 2, 3)]
    for combine, expected in (("mean_probabilities", 1.49183410), ("mean_logits", 1.66546156)):
        mixed = d.combine_logits(teachers, combine, 2.0)
        assert float(d.kl_divergence(student, mixed, 2.0)) == pytest.approx(expected, abs=1e-8)
    losses = sum(0.5 * d.kl_divergence(student, teacher, 2.0) for teacher in teachers)
    assert float(losses) == pytest.approx(1.92750831, abs=1e-8)


@given(seeds, st.floats(0.5, 8.0))
def test_mean_probabilities_and_mean_losses_have_one_gradient(seed, temperature):
    (z, first), (second, _) = logits(seed), logits(seed + 1)
    gradients = []
    for form in ("probabilities", "losses"):
        student = z.clone().requires_grad_()
        if form == "probabilities":
            mixed = d.combine_logits([first, second], "mean_probabilities", temperature)
            loss = d.kl_divergence(student, mixed, temperature)
        else:
            loss = sum(0.5 * d.kl_divergence(student, each, temperature) for each in (first, second))
        gradients.append(torch.autograd.grad(loss, student)[0])
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=1e-7)


LOSSES = [
    d.KLDivergence(2.0),
    d.KLDivergence(3.0, "reverse"),
    d.JensenShannon(2.0),
    d.JensenShannon(1.0, beta=0.1),
    d.TotalVariation(2.0),
]


@pytest.mark.parametrize("loss", [*LOSSES, d.LogitMSE()])
@given(seed=seeds)
def test_zero_exactly_at_equality_and_no_gradient_for_the_teacher(loss, seed):
    student, teacher = logits(seed)
    teacher.requires_grad_()
    assert float(loss(student, student)) == pytest.approx(0, abs=1e-9)
    value = loss(student.requires_grad_(), teacher)
    value.backward()
    assert float(value.detach()) > 1e-6
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=seeds, shift=st.floats(-50, 50))
def test_a_shift_of_all_logits_of_a_row_changes_nothing(loss, seed, shift):
    student, teacher = logits(seed)
    assert float(loss(student + shift, teacher)) == pytest.approx(float(loss(student, teacher)), abs=1e-8)


@given(seeds)
def test_bounds(seed):
    student, teacher = logits(seed, scale=20.0)
    js = d.jensen_shannon(student, teacher)
    tv = d.total_variation(student, teacher, reduction="none")
    assert float(js) <= math.log(2) + 1e-12
    assert float(js) == pytest.approx(float(d.jensen_shannon(teacher, student)), abs=1e-10)
    assert float(tv.max()) <= 1 + 1e-12
    assert (tv.square() <= d.kl_divergence(student, teacher, reduction="none") / 2 + 1e-9).all(), "Pinsker"


@given(seeds)
def test_high_temperature_gives_the_squared_difference_of_centred_logits(seed):
    student, teacher = logits(seed)
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    expected = centred.square().sum(-1).mean() / (2 * student.shape[-1])
    assert float(d.kl_divergence(student, teacher, 3000.0)) == pytest.approx(float(expected), rel=5e-3)


def test_folding_sums_probabilities_and_a_certain_teacher_costs_no_nan():
    z = g((3, 5), 0.37, 0, 3)
    groups = torch.tensor([0, 1, 0, -1, 2])
    folded = (d.fold_logits(z, groups, 4, 2.0) / 2.0).softmax(-1)
    q = (z / 2.0).softmax(-1)
    expected = torch.stack([q[:, 0] + q[:, 2], q[:, 1], q[:, 4], torch.zeros(3)], 1).double()
    torch.testing.assert_close(folded, expected / expected.sum(1, keepdim=True))
    student = z.clone().requires_grad_()
    teacher = d.fold_logits(g((3, 5), 0.53, 1, 3), groups, 4, 2.0)
    loss = d.kl_divergence(d.fold_logits(student, groups, 4, 2.0), teacher, 2.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    assert student.grad[:, 3].abs().sum() == 0, "a dropped class has no part in it"


def test_folding_by_the_identity_changes_nothing():
    torch.testing.assert_close(d.fold_logits(STUDENT, torch.arange(3), 3, 2.0).softmax(-1), STUDENT.softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_float32_losses(dtype):
    assert d.kl_divergence(STUDENT.to(dtype), TEACHER.to(dtype), 2.0).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        d.KLDivergence(temperature)


def test_row_weights_and_empty_rows():
    loss = d.KLDivergence(2.0)
    each = d.kl_divergence(STUDENT, TEACHER, 2.0, reduction="none")
    weights = torch.tensor([1.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    assert float(loss(STUDENT, TEACHER, weights)) == pytest.approx(float((each[0] + 3 * each[2]) / 4))
    with pytest.raises(ValueError, match="sum to nothing"):
        loss(STUDENT, TEACHER, torch.zeros(4))
    nothing = torch.zeros(0, 3, requires_grad=True)
    loss(nothing, torch.zeros(0, 3)).backward()
    assert nothing.grad is not None


def test_a_label_outside_the_classes_is_named():
    with pytest.raises(ValueError, match="label 7 is outside the 3 classes"):
        CrossEntropy()(STUDENT, torch.tensor([0, 1, 7, -100]))
    assert float(CrossEntropy()(STUDENT, torch.full((4,), -100))) == 0


def test_hints_and_regression():
    rows = g((4, 6), 0.29, 2)
    assert float(cosine_distance(rows, 3 * rows)) == pytest.approx(0, abs=1e-12)
    assert float(mean_squared_error(rows, 2 * rows, half=True)) == pytest.approx(float(rows.square().mean() / 2))
    assert float(normalised_mse(rows, 7 * rows)) == pytest.approx(0, abs=1e-12)
    loss = CosineRegression(5.0)([rows, rows], torch.tensor([5.0, 5.0, 5.0, 0.0], dtype=torch.float64))
    assert float(loss) == pytest.approx(0.25)
