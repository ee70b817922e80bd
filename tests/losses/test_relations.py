"""Relations and attention maps: against loops written from the equations, what they obey, and what they hold in memory."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench.losses import relations as r

seeds = st.integers(0, 10_000)
LENGTHS = torch.tensor([5, 3])
MASK = torch.arange(5) < LENGTHS[:, None]
LOSSES = [
    r.RelationDivergence(2),
    r.RelationDivergence(4, "pooled"),
    r.AttentionMapMSE(2),
    r.AttentionMapMSE(4, "scores"),
    r.AttentionMapMSE(2, mask_padding=False),
    r.AttentionMapMSE(2, "scores", mask_padding=False),
]
MASKED = LOSSES[:4]


def projections(seed, student=8, teacher=12, scale=1.5, shape=(2, 5)):
    generator = torch.Generator().manual_seed(seed)
    return [
        [scale * torch.randn(*shape, width, generator=generator, dtype=torch.float64) for _ in range(2)]
        for width in (student, teacher)
    ]


def slow_scores(x, y, head, heads):
    width = x.shape[-1] // heads
    cut = slice(head * width, (head + 1) * width)
    return (x[:, cut] @ y[:, cut].T / math.sqrt(width)).numpy()


def slow_divergence(student, teacher, heads, mean):
    rows = []
    for text, length in enumerate(LENGTHS):
        ours, theirs = ([each[text, :length] for each in pair] for pair in (student, teacher))
        values = [
            rel_entr(softmax(slow_scores(*theirs, h, heads), 1), softmax(slow_scores(*ours, h, heads), 1)).sum(1)
            for h in range(heads)
        ]
        rows.append(torch.from_numpy(np.concatenate(values)))
    return float(torch.cat(rows).mean() if mean == "pooled" else sum(each.mean() for each in rows) / len(rows))


def slow_mse(student, teacher, heads, kind):
    cells = []
    for text, length in enumerate(LENGTHS):
        for h in range(heads):
            maps = [slow_scores(*(each[text, :length] for each in pair), h, heads) for pair in (student, teacher)]
            ours, theirs = (softmax(each, 1) for each in maps) if kind == "probabilities" else maps
            cells.append(torch.from_numpy((ours - theirs) ** 2).flatten())
    return float(torch.cat(cells).mean())


# -- against other implementations


@pytest.mark.parametrize("mean", ["example", "pooled"])
@given(seed=seeds, heads=st.sampled_from([1, 2, 4]))
def test_the_divergence_of_relations_equals_a_loop_over_texts_and_heads(mean, seed, heads):
    student, teacher = projections(seed)
    expected = slow_divergence(student, teacher, heads, mean)
    assert float(r.relation_divergence(student, teacher, MASK, heads, mean)) == pytest.approx(expected, rel=1e-9)
    assert float(r.RelationDivergence(heads, mean)(student, teacher, MASK)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["probabilities", "scores"])
@given(seed=seeds, heads=st.sampled_from([1, 2, 4]))
def test_the_error_of_attention_maps_equals_a_loop_over_texts_and_heads(kind, seed, heads):
    student, teacher = projections(seed)
    expected = slow_mse(student, teacher, heads, kind)
    assert float(r.attention_map_mse(student, teacher, MASK, heads, kind)) == pytest.approx(expected, rel=1e-9)
    assert float(r.AttentionMapMSE(heads, kind)(student, teacher, MASK)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["probabilities", "scores"])
def test_with_padding_all_cells_count_and_padded_keys_are_0_in_both(kind):
    student, teacher = projections(0)
    maps = []
    for x, y in (student, teacher):
        x, y = (each.unflatten(-1, (2, -1)).transpose(1, 2) for each in (x, y))
        scores = x @ y.mT / math.sqrt(x.shape[-1]) + -10_000.0 * ~MASK[:, None, None, :]
        maps.append(scores.softmax(-1) if kind == "probabilities" else scores.masked_fill(scores <= -100, 0.0))
    expected = functional.mse_loss(*maps)
    torch.testing.assert_close(r.attention_map_mse(student, teacher, MASK, 2, kind, mask_padding=False), expected)
    loss = r.AttentionMapMSE(2, kind, mask_padding=False)
    torch.testing.assert_close(loss(student, teacher, MASK), expected)


def test_the_divergence_is_torchs_without_padding():
    student, teacher = projections(1)
    logs = [(x @ y.mT / math.sqrt(x.shape[-1])).log_softmax(-1).flatten(0, 1) for x, y in (student, teacher)]
    expected = functional.kl_div(*logs, reduction="batchmean", log_target=True)
    for mean in ("example", "pooled"):
        torch.testing.assert_close(r.relation_divergence(student, teacher, torch.ones(2, 5), 1, mean), expected)


def test_one_projection_is_related_with_itself_and_layers_add_up():
    (x, y), (u, v) = projections(2)
    torch.testing.assert_close(r.RelationDivergence(2)([x], [u], MASK), r.relation_divergence((x, x), (u, u), MASK, 2))
    both = r.AttentionMapMSE(2)([x, y, y, x], [u, v, v, u], MASK)
    torch.testing.assert_close(
        both, r.AttentionMapMSE(2)([x, y], [u, v], MASK) + r.AttentionMapMSE(2)([y, x], [v, u], MASK)
    )


# -- invariants


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=seeds)
def test_zero_at_equality_exact_gradients_and_none_for_the_teacher(loss, seed):
    student, teacher = projections(seed)
    assert float(loss([each.clone() for each in teacher], teacher, MASK)) == pytest.approx(0, abs=1e-12)
    for each in (*student, *teacher):
        each.requires_grad_()
    value = loss(student, teacher, MASK)
    assert float(value.detach()) > 1e-6
    value.backward()
    assert all(each.grad is None for each in teacher)
    assert all(each.grad.abs().sum() > 0 for each in student)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_exact(loss):
    student, teacher = projections(3)
    ours = [each.requires_grad_() for each in student]
    assert torch.autograd.gradcheck(lambda x, y: loss([x, y], teacher, MASK), ours)


@pytest.mark.parametrize("loss", MASKED)
@given(seed=seeds, value=st.sampled_from([0.0, 1e30, -7.0, math.nan, math.inf]))
def test_padding_changes_nothing(loss, seed, value):
    student, teacher = projections(seed)
    expected = loss(student, teacher, MASK)
    changed = [[each.masked_fill(~MASK[..., None], value) for each in pair] for pair in (student, teacher)]
    for each in changed[0]:
        each.requires_grad_()
    actual = loss(*changed, MASK)
    torch.testing.assert_close(actual, expected)
    actual.backward()
    for each in changed[0]:
        assert each.grad.isfinite().all()
        assert (each.grad[~MASK] == 0).all()
    cut = [[each[:, :3] for each in pair] for pair in (student, teacher)]
    longer = [[functional.pad(each, (0, 0, 0, 2)) for each in pair] for pair in cut]
    short = torch.ones(2, 3)
    torch.testing.assert_close(loss(*longer, functional.pad(short, (0, 2))), loss(*cut, short))


@pytest.mark.parametrize("loss", MASKED)
def test_an_empty_text_counts_nothing_and_no_text_gives_0(loss):
    student, teacher = projections(4)
    only = torch.stack([MASK[0], torch.zeros(5, dtype=torch.bool)])
    expected = loss(*([each[:1] for each in pair] for pair in (student, teacher)), MASK[:1])
    torch.testing.assert_close(loss(student, teacher, only), expected)
    student[0].requires_grad_()
    nothing = loss(student, teacher, torch.zeros(2, 5))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert (student[0].grad == 0).all()


@given(seeds)
def test_a_rotation_inside_each_head_changes_no_relation(seed):
    (x, y), teacher = projections(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    rotation = torch.block_diag(
        *(torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    )
    plain = r.relation_divergence((x, y), teacher, MASK, 2)
    torch.testing.assert_close(r.relation_divergence((x @ rotation, y @ rotation), teacher, MASK, 2), plain)


@given(seeds, st.permutations(range(4)))
def test_the_order_of_heads_is_free_when_it_is_the_same_in_both(seed, order):
    student, teacher = projections(seed)
    moved = [
        [each.unflatten(-1, (4, -1))[:, :, list(order)].flatten(2) for each in pair] for pair in (student, teacher)
    ]
    for loss in (r.RelationDivergence(4), r.AttentionMapMSE(4), r.AttentionMapMSE(4, "scores")):
        torch.testing.assert_close(loss(*moved, MASK), loss(student, teacher, MASK))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(loss, dtype):
    student, teacher = ([each.to(dtype) for each in pair] for pair in projections(5, scale=20.0))
    value = loss(student, teacher, MASK)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss([x.float() for x in student], [x.float() for x in teacher], MASK))


def test_under_autocast_the_softmax_stays_in_float32():
    student, teacher = ([each.float() for each in pair] for pair in projections(6))
    with torch.autocast("cpu", torch.bfloat16):
        value = r.relation_divergence(student, teacher, MASK, 2)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, r.relation_divergence(student, teacher, MASK, 2), rtol=0.05, atol=0.05)


# -- memory


class LargestTensor(TorchDispatchMode):
    """Watches how many elements the largest tensor has that an operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return result


@pytest.mark.parametrize("loss", [r.RelationDivergence(8), r.AttentionMapMSE(8), r.AttentionMapMSE(8, "scores")])
def test_no_tensor_has_the_maps_of_all_heads_and_none_is_kept_for_the_backward_pass(loss, monkeypatch):
    texts, length, heads = 2, 96, 8
    student, teacher = projections(7, 16, 24, shape=(texts, length))
    mask = torch.arange(length) < torch.tensor([length, 50])[:, None]

    def gradients():
        kept, watch = [0], LargestTensor()
        leaves = [each.clone().requires_grad_() for each in student]

        def keep(tensor):
            kept[0] += tensor.numel()
            return tensor

        with watch:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                value = loss(leaves, teacher, mask)
            value.backward()
        return [value.detach(), *(each.grad for each in leaves)], watch.elements, kept[0]

    whole, largest, kept = gradients()
    assert largest == texts * heads * length**2, "small maps go through at once"
    assert kept > texts * heads * length**2
    monkeypatch.setattr(r, "CELLS", 2 * texts * length**2)
    chunked, largest, kept = gradients()
    assert largest == 2 * texts * length**2, "two heads at a time, forward and backward"
    assert kept < 1.1 * texts * length * (16 + 16 + 24 + 24), "the projections alone"
    torch.testing.assert_close(chunked, whole)
    monkeypatch.setattr(r, "CELLS", 1)
    alone, largest, _ = gradients()
    assert largest == texts * length**2, "one head at least"
    torch.testing.assert_close(alone, whole)


# -- refusals


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda s, t: r.relation_divergence(s, t, MASK, 3),
            "heads must divide the widths .* got 3 heads for the width 8",
        ),
        (lambda s, t: r.relation_divergence(s, t, MASK, 8), "got 8 heads for the width 12"),
        (lambda s, t: r.relation_divergence(s, t, MASK, 2, "batch"), "mean is 'example' or 'pooled', got 'batch'"),
        (lambda s, t: r.relation_divergence(s, t, MASK[:1], 2), r"mask of shape \(1, 5\) does not fit"),
        (lambda s, t: r.relation_divergence((s[0], s[1][:, :4]), t, MASK, 2), "must have the same shape"),
        (lambda s, t: r.relation_divergence([x[:1] for x in s], t, MASK, 2), "must have the same tokens"),
        (
            lambda s, t: r.attention_map_mse(s, t, MASK, 2, "logits"),
            "kind is 'probabilities' or 'scores', got 'logits'",
        ),
        (lambda s, t: r.map_mse(s[0][None], t[0][None], MASK), "must have the same shape"),
        (lambda s, t: r.map_mse(s[0][None], s[0][None], MASK, "maps"), "kind is 'probabilities' or 'scores'"),
        (lambda s, t: r.RelationDivergence(0), "heads must be at least 1, got 0"),
        (lambda s, t: r.AttentionMapMSE(2, "logits"), "kind is"),
        (lambda s, t: r.RelationDivergence(2, "sum"), "mean is"),
        (lambda s, t: r.RelationDivergence(2)([*s, s[0]], [*t, t[0]], MASK), "one or two projections, .* got 3 and 3"),
        (lambda s, t: r.RelationDivergence(2)(s, t[:1], MASK), "as many of the teacher"),
        (lambda s, t: r.AttentionMapMSE(2)(s[:1], t[:1], MASK), "the query and the key of each layer"),
        (lambda s, t: r.AttentionMapMSE(2)([], [], MASK), "the query and the key of each layer"),
    ],
)
def test_settings_and_shapes_that_do_not_fit_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use(*projections(0))


@pytest.mark.parametrize("loss", LOSSES)
def test_what_the_modules_say_of_themselves(loss):
    assert (loss.takes_rows, loss.takes_mask, loss.compares_rows) == (False, True, False)
