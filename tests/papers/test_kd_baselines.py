"""The losses that papers on distilling text encoders compare with: their numbers and what each promises."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdbench.losses.divergences import (
    JensenShannon,
    KLDivergence,
    LogitMSE,
    SoftCrossEntropy,
    TotalVariation,
    kl_divergence,
)
from kdbench.losses.hints import CosineDistance, LayersMSE, MeanSquaredError, NormalisedMSE
from kdbench.losses.language import CrossEntropy
from kdbench.losses.projection import Projection
from kdbench.losses.relations import AttentionMapMSE, map_mse
from kdbench.losses.similarity import ContextualKnowledge, MultiGranularity, contextual_knowledge, multi_granularity
from kdbench.methods.objective import Objective, Term
from kdbench.models.layers import layer_map

seeds = st.integers(0, 10_000)


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


def draw(seed, *shape, scale=2.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = g((4, 3), 0.37, 0, 3), g((4, 3), 0.53, 1, 3)
LABELS = torch.arange(4) % 3


# ---- oracles ----


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (KLDivergence(2.0, square_temperature=False), 0.199075989),
        (KLDivergence(2.0), 0.796303955),
        (KLDivergence(2.0, "reverse", square_temperature=False), 0.208626704),
        (JensenShannon(2.0), 0.048829975),
        (TotalVariation(2.0), 0.255785254),
        (SoftCrossEntropy(2.0), 1.211758275),
        (SoftCrossEntropy(2.0, class_mean=True), 0.403919425),
    ],
)
def test_losses_of_logits(loss, expected):
    assert float(loss(STUDENT, TEACHER)) == pytest.approx(expected, abs=1e-9)


# PKD's code takes the mean over rows and classes, which is a third of the divergence, and so of its weight.
@pytest.mark.parametrize(("classes", "soft", "total"), [(1, 0.796303955, 1.018609692), (3, 0.265434652, 0.647001180)])
def test_the_totals_of_hinton_and_of_pkds_code(classes, soft, total):
    objective = Objective(
        {
            "soft": Term(KLDivergence(2.0), 0.7 / classes, teacher="teacher.logits"),
            "hard": Term(CrossEntropy(), 0.3, labels="labels"),
        }
    )
    terms = objective({"logits": STUDENT}, {"teacher": {"logits": TEACHER}}, {"labels": LABELS})
    assert float(terms["soft"] / classes) == pytest.approx(soft, abs=1e-9)
    assert float(terms["hard"]) == pytest.approx(1.537323080, abs=1e-9)
    weighted = sum(objective.terms[name].weight * value for name, value in terms.items())
    assert float(weighted) == pytest.approx(total, abs=1e-9)


def test_the_patient_loss():
    teacher, student = g((2, 3, 5), 0.53, 1), g((2, 3, 5), 0.37, 0)
    assert float(NormalisedMSE()(student.flatten(0, 1), teacher.flatten(0, 1))) == pytest.approx(0.514136395, abs=1e-9)
    layers = [NormalisedMSE()(student[:, i], teacher[:, i]) for i in range(3)]
    assert float(sum(layers) / 3) == pytest.approx(0.514136395, abs=1e-9)


def test_tinybert():
    mask = torch.ones(2, 3)
    scores = map_mse(g((2, 2, 3, 3), 0.37, 0, 2), g((2, 2, 3, 3), 0.53, 1, 2), mask, "scores")
    assert float(scores) == pytest.approx(4.251050176, abs=1e-9)
    hidden = LayersMSE(project=True)
    hidden.load_state_dict({"projections.0.weight": g((4, 6), 0.19, 0.5, 0.3).T})
    value = hidden([g((2, 3, 4), 0.29, 2)], [g((2, 3, 6), 0.41, 3)], mask)
    assert float(value.detach()) == pytest.approx(0.602197940, abs=1e-9)


def contextual_states():
    teacher, student = g((2, 2, 5, 8), 0.37, 0).unbind(1), g((2, 2, 5, 6), 0.53, 1).unbind(1)
    return student, teacher, torch.arange(5) < torch.tensor([5, 3])[:, None]


@pytest.mark.parametrize(("error", "expected"), [("l1", 0.034851733), ("l2", 0.005421744), ("smooth_l1", 0.002710872)])
def test_the_angles_of_contextual_knowledge(error, expected):
    for window in (None, 21):
        value = contextual_knowledge(*contextual_states(), 0, 1, 0, 0, window=window, error=error)
        assert float(value) == pytest.approx(expected, abs=1e-9)


def test_the_distances_of_contextual_knowledge():
    value = contextual_knowledge(*contextual_states(), 1, 0, 0, 0)
    assert float(value) == pytest.approx(0.002835097, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multi_granularity(dtype):
    student, teacher = (each.to(dtype).unbind(1) for each in (g((2, 4, 6, 8), 0.37, 0), g((2, 4, 6, 8), 0.53, 1)))
    mask = torch.arange(6) < torch.tensor([6, 4])[:, None]
    value = multi_granularity(student, teacher, mask, heads=2, token_layers=2, salient=3, neighbours=3)
    assert float(value) == pytest.approx(3.612439, abs=1e-6)


# ---- invariants ----

LOGITS = [
    KLDivergence(2.0),
    KLDivergence(2.0, "reverse"),
    JensenShannon(2.0),
    TotalVariation(2.0),
    LogitMSE(),
    LogitMSE("sum"),
]
STATES = [CosineDistance(), MeanSquaredError(), MeanSquaredError(half=True), NormalisedMSE()]
LAYERS = [
    AttentionMapMSE(2),
    AttentionMapMSE(2, "scores"),
    LayersMSE(),
    ContextualKnowledge(),
    ContextualKnowledge(window=3, error="l2"),
    MultiGranularity(2, 1, 3, 3),
]


def layers(seed, student=8, teacher=8):
    mask = torch.arange(6) < torch.tensor([6, 4])[:, None]
    return draw(seed, 4, 2, 6, student).unbind(0), draw(seed + 1, 4, 2, 6, teacher).unbind(0), mask


@pytest.mark.parametrize("loss", [*LOGITS, *STATES])
@given(seed=seeds)
def test_rows_zero_at_equality(loss, seed):
    teacher = draw(seed, 5, 7)
    assert float(loss(teacher.clone(), teacher)) == pytest.approx(0, abs=1e-12)
    assert float(loss(draw(seed + 1, 5, 7), teacher)) > 1e-6


@pytest.mark.parametrize("loss", LAYERS)
@given(seed=seeds)
def test_layers_zero_at_equality(loss, seed):
    student, teacher, mask = layers(seed)
    assert float(loss([each.clone() for each in teacher], teacher, mask)) == pytest.approx(0, abs=1e-12)
    assert float(loss(student, teacher, mask)) > 1e-6


@given(seeds)
def test_soft_cross_entropy_is_the_divergence_and_the_teachers_entropy(seed):
    student, teacher = draw(seed, 5, 7), draw(seed + 1, 5, 7)
    entropy = torch.distributions.Categorical(logits=teacher / 2).entropy().mean()
    torch.testing.assert_close(SoftCrossEntropy(2.0)(teacher, teacher), entropy)
    divergence = KLDivergence(2.0, square_temperature=False)(student, teacher)
    torch.testing.assert_close(SoftCrossEntropy(2.0)(student, teacher), divergence + entropy)


@pytest.mark.parametrize("loss", [*LOGITS[:4], SoftCrossEntropy(2.0)])
@given(seed=seeds, shift=st.floats(-30, 30))
def test_a_shift_of_a_rows_logits_is_seen_by_their_squared_error_alone(loss, seed, shift):
    student, teacher = draw(seed, 5, 7), draw(seed + 1, 5, 7)
    moved = student + torch.tensor([0.0, shift, 0.0, 0.0, 0.0])[:, None]
    assert float(loss(moved, teacher)) == pytest.approx(float(loss(student, teacher)), abs=1e-10)
    assert float(LogitMSE()(teacher + 2, teacher)) == pytest.approx(4)


@given(seeds, st.floats(0.1, 20))
def test_bounds_and_symmetry(seed, scale):
    student, teacher = draw(seed, 5, 7, scale=scale), draw(seed + 1, 5, 7, scale=scale)
    js, tvd, kl = (loss.per_row(student, teacher) for loss in (JensenShannon(), TotalVariation(), KLDivergence()))
    torch.testing.assert_close(js, JensenShannon().per_row(teacher, student))
    assert js.max() <= math.log(2) + 1e-12
    assert tvd.max() <= 1 + 1e-12
    assert (tvd.square() <= kl / 2 + 1e-12).all(), "Pinsker"


@given(seeds)
def test_a_high_temperature_compares_centred_logits(seed):
    student, teacher = draw(seed, 5, 7), draw(seed + 1, 5, 7)
    centred = [each - each.mean(-1, keepdim=True) for each in (student, teacher)]
    expected = (centred[0] - centred[1]).square().sum(-1).mean() / (2 * 7)
    assert float(kl_divergence(student, teacher, 1e5)) == pytest.approx(float(expected), rel=1e-3)


@given(seeds, st.floats(0.01, 100))
def test_the_patient_loss_does_not_see_the_scale_of_a_layer(seed, scale):
    student, teacher = draw(seed, 5, 7), draw(seed + 1, 5, 7)
    torch.testing.assert_close(NormalisedMSE()(scale * student, teacher), NormalisedMSE()(student, teacher))


@pytest.mark.parametrize("loss", [ContextualKnowledge(0, 1, 0, 1), MultiGranularity(1, 0)])
@given(seed=seeds, scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_angles_do_not_see_translation_rotation_and_scaling(loss, seed, scale, shift):
    student, teacher, mask = layers(seed, 8, 12)
    rotation = torch.linalg.qr(draw(seed + 2, 8, 8)).Q
    moved = [scale * each @ rotation + shift for each in student]
    torch.testing.assert_close(loss(moved, teacher, mask), loss(student, teacher, mask), rtol=1e-6, atol=1e-9)


def test_the_layer_map_of_tinybert():
    blocks = [1 + layer for layer in layer_map(12, 4, "uniform")]
    assert blocks == [3, 6, 9, 12]
    assert [0, *blocks] == [0, 3, 6, 9, 12], "with the embedding layer"


@pytest.mark.parametrize("loss", LAYERS)
@given(seed=seeds, value=st.floats(-1e3, 1e3))
def test_padding_changes_nothing(loss, seed, value):
    student, teacher, mask = layers(seed)
    changed = [[each.masked_fill(~mask[..., None], value) for each in side] for side in (student, teacher)]
    torch.testing.assert_close(loss(*changed, mask), loss(student, teacher, mask))


def test_the_regressor_of_hints_and_the_map_of_tinybert_learn_and_the_teacher_does_not():
    student, teacher, mask = layers(0, 8, 12)
    student, teacher = ([each.clone().requires_grad_() for each in side] for side in (student, teacher))
    losses = nn.ModuleList([MeanSquaredError(half=True, project=True), LayersMSE(project=True)])
    (losses[0](student[0][mask], teacher[0][mask]) + losses[1](student, teacher, mask)).backward()
    maps = [each for each in losses.modules() if isinstance(each, Projection)]
    assert len(maps) == 2
    assert all(each.weight.grad.abs().sum() > 0 for each in maps)
    assert all(each.grad.abs().sum() > 0 for each in student)
    assert all(each.grad is None for each in teacher)


@pytest.mark.parametrize("loss", [*LAYERS, *LOGITS, *STATES])
def test_no_loss_gives_the_teacher_a_gradient(loss):
    student, teacher, mask = layers(0)
    student, teacher = ([each.clone().requires_grad_() for each in side] for side in (student, teacher))
    rows = getattr(loss, "takes_rows", False)
    (loss(student[0][mask], teacher[0][mask]) if rows else loss(student, teacher, mask)).backward()
    assert student[0].grad.abs().sum() > 0
    assert all(each.grad is None for each in teacher)
