"""The geometry of points, tokens, layers and texts: oracles, loops written from the equations, and what they obey."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import softmax
from torch.nn import functional

from kdbench.losses import relations
from kdbench.losses import similarity as s

seeds = st.integers(0, 10_000)
errors = st.sampled_from(["l1", "l2", "smooth_l1"])
TORCHS = {"l1": functional.l1_loss, "l2": functional.mse_loss, "smooth_l1": functional.smooth_l1_loss}


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


def points(seed, *shape, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masks(*lengths, size=6):
    return torch.arange(size) < torch.tensor(lengths)[:, None]


def cosine(arm, other):
    size = np.linalg.norm(arm) * np.linalg.norm(other)
    return arm @ other / size if size else 0.0


def mean_error(pairs, error):
    ours, theirs = (torch.tensor(each, dtype=torch.float64) for each in zip(*pairs, strict=True))
    return float(TORCHS[error](ours, theirs))


def slow_distances(groups, squared, error):
    pairs = []
    for group in groups:
        relative = []
        for each in group:
            values = cdist(each, each, "sqeuclidean" if squared else "euclidean")
            relative.append(values / values[values > 0].mean())
        pairs += zip(*(each.flatten() for each in relative), strict=True)
    return mean_error(pairs, error)


def slow_angles(groups, error, window=None):
    pairs = []
    for group in groups:
        size = len(group[0])
        reach = size if window is None else window // 2
        for i in range(size):
            near = [j for j in range(size) if abs(i - j) <= reach]
            for j, k in itertools.product(near, near):
                pairs.append([cosine(each[j] - each[i], each[k] - each[i]) for each in group])
    return mean_error(pairs, error)


# -- oracles and loops


def test_oracles_of_vectors():
    student, teacher = g((4, 6), 0.31, 0.2), g((4, 8), 0.23, 0.5)
    assert float(s.distance_relation(student, teacher)) == pytest.approx(0.0042863375, abs=1e-10)
    assert float(s.angle_relation(student, teacher)) == pytest.approx(0.00384183945, abs=1e-11)


@given(seeds, errors, st.booleans())
def test_distances_equal_scipys(seed, error, squared):
    student, teacher = points(seed, 2, 6, 3), points(seed + 1, 2, 6, 5)
    mask = masks(6, 4)
    groups = [[each[b][mask[b]].numpy() for each in (student, teacher)] for b in range(2)]
    value = s.distance_relation(student, teacher, mask, squared, error)
    assert float(value) == pytest.approx(slow_distances(groups, squared, error), rel=1e-9)


@given(seeds, errors, st.sampled_from([None, 1, 3, 5, 7, 21]))
def test_angles_equal_a_loop_over_triples(seed, error, window):
    student, teacher = points(seed, 2, 6, 3), points(seed + 1, 2, 6, 5)
    mask = masks(6, 4)
    groups = [[each[b][mask[b]].numpy() for each in (student, teacher)] for b in range(2)]
    value = s.angle_relation(student, teacher, mask, window, error)
    assert float(value) == pytest.approx(slow_angles(groups, error, window), rel=1e-9, abs=1e-15)


def test_a_mask_of_all_points_is_none():
    student, teacher = points(0, 3, 4, 5), points(1, 3, 4, 2)
    for relation in (s.distance_relation, s.angle_relation):
        torch.testing.assert_close(relation(student, teacher, torch.ones(3, 4)), relation(student, teacher))


def test_contextual_knowledge_relates_words_by_layer_and_layers_by_word():
    """The values across three layers are those of the public code."""
    teacher, student = g((2, 3, 5, 8), 0.37, 0).unbind(1), g((2, 3, 5, 6), 0.53, 1).unbind(1)
    mask = masks(5, 3, size=5)
    for error, distance, angle in (
        ("l1", 0.3646520695, 0.0820882797),
        ("l2", 0.2251136360, 0.0305586565),
        ("smooth_l1", 0.1125568180, 0.0152793283),
    ):
        for weights, expected in (((0, 0, 1, 0), distance), ((0, 0, 0, 1), angle)):
            value = s.contextual_knowledge(student, teacher, mask, *weights, error=error)
            assert float(value) == pytest.approx(expected, abs=1e-10)
    words = [
        [layer[b][mask[b]].numpy() for layer in pair] for pair in zip(student, teacher, strict=True) for b in (0, 1)
    ]
    for weights, expected in (
        ((1, 0, 0, 0), slow_distances(words, True, "smooth_l1")),
        ((0, 1, 0, 0), slow_angles(words, "smooth_l1", 3)),
    ):
        value = s.contextual_knowledge(student, teacher, mask, *weights, window=3)
        assert float(value) == pytest.approx(expected, rel=1e-9)


def test_contextual_knowledge_is_a_weighted_sum():
    teacher, student = points(0, 2, 3, 6, 8).unbind(1), points(1, 2, 3, 6, 4).unbind(1)
    mask, each = masks(6, 4), torch.eye(4).tolist()
    parts = [s.contextual_knowledge(student, teacher, mask, *one) for one in each]
    assert min(parts) > 1e-4
    total = s.ContextualKnowledge(0.5, 10.0, 2.0, 3.0)(student, teacher, mask)
    torch.testing.assert_close(total, 0.5 * parts[0] + 10 * parts[1] + 2 * parts[2] + 3 * parts[3])
    module = s.ContextualKnowledge(window=3, error="l2")
    expected = s.contextual_knowledge(student, teacher, mask, window=3, error="l2")
    torch.testing.assert_close(module(student, teacher, mask), expected)


def slow_tokens(student, teacher, mask, heads, salient, neighbours):
    """MGSKD's relation of tokens by loops over texts."""
    squares, triples = [], []
    for text, kept in enumerate(mask):
        states = [each[text][kept].numpy() for each in (student, teacher)]
        scores = []
        for each in states:
            width = each.shape[1] // heads
            cut = [each[:, h * width : (h + 1) * width] for h in range(heads)]
            scores.append(np.stack([x @ x.T / math.sqrt(width) for x in cut]))
        squares.append((scores[0] - scores[1]).ravel() ** 2)
        attention = softmax(scores[1], -1).sum(0)
        corners = np.argsort(-attention.sum(0))[:salient]
        for i in corners:
            others = [j for j in np.argsort(-attention[i]) if j != i][:neighbours]
            for j, k in itertools.permutations(others, 2):
                triples.append([cosine(each[i] - each[j], each[i] - each[k]) for each in states])
    return float(np.concatenate(squares).mean()) + (mean_error(triples, "smooth_l1") if triples else 0.0)


@given(seeds, st.sampled_from([1, 2, 4]), st.integers(1, 8), st.integers(1, 8))
def test_tokens_equal_a_loop_over_texts(seed, heads, salient, neighbours):
    student, teacher, mask = points(seed, 3, 6, 8), points(seed + 1, 3, 6, 12), masks(6, 4, 1)
    value = s.token_relation(student, teacher, mask, heads, salient, neighbours)
    expected = slow_tokens(student, teacher, mask, heads, salient, neighbours)
    assert float(value) == pytest.approx(expected, rel=1e-9)


@given(seeds, st.sampled_from([1, 2, 4]))
def test_texts_equal_a_loop_over_heads(seed, heads):
    student, teacher, mask = points(seed, 3, 6, 8), points(seed + 1, 3, 6, 12), masks(6, 4, 1)
    means = [torch.stack([each[b][mask[b]].mean(0) for b in range(3)]) for each in (student, teacher)]
    groups = [[each.chunk(heads, 1)[h].numpy() for each in means] for h in range(heads)]
    value = s.sample_relation(student, teacher, mask, heads)
    assert float(value) == pytest.approx(slow_angles(groups, "smooth_l1"), rel=1e-9)


def test_multi_granularity_relates_tokens_below_and_texts_above():
    student, teacher, mask = points(0, 4, 3, 6, 8), points(1, 4, 3, 6, 12), masks(6, 4, 5)
    lower = [s.token_relation(*pair, mask, 4, 3, 3) for pair in zip(student[:1], teacher[:1], strict=True)]
    upper = [s.sample_relation(*pair, mask, 4) for pair in zip(student[1:], teacher[1:], strict=True)]
    value = s.MultiGranularity(4, 1, 3, 3, 2.0, 3.0)(list(student), list(teacher), mask)
    torch.testing.assert_close(value, 3 * sum(lower) + 2 * sum(upper))


# -- invariants


def words(window=None, error="smooth_l1"):
    return s.ContextualKnowledge(window=window, error=error)


LOSSES = [words(), words(3, "l2"), s.MultiGranularity(2, 1, 3, 3), s.MultiGranularity(4, 3), s.MultiGranularity(2, 0)]


def layers(seed, student=8, teacher=12):
    return points(seed, 3, 3, 6, student).unbind(0), points(seed + 1, 3, 3, 6, teacher).unbind(0), masks(6, 4, 3)


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=seeds)
def test_zero_only_at_equality_and_the_teacher_gets_no_gradient(loss, seed):
    student, teacher, mask = layers(seed)
    assert float(loss([each.clone() for each in teacher], teacher, mask)) == pytest.approx(0, abs=1e-12)
    student, teacher = ([each.clone().requires_grad_() for each in side] for side in (student, teacher))
    value = loss(student, teacher, mask)
    assert float(value.detach()) > 1e-5
    value.backward()
    assert all(each.grad is None for each in teacher)
    assert all(each.grad.abs().sum() > 0 for each in student)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_exact(loss):
    student, teacher, mask = layers(3)
    student = torch.stack(student).requires_grad_()
    assert torch.autograd.gradcheck(lambda each: loss(each.unbind(0), teacher, mask), student, fast_mode=True)


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=seeds, value=st.sampled_from([0.0, 1e30, -7.0, math.nan, math.inf]))
def test_padding_changes_nothing(loss, seed, value):
    student, teacher, mask = layers(seed)
    expected = loss(student, teacher, mask)
    changed = [[each.masked_fill(~mask[..., None], value) for each in side] for side in (student, teacher)]
    changed[0] = [each.requires_grad_() for each in changed[0]]
    actual = loss(*changed, mask)
    torch.testing.assert_close(actual, expected)
    actual.backward()
    for each in changed[0]:
        assert each.grad.isfinite().all()
        assert (each.grad[~mask] == 0).all()
    longer = [[functional.pad(each, (0, 0, 0, 3)) for each in side] for side in (student, teacher)]
    torch.testing.assert_close(loss(*longer, functional.pad(mask, (0, 3))), expected)


@given(seeds, st.floats(0.01, 100), st.floats(-10, 10), st.sampled_from([None, 3]))
def test_geometry_does_not_see_translation_rotation_and_scaling(seed, scale, shift, window):
    (student, *_), (teacher, *_), mask = layers(seed)
    rotation = torch.linalg.qr(points(seed + 2, 8, 8)).Q
    moved = scale * student @ rotation + shift

    def angle(each):
        return s.angle_relation(each, teacher, mask, window)

    def distance(each):
        return s.distance_relation(each, teacher, mask, squared=window is None)

    for relation in (angle, distance):
        torch.testing.assert_close(relation(moved), relation(student), rtol=1e-6, atol=1e-9)


@given(seeds, st.floats(0.01, 100), st.floats(-10, 10))
def test_the_angles_of_multi_granularity_do_not_see_translation_and_scaling(seed, scale, shift):
    (student, *_), (teacher, *_), mask = layers(seed)
    moved = scale * student + shift

    def corners(each):
        pairs = relations.attention_map_mse((each, each), (teacher, teacher), mask, 2, "scores")
        return s.token_relation(each, teacher, mask, 2, 3, 3) - pairs

    torch.testing.assert_close(corners(moved), corners(student), rtol=1e-6, atol=1e-7)
    texts = s.sample_relation(student, teacher, mask, 2)
    torch.testing.assert_close(s.sample_relation(moved, teacher, mask, 2), texts, rtol=1e-6, atol=1e-9)
    rotation = torch.block_diag(*(torch.linalg.qr(points(seed + h, 4, 4)).Q for h in (2, 3)))
    torch.testing.assert_close(s.sample_relation(student @ rotation, teacher, mask, 2), texts, rtol=1e-6, atol=1e-9)


def test_points_in_one_place_have_no_direction_and_no_nan():
    teacher = points(0, 1, 4, 3).float()
    student = torch.ones(1, 4, 3, requires_grad=True)
    for squared in (False, True):
        value = s.distance_relation(student, teacher, squared=squared) + s.angle_relation(student, teacher)
        value.backward()
        assert value.isfinite()
        assert student.grad.abs().max() < 10
    alone = torch.tensor([[True, False, False, False]])
    assert float(s.distance_relation(student.detach(), teacher, alone)) == 0
    assert float(s.angle_relation(student.detach(), teacher, torch.zeros(1, 4))) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(loss, dtype):
    student, teacher, mask = layers(5)
    half = [[(50 * each).to(dtype) for each in side] for side in (student, teacher)]
    value = loss(*half, mask)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(*([each.float() for each in side] for side in half), mask))


@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_change_neither_value_nor_gradient(loss, monkeypatch):
    student, teacher, mask = layers(6)
    student = torch.stack(student).requires_grad_()
    whole = loss(student.unbind(0), teacher, mask)
    gradient = torch.autograd.grad(whole, student)
    monkeypatch.setattr(relations, "CELLS", 1)
    chunked = loss(student.unbind(0), teacher, mask)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(torch.autograd.grad(chunked, student), gradient)


# -- refusals


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda a, b, m: s.distance_relation(a[0], b[0][:2]), "must have the same points"),
        (lambda a, b, m: s.angle_relation(a[0], b[0], m[:, :2]), r"mask of shape \(3, 2\) does not fit"),
        (lambda a, b, m: s.angle_relation(a[0], b[0], m, 4), "odd number of points, one in the middle, got 4"),
        (lambda a, b, m: s.angle_relation(a[0], b[0], m, error="huber"), "error is 'l1' or 'l2' or 'smooth_l1'"),
        (lambda a, b, m: s.distance_relation(a[0], b[0], m, error="huber"), "error is 'l1' or 'l2' or 'smooth_l1'"),
        (lambda a, b, m: s.contextual_knowledge(a, b[:2], m), "matched one by one, got 3 and 2"),
        (lambda a, b, m: s.multi_granularity([], [], m), "matched one by one, got 0 and 0"),
        (lambda a, b, m: s.multi_granularity(a, b, m), "heads must divide the widths .* got 64 heads"),
        (lambda a, b, m: s.ContextualKnowledge(window=2), "odd number of points"),
        (lambda a, b, m: s.ContextualKnowledge(error="huber"), "error is"),
        (lambda a, b, m: s.MultiGranularity(salient=0), "salient must be at least 1, got 0"),
    ],
)
def test_settings_and_shapes_that_do_not_fit_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use(*layers(0))


def test_what_the_modules_say_of_themselves():
    for loss, compares in ((s.ContextualKnowledge(), False), (s.MultiGranularity(), True)):
        assert (loss.takes_rows, loss.takes_mask, loss.compares_rows) == (False, True, compares)
