"""ByteTransformer (arXiv 2210.03052): the card's numbers, and that packing changes the cost and nothing else."""

import pytest
import torch
import torch.nn.functional as F

from kdbench.models.packed import PackedBatch, multiply_adds
from kdbench.models.packed_attention import BACKENDS
from kdbench.models.packed_encoder import PackedEncoder, PackedEncoderConfig, PackedEncoderForMaskedLM

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.0,
}
BATCH, WIDTH, MASK = 6, 24, 3


def split_softmax(scores, tile):
    """The softmax of the grouped kernel: maxima and sums of each tile of keys first, then of the whole row.

    ``m_ik = max_j s_ij``, ``z_ik = sum_j exp(s_ij - m_ik)`` over tile k; ``m_i = max_k m_ik``,
    ``z_i = sum_k z_ik exp(m_ik - m_i)``; ``p_ij = exp(s_ij - m_i) / z_i``.
    """
    tiles = scores.split(tile, dim=-1)
    maxima = torch.stack([each.amax(dim=-1) for each in tiles], dim=-1)
    sums = torch.stack([(each - each.amax(-1, keepdim=True)).exp().sum(dim=-1) for each in tiles], dim=-1)
    maximum = maxima.amax(dim=-1, keepdim=True)
    total = (sums * (maxima - maximum).exp()).sum(dim=-1, keepdim=True)
    return maxima, sums, maximum, total, (scores - maximum).exp() / total


def lengths_of(seed):
    """Log-normal lengths, as the card draws them: mean about a third of the maximum."""
    draws = torch.randn(BATCH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (torch.tensor(0.25 * WIDTH).log() + 0.7 * draws).exp().round().clamp(2, WIDTH).long()


def batch_of(seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(WIDTH) < lengths_of(seed)[:, None]
    ids = torch.randint(4, 60, mask.shape, generator=generator).masked_fill(~mask, 0)
    hidden = (torch.rand(mask.shape, generator=generator) < 0.3) & mask
    hidden[:, 0] = True
    return ids.masked_fill(hidden, MASK), mask, ids.masked_fill(~hidden, -100)


def test_prefix_sums_and_places():
    mask = torch.arange(5) < torch.tensor([3, 1, 4])[:, None]
    packed = PackedBatch.of(mask)
    assert packed.cu_seqlens.tolist() == [0, 3, 4, 8]
    assert packed.place.tolist() == [0, 1, 2, 5, 10, 11, 12, 13]
    assert packed.position_ids.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]


def test_split_softmax():
    scores = 3 * torch.sin(0.37 * torch.arange(30, dtype=torch.float64) + 0.2).view(3, 10)
    maxima, sums, maximum, total, probabilities = split_softmax(scores, 4)
    assert maxima[0].tolist() == pytest.approx([2.898554855, 2.982129607, -0.055218921], abs=1e-9)
    assert sums[0].tolist() == pytest.approx([1.999473726, 2.236279293, 1.339281307], abs=1e-9)
    assert float(maximum[0]) == pytest.approx(2.982129607, abs=1e-9)
    assert float(total[0]) == pytest.approx(4.139674330, abs=1e-9)
    assert float(probabilities[2, 9]) == pytest.approx(0.000789090508, abs=1e-12)
    torch.testing.assert_close(probabilities, scores.softmax(dim=-1), rtol=0, atol=1e-15)


def test_work_model():
    cost = {stage: multiply_adds([77] * 16, 128, 768, 3072, stage) for stage in ("padded", "repad", "packed")}
    assert cost == {"padded": 14898167808, "repad": 9122611200, "packed": 8865669120}
    assert cost["repad"] / cost["padded"] == pytest.approx(0.612331, abs=5e-7)
    assert cost["packed"] / cost["padded"] == pytest.approx(0.595085, abs=5e-7)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("flex", "varlen")])
@pytest.mark.parametrize(("precision", "digits"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_valid_outputs_are_those_of_the_padded_encoder(backend, precision, digits):
    outputs = []
    ids, mask, _ = batch_of(0)
    for name in ("padded", backend):
        torch.manual_seed(0)
        network = PackedEncoder(PackedEncoderConfig(**SIZES, attention_backend=name)).to(precision)
        outputs.append(network(ids, mask).last_hidden_state)
    torch.testing.assert_close(*outputs, rtol=0, atol=digits)


def test_where_all_rows_are_full_packed_and_padded_are_one():
    ids = torch.randint(4, 60, (3, WIDTH), generator=torch.Generator().manual_seed(0))
    outputs = []
    for backend in ("padded", "auto"):
        torch.manual_seed(0)
        network = PackedEncoder(PackedEncoderConfig(**SIZES, attention_backend=backend)).double()
        outputs.append(network(ids).last_hidden_state)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)


def test_the_loss_curve_of_fifty_steps_is_the_same():
    curves = []
    for backend in ("padded", "auto"):
        torch.manual_seed(0)
        network = PackedEncoderForMaskedLM(PackedEncoderConfig(**SIZES, attention_backend=backend)).double()
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        curve = []
        for step in range(50):
            ids, mask, labels = batch_of(step % 5)
            positions = (labels != -100).flatten().nonzero().squeeze(1)
            logits = network(ids, mask, positions=positions).logits
            loss = F.cross_entropy(logits, labels.flatten()[positions])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] < 0.7 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-9)
