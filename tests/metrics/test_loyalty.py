"""Loyalty against the published vectors, scipy, and the properties that its definition promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import pearsonr, spearmanr

from kdbench.metrics.loyalty import (
    LabelLoyalty,
    ProbabilityLoyalty,
    RegressionLoyalty,
    label_loyalty,
    probability_loyalty,
)


def waves(*shape, step, phase, scale):
    return (scale * torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value(metric, *arguments, **keywords):
    metric.update(*arguments, **keywords)
    return metric.compute()


def rel(expected):
    return pytest.approx(expected, abs=5e-9)


TEACHER, STUDENT = waves(6, 3, step=0.37, phase=0, scale=2), waves(6, 3, step=0.53, phase=1, scale=2)
LENGTHS = torch.tensor([5, 2])
MASK = torch.arange(5) < LENGTHS[:, None]
TEACHER_WORDS = waves(2, 5, 4, step=0.37, phase=0, scale=2.5)
STUDENT_WORDS = waves(2, 5, 4, step=0.53, phase=1, scale=2.5)
finite = st.floats(-30, 30, allow_nan=False)
rows = st.integers(2, 5).flatmap(lambda width: st.lists(st.lists(finite, min_size=width, max_size=width), min_size=2))


def test_published_classification_vectors():
    assert value(LabelLoyalty(), STUDENT, TEACHER).item() == rel(0.16666667)
    assert value(ProbabilityLoyalty(), STUDENT, TEACHER).item() == rel(0.73809497)
    assert value(ProbabilityLoyalty("2"), STUDENT, TEACHER).item() == rel(0.68542000)
    assert probability_loyalty(STUDENT, TEACHER)[0].item() == rel(0.81846025)


@pytest.mark.parametrize(("log_base", "expected"), [("e", 0.88534520), ("2", 0.86228555)])
def test_vectors_of_the_official_readme(log_base, expected):
    first, second = torch.tensor([[0.75, 0.2, 0.05]]).double().log(), torch.tensor([[0.8, 0.1, 0.1]]).double().log()
    assert probability_loyalty(first, second, log_base).item() == rel(expected)


def test_label_loyalty_of_the_official_readme():
    predictions = torch.eye(4)[[0, 2, 1, 3]]
    assert value(LabelLoyalty(), predictions, torch.eye(4)).item() == 0.5


def test_published_tagging_vectors():
    assert value(LabelLoyalty(), STUDENT_WORDS, TEACHER_WORDS, mask=MASK).item() == rel(0.14285714)
    assert value(ProbabilityLoyalty(), STUDENT_WORDS, TEACHER_WORDS, mask=MASK).item() == rel(0.61518997)
    per_sentence = [
        probability_loyalty(s[m], t[m]).mean() for s, t, m in zip(STUDENT_WORDS, TEACHER_WORDS, MASK, strict=True)
    ]
    assert torch.stack(per_sentence).mean().item() == rel(0.63379318)
    everything = probability_loyalty(STUDENT_WORDS.flatten(0, 1), TEACHER_WORDS.flatten(0, 1))
    assert everything.mean().item() == rel(0.67038779)


@pytest.mark.parametrize("metric", [LabelLoyalty(), ProbabilityLoyalty()])
@pytest.mark.parametrize("padding", [1e4, math.inf, math.nan])
def test_padding_has_no_say(metric, padding):
    metric.reset()
    expected = value(metric, STUDENT_WORDS, TEACHER_WORDS, mask=MASK)
    metric.reset()
    student = STUDENT_WORDS.masked_fill(~MASK[..., None], padding)
    assert torch.equal(value(metric, student, TEACHER_WORDS, mask=MASK.long()), expected)


def test_published_regression_vectors():
    n = torch.arange(8, dtype=torch.float64)
    teacher, student = 2.5 + 2.5 * torch.sin(0.37 * n), 2.5 + 2 * torch.sin(0.40 * n + 0.1)
    result = value(RegressionLoyalty(range=5.0), student, teacher)
    assert result["pearson"].item() == rel(0.89657177)
    assert result["spearman"].item() == rel(0.92857143)
    assert result["one_minus_mae"].item() == rel(0.91262753)


@given(rows, st.sampled_from(["e", "2"]))
@settings(deadline=None, max_examples=60)
def test_probability_loyalty_equals_scipy_and_is_symmetric(values, log_base):
    student = torch.tensor(values, dtype=torch.float64)
    teacher = student.flip(0)
    ours = probability_loyalty(student, teacher, log_base)
    base = {"e": math.e, "2": 2}[log_base]
    distance = jensenshannon(student.softmax(-1).numpy(), teacher.softmax(-1).numpy(), axis=-1, base=base)
    # scipy's own value is the root of a rounding error where both are nearly equal.
    np.testing.assert_allclose(ours.numpy(), 1 - np.nan_to_num(distance), atol=3e-8)
    assert torch.equal(ours, probability_loyalty(teacher, student, log_base))
    lowest = 1 - math.sqrt(math.log(2) / math.log(base))
    assert ((ours >= lowest - 1e-12) & (ours <= 1)).all()


@given(rows, st.floats(-50, 50))
@settings(deadline=None, max_examples=60)
def test_loyalty_is_one_exactly_where_the_distributions_are_equal(values, shift):
    logits = torch.tensor(values, dtype=torch.float64)
    assert torch.equal(probability_loyalty(logits, logits.clone()), torch.ones(len(logits), dtype=torch.float64))
    assert torch.equal(label_loyalty(logits, logits.clone()), torch.ones(len(logits), dtype=torch.float64))
    assert probability_loyalty(logits + shift, logits).numpy() == pytest.approx(1, abs=1e-12)
    mild = logits.clamp(-5, 5)  # so that a step of 1e-3 moves more than the last digit of 1
    step = torch.nn.functional.one_hot(mild.argmax(-1), mild.shape[1]) * 1e-3
    assert (probability_loyalty(mild - step, mild) < 1).all()


def test_near_equal_distributions_keep_their_digits():
    """To second order JS = sum (p - q)^2 / (8 p). Here p = 1/2 and p - q = h/4, so that sqrt(JS) = h / sqrt(32)."""
    step = 1e-9
    distance = 1 - probability_loyalty(torch.tensor([[step, 0.0]]).double(), torch.zeros(1, 2).double())
    assert distance.item() == pytest.approx(step / math.sqrt(32), rel=1e-6)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_disjoint_supports(left, right, seed):
    student, teacher = normal(3, left + right, seed=seed), normal(3, left + right, seed=seed + 1)
    student[:, :left] = -math.inf
    teacher[:, left:] = -math.inf
    assert probability_loyalty(student, teacher).numpy() == pytest.approx(0.16744539, abs=5e-9)
    assert probability_loyalty(student, teacher, "2").numpy() == pytest.approx(0, abs=1e-12)


def test_ties_go_to_the_lowest_class_in_both():
    student, teacher = (
        torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]]),
        torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
    )
    assert label_loyalty(student, teacher).tolist() == [1.0, 0.0]


def test_float32_and_bfloat16_logits_are_compared_in_float64():
    student, teacher = STUDENT.bfloat16(), TEACHER.bfloat16()
    expected = probability_loyalty(student.double(), teacher.double())
    assert torch.equal(probability_loyalty(student, teacher), expected)
    assert expected.dtype == torch.float64


def test_a_row_of_nan_never_looks_loyal():
    broken = torch.full((2, 3), math.nan)
    assert value(LabelLoyalty(), broken, broken).isnan()
    assert value(ProbabilityLoyalty(), broken, broken).isnan()


def test_a_cast_of_the_module_does_not_coarsen_the_sums():
    student, teacher = normal(1000, 3), normal(1000, 3, seed=1)
    metric = ProbabilityLoyalty().to(torch.bfloat16)
    for part in zip(student.split(1), teacher.split(1), strict=True):
        metric.update(*part)
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == pytest.approx(probability_loyalty(student, teacher).mean().item(), rel=1e-12)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5))
@settings(deadline=None, max_examples=30)
def test_batches_and_merged_states_equal_one_call(sizes):
    count = sum(sizes)
    student, teacher = normal(count, 4), normal(count, 4, seed=1)
    parts = list(zip(student.split(sizes), teacher.split(sizes), strict=True))
    for make in (LabelLoyalty, ProbabilityLoyalty):
        batched, merged = make(), make()
        for part in parts:
            batched.update(*part)
            other = make()
            other.update(*part)
            merged.merge_state(other)
        merged._update_count = 1  # merge_state does not count as an update, about which compute would warn
        at_once = value(make(), student, teacher).item()
        assert batched.compute().item() == pytest.approx(at_once, rel=1e-14, nan_ok=True)
        assert merged.compute().item() == pytest.approx(at_once, rel=1e-14, nan_ok=True)


def test_no_rows_have_no_loyalty():
    assert value(LabelLoyalty(), torch.zeros(0, 3), torch.zeros(0, 3)).isnan()


predictions = st.lists(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), min_size=3, max_size=20).filter(
    lambda pairs: len({a for a, _ in pairs}) > 1 and len({b for _, b in pairs}) > 1
)


@given(predictions)
@settings(deadline=None, max_examples=60)
def test_regression_loyalty_equals_scipy_with_ties(pairs):
    student, teacher = torch.tensor(pairs, dtype=torch.float32).T
    result = value(RegressionLoyalty(range=12.0), student, teacher)
    assert result["pearson"].item() == pytest.approx(pearsonr(student.numpy(), teacher.numpy())[0], abs=1e-6)
    assert result["pearson"].item() == pytest.approx(np.corrcoef(student.double(), teacher.double())[0, 1], abs=1e-12)
    assert result["spearman"].item() == pytest.approx(spearmanr(student.numpy(), teacher.numpy())[0], abs=1e-12)
    assert result["one_minus_mae"].item() == pytest.approx(1 - (student - teacher).abs().mean().item() / 12, abs=1e-6)


@given(predictions, st.floats(1e-3, 1e3), st.floats(-1e3, 1e3), st.booleans())
@settings(deadline=None, max_examples=60)
def test_correlations_ignore_positive_affine_maps(pairs, scale, offset, of_student):
    student, teacher = torch.tensor(pairs, dtype=torch.float64).T
    before = value(RegressionLoyalty(range=1.0), student, teacher)
    mapped = (scale * student + offset, teacher) if of_student else (student, scale * teacher + offset)
    after = value(RegressionLoyalty(range=1.0), *mapped)
    for name in ("pearson", "spearman"):
        assert after[name].item() == pytest.approx(before[name].item(), abs=1e-8)


@pytest.mark.parametrize("student", [[0.1, 0.1, 0.1], [2.0], []])
def test_undefined_correlations_are_nan_with_a_warning(student):
    with pytest.warns(UserWarning, match="undefined"):
        result = value(RegressionLoyalty(range=5.0), torch.tensor(student), torch.arange(float(len(student))))
    assert result["pearson"].isnan()
    assert result["spearman"].isnan()
    assert result["one_minus_mae"].isnan() == (not student)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: label_loyalty(torch.zeros(2, 3), torch.zeros(2, 4)),
        lambda: probability_loyalty(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)),
        lambda: probability_loyalty(torch.zeros(2, 3), torch.zeros(2, 3), "10"),
        lambda: ProbabilityLoyalty("10"),
        lambda: LabelLoyalty().update(STUDENT_WORDS, TEACHER_WORDS, MASK[:1]),
        lambda: RegressionLoyalty(range=0.0),
        lambda: RegressionLoyalty(range=math.nan),
        lambda: RegressionLoyalty(range=5.0).update(torch.zeros(3), torch.zeros(1)),
        lambda: RegressionLoyalty(range=5.0).update(torch.zeros(3, 1), torch.zeros(3, 1)),
    ],
)
def test_wrong_use_is_named(wrong):
    with pytest.raises(ValueError, match=r"Expected|log_base|range"):
        wrong()
