import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.errors import UserError
from kdbench.models.packed import PackedBatch
from kdbench.models.packed_attention import BACKENDS, FLEX_BLOCK, _document_blocks, alibi_slopes, packed_attention
from kdbench.models.packed_tiles import first_fit_rows, length_buckets

HERE = [name for name in BACKENDS if name not in ("flex", "varlen")]  # the back ends that can train on a CPU
HEADS, WIDTH = 2, 4

masks = st.integers(1, 7).flatmap(
    lambda width: st.lists(
        st.lists(st.booleans(), min_size=width, max_size=width).filter(any), min_size=1, max_size=7
    ).map(torch.tensor)
)


def of_lengths(*lengths):
    return PackedBatch.of(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def draw(tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, HEADS, WIDTH, generator=generator, dtype=torch.float64) for _ in range(3)]


def reference(query, key, value, lengths, slopes=None):
    """Attention as it is defined, one sequence and one head after the other."""
    mixed = []
    for q, k, v in zip(*(each.split(lengths) for each in (query, key, value)), strict=True):
        heads = []
        for head in range(HEADS):
            scores = q[:, head] @ k[:, head].T / math.sqrt(WIDTH)
            if slopes is not None:
                place = torch.arange(len(q))
                scores = scores - slopes[head] * (place[:, None] - place).abs()
            heads.append(scores.softmax(dim=-1) @ v[:, head])
        mixed.append(torch.stack(heads, dim=1))
    return torch.cat(mixed)


def value_and_gradients(attend, inputs):
    leaves = [each.clone().requires_grad_() for each in inputs]
    mixed = attend(*leaves)
    weights = torch.sin(torch.arange(mixed.numel(), dtype=mixed.dtype)).view_as(mixed)
    return [mixed.detach(), *torch.autograd.grad((mixed * weights).sum(), leaves)]


@pytest.mark.parametrize("backend", ["auto", *HERE])
@given(mask=masks)
def test_all_back_ends_agree_with_the_definition(backend, mask):
    packed = PackedBatch.of(mask)
    inputs = draw(len(packed.place))
    wanted = value_and_gradients(lambda *qkv: reference(*qkv, packed.lengths), inputs)
    found = value_and_gradients(lambda *qkv: packed_attention(*qkv, packed, backend), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", *(name for name in HERE if name != "njt")])
@given(mask=masks)
def test_and_so_they_do_with_alibi(backend, mask):
    packed, slopes = PackedBatch.of(mask), alibi_slopes(HEADS)
    inputs = draw(len(packed.place))
    wanted = value_and_gradients(lambda *qkv: reference(*qkv, packed.lengths, slopes), inputs)
    found = value_and_gradients(lambda *qkv: packed_attention(*qkv, packed, backend, slopes), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("slopes", [None, alibi_slopes(HEADS)])
@pytest.mark.parametrize("lengths", [(1,), (3, 1, 4), (100, 20, 8), (128,), (1,) * 140])
def test_flex_attention_agrees_where_it_runs(lengths, slopes):
    packed = of_lengths(*lengths)
    inputs = draw(len(packed.place))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the form without a kernel is slow
        found = packed_attention(*inputs, packed, "flex", slopes)
    torch.testing.assert_close(found, reference(*inputs, lengths, slopes), rtol=0, atol=1e-12)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12))
def test_flex_attention_visits_the_blocks_in_which_sequences_meet_and_no_other(lengths):
    block_mask, position = _document_blocks(of_lengths(*lengths))
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    owner = torch.nn.functional.pad(owner, (0, len(position) - len(owner)), value=-1).view(-1, FLEX_BLOCK)
    meet = [[bool(torch.isin(one, other).any()) for other in owner] for one in owner]
    assert block_mask.to_dense()[0, 0].bool().tolist() == meet


@pytest.mark.slow
@pytest.mark.parametrize("slopes", [None, alibi_slopes(HEADS)])
def test_compiled_flex_attention_agrees(slopes):
    slopes = None if slopes is None else slopes.float()
    for lengths in [(100, 20, 8), (8, 100, 20), (200, 3, 90)]:  # the second takes the kernel of the first
        packed = of_lengths(*lengths)
        inputs = [each.float() for each in draw(len(packed.place))]
        found = packed_attention(*inputs, packed, "flex", slopes)
        torch.testing.assert_close(found, reference(*inputs, lengths, slopes))


@given(st.permutations(range(5)))
def test_permuted_sequences_give_permuted_outputs(order):
    lengths = [3, 1, 4, 4, 2]
    query, key, value = (each.split(lengths) for each in draw(sum(lengths)))
    plain = packed_attention(*map(torch.cat, (query, key, value)), of_lengths(*lengths)).split(lengths)
    moved = (torch.cat([each[number] for number in order]) for each in (query, key, value))
    found = packed_attention(*moved, of_lengths(*(lengths[number] for number in order)))
    torch.testing.assert_close(found, torch.cat([plain[number] for number in order]), rtol=0, atol=1e-12)


def test_without_slope_attention_is_blind_to_order_and_with_it_it_is_not():
    packed, inputs = of_lengths(5, 3), draw(8)
    order = torch.tensor([4, 2, 0, 1, 3, 7, 5, 6])
    for slopes, blind in ((torch.zeros(HEADS, dtype=torch.float64), True), (alibi_slopes(HEADS), False)):
        plain = packed_attention(*inputs, packed, "bucket", slopes)
        moved = packed_attention(*(each[order] for each in inputs), packed, "bucket", slopes)
        assert torch.allclose(plain[order], moved, rtol=0, atol=1e-12) == blind


@pytest.mark.parametrize("backend", HERE)
def test_dropout_drops_attention_weights(backend):
    packed, inputs = of_lengths(40, 30), draw(70)
    torch.manual_seed(0)
    ones = torch.ones_like(inputs[2])
    dropped = packed_attention(*inputs[:2], ones, packed, backend, dropout=0.5)
    assert dropped.std() > 0.05
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.15)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 5))
def test_buckets_are_the_cut_with_the_fewest_padded_pairs(lengths, most):
    buckets = length_buckets(of_lengths(*lengths), most)
    assert sorted(row[0] for bucket in buckets for row in bucket) == list(range(len(lengths)))
    assert len(buckets) == min(most, len(set(lengths)))

    def pairs(cut):
        return sum(len(bucket) * max(bucket) ** 2 for bucket in cut)

    ordered = sorted(lengths)
    cuts = (
        [ordered[a:b] for a, b in itertools.pairwise((0, *inner, len(ordered)))]
        for count in range(min(most, len(ordered)))
        for inner in itertools.combinations(range(1, len(ordered)), count)
    )
    found = [[lengths[row[0]] for row in bucket] for bucket in buckets]
    assert [length for bucket in found for length in bucket] == ordered
    assert pairs(found) == min(map(pairs, cuts))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.sampled_from([None, 12, 20, 200]))
def test_rows_hold_every_sequence_once_and_no_two_could_be_one(lengths, width):
    (rows,) = first_fit_rows(of_lengths(*lengths), width)
    room = width or max(lengths)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    filled = [sum(lengths[number] for number in row) for row in rows]
    assert max(filled) <= room
    assert all(one + other > room for one, other in itertools.combinations(filled, 2))


def test_where_all_lengths_are_equal_no_mask_is_made(monkeypatch):
    masks = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*inputs, attn_mask=None, **options):
        masks.append(attn_mask)
        return attend(*inputs, attn_mask=attn_mask, **options)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", spy)
    for backend in ("padded", "repad", "bucket", "docmask"):
        packed_attention(*draw(12), of_lengths(4, 4, 4), backend)
    packed_attention(*draw(20), of_lengths(7, 2, 2, 7, 1, 1), "bucket")
    assert masks == [None] * 7


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (8, [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]),
        (6, [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]),
        (1, [2**-8]),
    ],
)
def test_slopes(heads, slopes):
    assert alibi_slopes(heads).tolist() == slopes


def test_slopes_of_twelve_heads():
    twelve = alibi_slopes(12)
    assert torch.equal(twelve[:8], alibi_slopes(8))
    assert twelve[8:].tolist() == pytest.approx([0.70710678, 0.35355339, 0.17677670, 0.08838835], abs=1e-8)


def test_what_cannot_be_done_is_told_in_one_sentence():
    packed, inputs, slopes = of_lengths(3, 1), draw(4), alibi_slopes(HEADS)
    trained = [each.requires_grad_() for each in draw(4)]
    with pytest.raises(UserError, match="'varlen' has no kernel on the device 'cpu': take 'auto'"):
        packed_attention(*inputs, packed, "varlen")
    with pytest.raises(UserError, match="'flex' has no backward pass on the CPU"):
        packed_attention(*trained, packed, "flex")
    with pytest.raises(UserError, match="'flex' knows no attention dropout"):
        packed_attention(*inputs, packed, "flex", dropout=0.1)
    with pytest.raises(UserError, match="'njt' knows no ALiBi"):
        packed_attention(*inputs, packed, "njt", slopes)
    with pytest.raises(
        UserError, match=r"no attention back end 'buckets'\. Did you mean 'bucket'\? There are: auto, padded"
    ):
        packed_attention(*inputs, packed, "buckets")
    with pytest.raises(ValueError, match=r"the batch has 4 tokens, and the query is \(5, 2, 4\)"):
        packed_attention(*draw(5), packed)
