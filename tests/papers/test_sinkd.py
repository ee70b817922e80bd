"""Sinkhorn Distance Minimization for Knowledge Distillation (arXiv 2402.17110): its numbers and its geometry."""

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr

from kdbench.losses.divergences import JensenShannon, KLDivergence, SoftCrossEntropy, TotalVariation
from kdbench.losses.language import CrossEntropy
from kdbench.losses.transport import SinkhornDistance
from kdbench.methods.objective import Objective, Term
from kdbench.studies.geometry import divergence_geometry


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


STUDENT, TEACHER = g((4, 3), 0.37, 0, 3), g((4, 3), 0.53, 1, 3)
VALUES = ({"logits": STUDENT}, {"teacher": {"logits": TEACHER}}, {"labels": torch.arange(4) % 3})


def value(loss, values=VALUES):
    return float(Objective({"term": Term(loss, teacher="teacher.logits")})(*values)["term"])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (SinkhornDistance(), 0.827351264),
        (SinkhornDistance(iterations=200), 0.828687042),
        (SinkhornDistance(epsilon=0.05), 0.771133790),
        (SinkhornDistance(log_domain=True), 0.827351264),
        (SoftCrossEntropy(2.0), 1.211758275),
        (KLDivergence(2.0, square_temperature=False), 0.199075989),
        (KLDivergence(2.0, "reverse", square_temperature=False), 0.208626704),
        (JensenShannon(2.0), 0.048829975),
        (TotalVariation(2.0), 0.255785254),
    ],
)
def test_the_terms(loss, expected):
    assert value(loss) == pytest.approx(expected, abs=1e-9)


def test_the_official_scale():
    assert value(SinkhornDistance(scale=0.001)) == pytest.approx(0.000827351264, abs=1e-12)


def test_the_annealed_soft_labels():
    """``T_e = T_0 + (1 - T_0) e / (E - 1)``: from 2 to 1 over 5 epochs."""
    temperatures = [2 + (1 - 2) * epoch / (5 - 1) for epoch in range(5)]
    assert temperatures == [2, 1.75, 1.5, 1.25, 1]
    loss = SoftCrossEntropy(temperatures[0])
    assert value(loss) == pytest.approx(1.211758275, abs=1e-9)
    loss.temperature = temperatures[1]
    assert value(loss) == pytest.approx(1.244171297, abs=1e-9)


def test_the_whole_loss():
    """``(1 - alpha) CE + alpha soft + beta SD`` with alpha 0.9 and beta 0.8; the labels of the rows are 0, 1, 2, 0."""
    objective = Objective(
        {
            "hard": Term(CrossEntropy(), 0.1, labels="labels"),
            "soft": Term(SoftCrossEntropy(2.0), 0.9, teacher="teacher.logits"),
            "transport": Term(SinkhornDistance(scale=0.001), 0.8, teacher="teacher.logits"),
        }
    )
    raw = objective(*VALUES)
    total = sum(objective.terms[name].weight * float(each) for name, each in raw.items())
    expected = 0.1 * 1.537323080 + 0.9 * 1.211758275 + 0.8 * 0.000827351264
    assert total == pytest.approx(expected, abs=3e-9)
    assert objective.compares_rows


def test_the_pairing_is_carried_by_the_soft_labels_alone():
    order = [2, 0, 3, 1]
    permuted = (VALUES[0], {"teacher": {"logits": TEACHER[order]}}, VALUES[2])
    assert value(SinkhornDistance(), permuted) == pytest.approx(0.827351264, abs=1e-9)
    assert value(SoftCrossEntropy(2.0), permuted) != pytest.approx(1.211758275, abs=0.01)


def test_of_a_sequence_real_tokens_alone_are_compared():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    student, teacher = torch.full((2, 4, 3), torch.nan).double(), torch.full((2, 4, 3), torch.nan).double()
    student[mask.bool()], teacher[mask.bool()] = STUDENT, TEACHER
    values = ({"logits": student}, {"teacher": {"logits": teacher}}, {"inputs": {"attention_mask": mask}})
    assert value(SinkhornDistance(), values) == pytest.approx(0.827351264, abs=1e-9)


def test_regression_is_refused():
    values = ({"logits": STUDENT[:, :1]}, {"teacher": {"logits": TEACHER[:, :1]}}, {})
    with pytest.raises(ValueError, match="undefined for regression"):
        value(SinkhornDistance(), values)


# -- the geometry


SEPARATIONS = [0, 2, 4, 8]


def test_far_from_the_teacher_kl_grows_jensen_shannon_is_flat_and_the_distance_still_moves():
    found = divergence_geometry(SEPARATIONS)
    assert found["separation"] == SEPARATIONS
    for name in ("kl", "reverse_kl", "jensen_shannon", "sinkhorn"):
        assert found[name][0] == pytest.approx(0, abs=1e-12)
        assert found[f"{name}_gradient"][0] == pytest.approx(0, abs=1e-12)
        assert found[name] == sorted(found[name])
    far, farther = found["kl"][2], found["kl"][3]
    assert farther > 2 * far > 6, "in proportion to the logits, without bound"
    assert found["kl_gradient"][3] == pytest.approx(math.sqrt(2), rel=0.01), "never smaller than at first"
    assert found["jensen_shannon"][3] == pytest.approx(math.log(2), rel=0.01)
    assert found["jensen_shannon_gradient"][3] < 0.03 * max(found["jensen_shannon_gradient"])
    assert found["sinkhorn"][3] < 2
    assert found["sinkhorn_gradient"][3] > 0.2 * max(found["sinkhorn_gradient"])
    assert found["sinkhorn_gradient"][3] > 10 * found["jensen_shannon_gradient"][3]


def test_most_of_that_is_the_temperature():
    """At equal temperatures the distance's gradient vanishes as that of Jensen-Shannon does."""
    found = divergence_geometry(SEPARATIONS, temperature=1.0, sinkhorn_temperature=1.0)
    assert found["sinkhorn_gradient"][3] < 0.05 * max(found["sinkhorn_gradient"])
    assert found["sinkhorn_gradient"][3] < 3 * found["jensen_shannon_gradient"][3]
    found = divergence_geometry(SEPARATIONS, temperature=2.0, sinkhorn_temperature=2.0)
    assert found["sinkhorn_gradient"][3] < found["jensen_shannon_gradient"][3]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_geometry_is_that_of_the_equations(temperature):
    """By scipy, and by differences of the values, at separations of which nothing else is known."""
    step = 1e-6
    separations = [0.7, 3.3]
    found = divergence_geometry(separations, temperature, temperature)
    for place, separation in enumerate(separations):
        teacher = torch.zeros(8, dtype=torch.float64)
        teacher[0] = separation
        p = (teacher / temperature).softmax(0).numpy()

        def of(student, p=p):
            q = (student / temperature).softmax(0).numpy()
            return rel_entr(p, q).sum(), rel_entr(q, p).sum(), jensenshannon(p, q) ** 2, abs(p - q).sum()

        student = teacher.roll(4)
        values = of(student)
        gradients = torch.tensor(
            [
                [(up - down) / (2 * step) for up, down in zip(of(student + d), of(student - d), strict=True)]
                for d in step * torch.eye(8, dtype=torch.float64)
            ]
        ).norm(dim=0)
        for column, name in enumerate(("kl", "reverse_kl", "jensen_shannon")):
            assert found[name][place] == pytest.approx(values[column], rel=1e-6)
            assert found[f"{name}_gradient"][place] == pytest.approx(float(gradients[column]), rel=1e-5)
        # every student row is as far from every teacher row, so that the plan is flat and the mean distance is that of one
        assert found["sinkhorn"][place] == pytest.approx(values[3], rel=1e-9)


def test_the_geometry_needs_temperatures_that_are_positive():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        divergence_geometry([1.0], sinkhorn_temperature=0.0)
