import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.models.packed import PackedBatch, multiply_adds

# Any rows with at least one real token: padding to the right, to the left, in between, or none.
masks = st.integers(1, 6).flatmap(
    lambda width: st.lists(
        st.lists(st.booleans(), min_size=width, max_size=width).filter(any), min_size=1, max_size=5
    ).map(torch.tensor)
)


@given(masks)
def test_unpack_undoes_pack_on_real_tokens_and_leaves_zeros_in_the_padding(mask):
    packed = PackedBatch.of(mask)
    values = torch.randn(*mask.shape, 3, dtype=torch.float64, requires_grad=True)
    row = packed.pack(values)
    assert torch.equal(row, values[mask])
    padded = packed.unpack(row)
    assert torch.equal(padded, values * mask.unsqueeze(-1))
    weights = torch.randn_like(values)
    (padded * weights).sum().backward()
    assert torch.equal(values.grad, weights * mask.unsqueeze(-1))
    assert torch.equal(packed.mask, mask)


@given(masks)
def test_lengths_ends_and_positions_are_those_of_the_mask(mask):
    packed = PackedBatch.of(mask.long())
    assert packed.lengths == tuple(row.sum().item() for row in mask)
    assert (packed.batch_size, packed.padded_length) == tuple(mask.shape)
    assert packed.max_length == max(packed.lengths)
    assert len(packed.place) == sum(packed.lengths) == packed.cu_seqlens[-1]
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.cu_seqlens.diff().tolist() == list(packed.lengths)
    assert packed.position_ids.tolist() == [position for length in packed.lengths for position in range(length)]


def test_full_rows_are_packed_as_they_are():
    values = torch.randn(3, 4, 2)
    packed = PackedBatch.of(torch.ones(3, 4))
    assert torch.equal(packed.pack(values), values.flatten(0, 1))
    assert torch.equal(packed.unpack(packed.pack(values)), values)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        ([[1, 1], [0, 0]], "row 1 of the attention mask has no real token"),
        ([1, 1], r"is \[B, S\]"),
        ([[[1]]], r"is \[B, S\]"),
        ([[0.0, -1e9]], "of zeros and ones"),
        ([[1, 2]], "of zeros and ones"),
    ],
)
def test_masks_that_are_not_sound_are_refused(mask, told):
    with pytest.raises(ValueError, match=told):
        PackedBatch.of(torch.tensor(mask))


def test_values_of_another_batch_are_refused():
    packed = PackedBatch.of(torch.tensor([[1, 1, 0], [1, 0, 0]]))
    with pytest.raises(ValueError, match=r"the batch is \[2, 3\], the values \(2, 4\)"):
        packed.pack(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="the batch has 3 tokens"):
        packed.unpack(torch.zeros(4))


def test_plans_are_made_once_for_each_set_of_arguments():
    packed = PackedBatch.of(torch.ones(2, 3))
    made = []

    def plan(batch, *arguments):
        made.append(arguments)
        return len(made)

    assert [packed.planned(plan), packed.planned(plan), packed.planned(plan, 1), packed.planned(plan)] == [1, 1, 2, 1]
    assert made == [(), (1,)]


def test_on_its_own_device_a_batch_is_itself_and_elsewhere_it_plans_anew():
    packed = PackedBatch.of(torch.tensor([[1, 1], [1, 0]]))
    packed.planned(len_of_lengths)
    assert packed.to("cpu") is packed
    there = packed.to("meta")
    assert {each.device.type for each in (there.place, there.cu_seqlens, there.position_ids)} == {"meta"}
    assert there.lengths == packed.lengths
    assert (packed._plans, there._plans) == ({(len_of_lengths,): 2}, {})


def len_of_lengths(packed):
    return len(packed.lengths)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(9, 12))
def test_packing_more_never_costs_more_and_full_rows_cost_the_same(lengths, width):
    padded, repad, packed = (multiply_adds(lengths, width, 8, 12, stage) for stage in ("padded", "repad", "packed"))
    assert padded >= repad >= packed
    full = [width] * len(lengths)
    assert len({multiply_adds(full, width, 8, 12, stage) for stage in ("padded", "repad", "packed")}) == 1
