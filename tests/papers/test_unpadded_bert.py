"""Boosting Distributed Training Performance of the Unpadded BERT Model (arXiv 2208.08124): balance and equivalence."""

import json
import time
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from kdbench.data.balance import deal, imbalance, imbalance_bound, length_groups, work
from kdbench.data.exchange import Exchange
from kdbench.losses.language import CrossEntropy, masked_token_cross_entropy

ORDERS = ["dealt", "snake", "greedy"]
LENGTHS = (20 + 492 * np.sin(1.7 * np.arange(16) + 0.3) ** 2).astype(int)
DEALT = [[10, 6, 15, 7], [8, 14, 5, 0], [12, 3, 2, 11], [1, 4, 13, 9]]


def test_the_example_is_dealt_as_in_the_paper():
    assert LENGTHS.tolist() == [62, 426, 158, 313, 281, 188, 400, 83, 484, 25, 511, 31, 474, 97, 382, 208]
    assert deal(LENGTHS, 4, "dealt").tolist() == DEALT
    totals = {order: LENGTHS[deal(LENGTHS, 4, order)].sum(1).tolist() for order in ORDERS}
    assert totals["dealt"] == [1202, 1116, 976, 829]
    assert totals["snake"] == [1025, 1016, 1076, 1006]
    assert totals["greedy"] == [1025, 1016, 1036, 1046]
    assert LENGTHS.reshape(4, 4).sum(1).tolist() == [959, 952, 1051, 1161]  # tiny batches can get worse by dealing


def test_the_first_rank_of_the_example_has_three_groups():
    assert length_groups(LENGTHS[DEALT[0]]) == [(0, 0, 2, 911, 512), (2, 911, 1, 208, 256), (3, 1119, 1, 83, 128)]


def imbalances(ranks, per_rank, draws=200):
    """max / mean of 200 global batches of log-normal lengths; never above the bound."""
    generator = np.random.default_rng(ranks * per_rank)
    as_they_come = np.arange(ranks * per_rank).reshape(ranks, per_rank)
    found = {order: [] for order in ("random", *ORDERS)}
    for _ in range(draws):
        lengths = np.clip(np.exp(generator.normal(np.log(204.8), 0.7, ranks * per_rank)), 8, 512)
        found["random"].append(imbalance(lengths, as_they_come))
        for order in ORDERS:
            found[order].append(imbalance(lengths, deal(lengths, ranks, order)))
            assert found[order][-1] <= imbalance_bound(lengths, ranks)
    return {order: np.array(values) for order, values in found.items()}


@pytest.mark.parametrize(
    ("ranks", "per_rank", "published"),
    [
        (2, 16, {"random": 1.079, "dealt": 1.032, "snake": 1.008, "greedy": 1.002}),
        (8, 8, {"random": 1.299, "dealt": 1.104, "snake": 1.026, "greedy": 1.007}),
        (8, 56, {"random": 1.112, "dealt": 1.016, "snake": 1.001, "greedy": 1.0004}),
    ],
)
def test_the_table_of_balance(ranks, per_rank, published):
    for order, values in imbalances(ranks, per_rank).items():
        error = values.std() * (2 / len(values)) ** 0.5  # of a difference: both means are over as many draws
        rounding = 0.5 * 10.0 ** -len(str(published[order]).partition(".")[2])
        assert abs(values.mean() - published[order]) < rounding + 3 * error


@pytest.mark.parametrize("ranks", [2, 8, 56])
def test_dealing_balances_any_number_of_ranks(ranks):
    mean = {order: values.mean() for order, values in imbalances(ranks, 56, draws=50).items()}
    print(f"\n{ranks} ranks of 56:", {order: round(float(value), 4) for order, value in mean.items()})
    assert mean["greedy"] < mean["snake"] < 1.002 < mean["dealt"] < 1.02 < mean["random"]


def test_the_imbalance_of_the_papers_dealing_falls_like_one_over_the_batch():
    small, large = (imbalances(8, per_rank)["dealt"].mean() - 1 for per_rank in (8, 32))
    assert small / large == pytest.approx(4, rel=0.1)


global_batches = st.tuples(st.integers(1, 6), st.integers(1, 8)).flatmap(
    lambda shape: st.tuples(
        st.just(shape[0]), st.lists(st.integers(1, 512), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    )
)


@given(global_batches, st.sampled_from(ORDERS), st.sampled_from([(1.0, 0.0), (0.0, 1.0), (6.0, 0.01)]))
def test_every_dealing_is_a_balanced_partition(batch, order, cost):
    ranks, lengths = batch
    dealing = deal(lengths, ranks, order, cost)
    assert dealing.shape == (ranks, len(lengths) // ranks)
    assert sorted(dealing.flatten().tolist()) == list(range(len(lengths)))
    assert (np.diff(np.array(lengths)[dealing], axis=1) <= 0).all()
    totals = work(lengths, cost)[dealing].sum(1)
    assert np.ptp(totals) <= np.ptp(work(lengths, cost)) + 1e-6
    assert imbalance(lengths, dealing, cost) <= imbalance_bound(lengths, ranks, cost) + 1e-9
    if order == "dealt":
        assert (np.diff(totals) <= 0).all()
    for rank in dealing:
        groups = length_groups(np.array(lengths)[rank])
        assert len(groups) <= 4
        assert sum(group.sequences for group in groups) == len(rank)


@given(st.permutations(range(12)), st.sampled_from([1, 2, 3, 4, 6]))
def test_no_redistribution_changes_the_global_loss_or_its_gradient(order, ranks):
    features = torch.sin(0.7 * torch.arange(12 * 5 * 6, dtype=torch.float64)).reshape(12, 5, 6)
    weight = torch.cos(0.3 * torch.arange(6 * 9, dtype=torch.float64)).reshape(6, 9).requires_grad_()
    labels = torch.arange(60).reshape(12, 5) % 9
    labels[torch.arange(60).reshape(12, 5) % 7 < 5] = -100
    whole = masked_token_cross_entropy(features @ weight, labels)
    divisor = int((labels >= 0).sum()) / ranks
    of_rank = torch.tensor(order).reshape(ranks, -1)
    losses = [masked_token_cross_entropy(features[rows] @ weight, labels[rows], divisor=divisor) for rows in of_rank]
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(mean, whole, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(value, weight)[0] for value in (mean, whole)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


STEPS, PER_RANK, VOCABULARY, SIZES = 30, 8, 1000, (64, 128, 192, 256)


def stream(rank):
    """Batches of masked sequences of up to 256 tokens, of one rank's own shard."""
    generator = np.random.default_rng(rank)
    for _ in range(STEPS):
        batch = []
        for length in np.clip(np.exp(generator.normal(np.log(102.4), 0.7, PER_RANK)), 8, 256).astype(int):
            ids = (VOCABULARY * generator.random(length) ** 3).astype(int)
            masked = generator.random(length) < 0.15
            batch.append({"input_ids": np.where(masked, 0, ids), "labels": np.where(masked, ids, -100)})
        yield batch


class GroupedBert(nn.Module):
    """A small BERT that takes a batch sorted by length in groups of like length, each padded to its own size."""

    def __init__(self):
        from transformers import BertConfig, BertForMaskedLM  # here: only the slow test can spare the seconds

        super().__init__()
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=256,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.bert = BertForMaskedLM(config)

    def forward(self, batch):
        logits = []
        for group in length_groups([len(each["input_ids"]) for each in batch], SIZES):
            sequences = batch[group.first_sequence : group.first_sequence + group.sequences]
            ids = np.zeros((group.sequences, group.padded_length), dtype=np.int64)
            mask = np.zeros_like(ids)
            for row, each in enumerate(sequences):
                ids[row, : len(each["input_ids"])] = each["input_ids"]
                mask[row, : len(each["input_ids"])] = 1
            mask = torch.from_numpy(mask)
            logits.append(self.bert(input_ids=torch.from_numpy(ids), attention_mask=mask).logits[mask.bool()])
        return torch.cat(logits)


def trained(batches):
    """Loss, tokens and seconds of every step; seconds are of this thread, which does not work while it waits."""
    torch.manual_seed(0)
    model = DistributedDataParallel(GroupedBert())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    loss = CrossEntropy(over_ranks=True)
    record = []
    for batch in batches:
        started = time.thread_time()
        value = loss(model(batch), torch.from_numpy(np.concatenate([each["labels"] for each in batch])))
        optimizer.zero_grad()
        value.backward()
        seconds = time.thread_time() - started
        optimizer.step()
        record.append([float(value.detach()), sum(len(each["input_ids"]) for each in batch), seconds])
    return record


def longest_first(batch):
    return sorted(batch, key=lambda each: -len(each["input_ids"]))


def run(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    trained(islice(stream(rank), 2))  # the first steps of a process are slow
    found = {"own": trained(map(longest_first, stream(rank))), "exchanged": trained(Exchange(stream(rank)))}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_learn_the_same_with_the_exchange_and_wait_less(tmp_path):
    multiprocessing.spawn(run, args=(tmp_path,), nprocs=2)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    losses, tokens, seconds = ({arm: [] for arm in ranks[0]} for _ in range(3))
    for arm in ranks[0]:
        losses[arm], tokens[arm], seconds[arm] = np.array([rank[arm] for rank in ranks]).transpose(2, 0, 1)
        for unit, each in (("tokens", tokens[arm]), ("milliseconds", 1000 * seconds[arm])):
            print(f"{arm}: {each.max(0).mean():.1f} {unit} a step on the busiest rank, {each.mean():.1f} on average")
    print(f"largest difference of the losses: {np.abs(losses['own'].mean(0) - losses['exchanged'].mean(0)).max():.1e}")
    assert losses["own"].shape == (2, STEPS)
    np.testing.assert_allclose(losses["exchanged"].mean(0), losses["own"].mean(0), rtol=0, atol=1e-5)
    assert losses["own"].mean(0)[-1] < losses["own"].mean(0)[0] - 0.2
    assert (tokens["own"].sum(0) == tokens["exchanged"].sum(0)).all()
    assert tokens["exchanged"].max(0).mean() < 0.97 * tokens["own"].max(0).mean()
