"""Cross-entropy of labelled positions."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, multiprocessing
from torch.nn import functional

from kdbench.losses.language import CrossEntropy, TokenCrossEntropy, masked_token_cross_entropy


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


ROWS, LABELS = g((4, 3), 0.37, 0, 3), torch.arange(4) % 3
TOKENS = g((2, 4, 5), 0.37, 0, 3)
token_labels = st.lists(st.sampled_from([-100, 0, 1, 2, 3, 4]), min_size=8, max_size=8)


def test_oracles():
    assert float(masked_token_cross_entropy(ROWS, LABELS)) == pytest.approx(1.537323080, abs=1e-9)
    labels = torch.full((2, 4), -100)
    labels[0, 1], labels[1, 2] = 2, 4
    assert float(masked_token_cross_entropy(TOKENS, labels)) == pytest.approx(1.23397691, abs=1e-8)


def test_tokens_that_are_all_labelled_may_have_weights():
    assert float(TokenCrossEntropy()(ROWS, LABELS)) == pytest.approx(1.537323080, abs=1e-9)
    each = [float(masked_token_cross_entropy(ROWS[row : row + 1], LABELS[row : row + 1])) for row in range(4)]
    weights = torch.tensor([0.5, 0.5, 1.0, 0.0]).double()
    expected = 0.25 * each[0] + 0.25 * each[1] + 0.5 * each[2]
    assert float(TokenCrossEntropy()(ROWS, LABELS, weights)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="the label 3 is outside the 3 classes"):
        TokenCrossEntropy()(ROWS, LABELS + 1)


@given(token_labels.filter(lambda labels: max(labels) >= 0), st.floats(0, 0.9))
def test_value_and_gradient_equal_torchs(labels, smoothing):
    labels, logits = torch.tensor(labels).reshape(2, 4), TOKENS.clone().requires_grad_()
    value = CrossEntropy(smoothing)(logits, labels)
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
    torch.testing.assert_close(value, expected)
    ours, theirs = (torch.autograd.grad(each, logits)[0] for each in (value, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("content", [1e6, torch.inf, torch.nan])
def test_the_logits_of_positions_without_label_are_irrelevant(content):
    labels = torch.tensor([[1, -100, 3, -100], [-100, 0, -100, -100]])
    logits = TOKENS.clone()
    logits[labels == -100] = content
    logits.requires_grad_()
    value = CrossEntropy()(logits, labels)
    torch.testing.assert_close(value, CrossEntropy()(TOKENS, labels))
    value.backward()
    assert (logits.grad[labels == -100] == 0).all()


def test_nothing_labelled_gives_zero_with_a_gradient_of_zero():
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.ones(2, 4, 5, dtype=dtype, requires_grad=True)
        value = CrossEntropy()(logits, torch.full((2, 4), -100))
        value.backward()
        assert float(value.detach()) == 0
        assert value.dtype == torch.float32
        assert (logits.grad == 0).all()


def test_another_label_may_mean_ignored():
    labels = torch.tensor([0, -1, 2, -1])
    expected = masked_token_cross_entropy(ROWS[[0, 2]], labels[[0, 2]])
    torch.testing.assert_close(masked_token_cross_entropy(ROWS, labels, ignore_index=-1), expected)
    with pytest.raises(ValueError, match="label -1 is outside the 3 classes"):
        masked_token_cross_entropy(ROWS, labels)


@pytest.mark.parametrize("label", [3, 7, -1, -101])
def test_a_label_outside_the_classes_is_named(label):
    with pytest.raises(ValueError, match=f"the label {label} is outside the 3 classes"):
        CrossEntropy()(ROWS, torch.tensor([0, 1, label, -100]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    value = CrossEntropy()(ROWS.to(dtype), LABELS)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, CrossEntropy()(ROWS.to(dtype).float(), LABELS))


def test_narrow_integers_are_labels_too():
    torch.testing.assert_close(CrossEntropy()(ROWS, LABELS.to(torch.int32)), CrossEntropy()(ROWS, LABELS))


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) do not fit logits of shape \(2, 4, 5\)"):
        CrossEntropy()(TOKENS, torch.tensor([0, 1]))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_smoothing_that_is_no_share_is_refused(smoothing):
    with pytest.raises(ValueError, match="label_smoothing is a share"):
        CrossEntropy(smoothing)


@given(token_labels, st.integers(0, 8), st.floats(0, 0.9))
def test_parts_over_the_count_of_the_whole_add_up_to_its_mean(labels, cut, smoothing):
    labels, logits = torch.tensor(labels), TOKENS.flatten(0, 1)
    count = (labels >= 0).sum()
    parts = [
        masked_token_cross_entropy(logits[rows], labels[rows], label_smoothing=smoothing, divisor=count)
        for rows in (slice(cut), slice(cut, 8))
    ]
    torch.testing.assert_close(sum(parts), masked_token_cross_entropy(logits, labels, label_smoothing=smoothing))


@pytest.mark.parametrize("divisor", [3, 3.0, torch.tensor(3)])
def test_a_divisor_changes_neither_type_nor_what_is_not_labelled(divisor):
    value = masked_token_cross_entropy(ROWS.float(), LABELS, divisor=divisor)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, masked_token_cross_entropy(ROWS.float(), LABELS) * 4 / 3)
    assert float(masked_token_cross_entropy(ROWS, torch.full((4,), -100), divisor=divisor)) == 0


def test_alone_over_ranks_is_the_plain_mean():
    assert torch.equal(CrossEntropy(0.1, over_ranks=True)(ROWS, LABELS), CrossEntropy(0.1)(ROWS, LABELS))


FEATURES, CLASSES = g((12, 6), 0.61, 0.4), torch.tensor([0, 2, -100, 1, 4, -100, -100, 3, 0, 1, -100, 2])
DEALINGS = {
    "halves": [range(6), range(6, 12)],
    "uneven": [[11, 3, 0], [10, 9, 8, 7, 6, 5, 4, 2, 1]],
    "no label on one": [[2, 5, 6, 10], [0, 1, 3, 4, 7, 8, 9, 11]],
}


def value_and_gradient(rows, loss):
    weight = g((5, 6), 0.3, 1).requires_grad_()
    value = loss(FEATURES[rows] @ weight.T, CLASSES[rows])
    return torch.cat([value.detach()[None], torch.autograd.grad(value, weight)[0].flatten()])


def run(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name, ranks in DEALINGS.items():
        for kind in ("over ranks", "plain"):
            mine = value_and_gradient(list(ranks[rank]), CrossEntropy(0.1, over_ranks=kind == "over ranks"))
            distributed.all_reduce(mine)
            found[f"{name}, {kind}"] = (mine / 2).tolist()  # data-parallel training averages over the ranks
    if rank == 0:  # in evaluation a rank may have a batch more: no other answers
        with torch.no_grad():
            found["evaluation"] = float(CrossEntropy(over_ranks=True)(ROWS, LABELS))
        (folder / "found.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def test_over_two_ranks_value_and_gradient_are_those_of_the_whole_however_it_is_dealt(tmp_path):
    multiprocessing.spawn(run, args=(tmp_path,), nprocs=2)
    found = json.loads((tmp_path / "found.json").read_text())
    whole = value_and_gradient(list(range(12)), CrossEntropy(0.1)).tolist()
    for name in DEALINGS:
        assert found[f"{name}, over ranks"] == pytest.approx(whole, rel=0, abs=1e-12)
    assert found["uneven, plain"] != pytest.approx(whole, rel=0, abs=1e-2)
    assert found["evaluation"] == float(CrossEntropy()(ROWS, LABELS))


def test_it_selects_its_rows_itself():
    assert not CrossEntropy.takes_rows
    assert not CrossEntropy.compares_rows
