import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdbench.data.mixing import CutMix, Mixup, draw_mixup, draw_partners, draw_shares, mix_labels, mixup

ids = st.lists(st.integers(0, 10_000), min_size=2, max_size=12, unique=True)


def images(batch, height=9, width=7, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


# ---- images ----


@given(ids, st.integers(0, 3), st.sampled_from([Mixup(0.7), CutMix(0.7)]))
def test_what_is_drawn_for_a_batch_is_a_function_of_its_rows(rows, draw, mixing):
    draws = [draw] * len(rows)
    numbers, partner = mixing.numbers(1, rows, draws), mixing.partners(1, rows, draws)
    assert torch.equal(numbers, mixing.numbers(1, list(rows), np.array(draws)))
    assert torch.equal(partner, mixing.partners(1, np.array(rows), draws))
    assert sorted(partner.tolist()) == list(range(len(rows)))
    assert all(each != place for place, each in enumerate(partner.tolist()))
    for seed, other in ((2, draw), (1, draw + 1)):
        assert not torch.equal(numbers, mixing.numbers(seed, rows, [other] * len(rows)))


def test_mixup_of_images_is_the_papers():
    """One share a batch, the larger one, of each image and the one before it."""
    mixing, x = Mixup(), images(5)
    for row in range(20):
        rows, draws = [row, 7, 9, 2, 4], [0] * 5
        numbers = mixing.numbers(0, rows, draws)
        share = max(float(numbers[0]), 1 - float(numbers[0]))
        mixed, shares = mixing(x, mixing.partners(0, rows, draws), numbers)
        expected = torch.stack([share * x[place] + (1 - share) * x[place - 1] for place in range(5)])
        torch.testing.assert_close(mixed, expected)
        torch.testing.assert_close(shares, torch.full((5,), share))
        plain, shares = Mixup(larger=False)(x, mixing.partners(0, rows, draws), numbers)
        torch.testing.assert_close(shares, numbers[0].expand(5))
        torch.testing.assert_close(plain, torch.lerp(x.roll(1, 0), x, numbers[0]))


@given(st.floats(0, 1), st.floats(0, 0.999), st.floats(0, 0.999))
def test_cutmix_pastes_the_box_of_the_papers_code(share, down, right):
    x, partner = images(4), torch.tensor([2, 0, 3, 1])
    numbers = torch.tensor([share, down, right])
    mixed, shares = CutMix()(x, partner, numbers)
    share, down, right = numbers.tolist()
    cut = (1 - np.float32(share)) ** np.float32(0.5)
    spans = []
    for size, place in ((9, down), (7, right)):
        edge, centre = int(np.float32(size) * cut), int(np.float32(size) * np.float32(place))
        spans.append(slice(int(np.clip(centre - edge // 2, 0, size)), int(np.clip(centre + edge // 2, 0, size))))
    expected = x.clone()
    expected[:, :, spans[0], spans[1]] = x[partner][:, :, spans[0], spans[1]]
    assert torch.equal(mixed, expected)
    box = (spans[0].stop - spans[0].start) * (spans[1].stop - spans[1].start)
    torch.testing.assert_close(shares, torch.full((4,), 1 - box / 63))


@pytest.mark.parametrize("concentration", [0.2, 1.0, 4.0])
def test_the_share_of_a_batch_follows_the_beta_distribution(concentration):
    found = [float(CutMix(concentration).numbers(0, [row, 3], [0, 0])[0]) for row in range(1500)]
    assert stats.kstest(found, stats.beta(concentration, concentration).cdf).pvalue > 1e-3


@given(st.lists(st.floats(0.001, 0.999), min_size=2, max_size=5))
def test_shares_are_quantiles(levels):
    np.testing.assert_allclose(stats.beta(0.6, 0.6).cdf(draw_shares(np.array(levels), 0.6)), levels, atol=1e-9)


@given(ids)
def test_partners_are_the_same_pairs_in_any_order_of_the_rows(rows):
    def pairs(own):
        return {(own[place], own[each]) for place, each in enumerate(draw_partners(3, own, [1] * len(own)).tolist())}

    assert pairs(rows) == pairs(sorted(rows))


def test_a_mixture_needs_a_positive_concentration():
    for kind in (Mixup, CutMix):
        with pytest.raises(ValueError, match="must be positive"):
            kind(0.0)


# ---- embeddings ----


def rows_of(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(batch, 5, 3, generator=generator)
    lengths = torch.randint(1, 6, (batch,), generator=generator)
    return embeddings, (torch.arange(5) < lengths[:, None]).long()


def test_mixup_against_a_slow_loop():
    embeddings, mask = rows_of(6)
    partner, share = torch.tensor([3, 0, 2, 1, 5, 4]), torch.tensor([0.3, 0.9, 0.5, 0.25, 1.0, 0.0])
    mixed, real = mixup(embeddings, mask, partner, share)
    for i, (j, part) in enumerate(zip(partner.tolist(), share.tolist(), strict=True)):
        for place in range(5):
            terms = [(weight, embeddings[row, place]) for row, weight in ((i, part), (j, 1 - part)) if mask[row, place]]
            assert bool(real[i, place]) == any(weight > 0 for weight, _ in terms)
            if real[i, place]:
                assert torch.allclose(mixed[i, place], sum(weight * each for weight, each in terms), atol=1e-6)


@given(st.integers(1, 6), st.integers(0, 50))
def test_a_share_of_1_gives_the_row_itself_exactly(batch, seed):
    embeddings, mask = rows_of(batch, seed)
    partner = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    mixed, real = mixup(embeddings, mask, partner, torch.ones(batch))
    assert torch.equal(mixed, embeddings)
    assert torch.equal(real, mask)
    mixed, real = mixup(embeddings, mask, partner, torch.zeros(batch))
    assert torch.equal(real, mask[partner])
    assert torch.equal(mixed[real.bool()], embeddings[partner][real.bool()])


def test_mixup_hides_padding_and_passes_gradients():
    embeddings, mask = rows_of(4)
    partner, share = torch.tensor([1, 2, 3, 0]), torch.full((4,), 0.7)
    mixed, real = mixup(embeddings, mask, partner, share)
    spoilt = embeddings.masked_fill(mask[..., None] == 0, torch.nan)
    assert torch.equal(mixup(spoilt, mask, partner, share)[0][real.bool()], mixed[real.bool()])
    leaf = embeddings.clone().requires_grad_()
    mixup(leaf, mask, partner, share)[0][real.bool()].sum().backward()
    assert torch.allclose(leaf.grad, mask[..., None].expand_as(leaf) * 1.0), "0.7 as itself and 0.3 as a partner"


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=12, unique=True), st.integers(0, 3))
def test_shares_belong_to_rows_and_partners_to_the_set_of_rows(rows, draw):
    draws = np.full(len(rows), draw)
    partner, share = draw_mixup(1, np.array(rows), draws, 0.4)
    assert ((share >= 0) & (share <= 1)).all()
    assert sorted(partner.tolist()) == list(range(len(rows)))
    assert all(each != place for place, each in enumerate(partner.tolist()))
    order = np.argsort(rows)
    again, shares = draw_mixup(1, np.array(rows)[order], draws, 0.4)
    assert torch.equal(shares, share[order])
    named = {rows[place]: rows[each] for place, each in enumerate(partner.tolist())}
    assert named == {rows[order[place]]: rows[order[each]] for place, each in enumerate(again.tolist())}
    assert torch.equal(draw_mixup(1, rows[:1], draws[:1], 0.4)[1], share[:1])


@pytest.mark.parametrize("concentration", [0.2, 1.0, 4.0])
def test_shares_follow_the_beta_distribution(concentration):
    rows = np.arange(3000)
    _, share = draw_mixup(0, rows, np.zeros(3000, dtype=int), concentration)
    assert stats.kstest(share.double().numpy(), stats.beta(concentration, concentration).cdf).pvalue > 1e-3


def test_a_row_alone_is_mixed_with_itself():
    embeddings, mask = rows_of(1)
    partner, share = draw_mixup(0, [4], [0], 1.0)
    assert partner.tolist() == [0]
    assert torch.allclose(mixup(embeddings, mask, partner, share)[0], embeddings)


def test_labels_are_mixed_as_the_rows_are():
    found = mix_labels(torch.tensor([0, 2, 2]), torch.tensor([1, 2, 0]), torch.tensor([0.75, 0.5, 1.0]), 3)
    assert torch.equal(found, torch.tensor([[0.75, 0.0, 0.25], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]))


def test_arguments_of_mixup_are_checked():
    embeddings, mask = rows_of(3)
    with pytest.raises(ValueError, match="does not fit embeddings"):
        mixup(embeddings, mask[:, :4], torch.arange(3), torch.ones(3))
    with pytest.raises(ValueError, match="3 rows need as many"):
        mixup(embeddings, mask, torch.arange(2), torch.ones(3))
    with pytest.raises(ValueError, match="must be positive"):
        draw_mixup(0, [1], [0], 0.0)
