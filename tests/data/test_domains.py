import json
from collections import Counter

import numpy as np
import pytest
from fit_of_one_step import ready
from hypothesis import given
from hypothesis import strategies as st

from kdbench.data.base import Rows
from kdbench.data.causal_tokenizers import TrainWords
from kdbench.data.domains import DomainBatches, DomainMixture
from kdbench.data.samplers import GroupedBatches, ResumableLoader
from kdbench.errors import UserError
from kdbench.models.origins import FromConfig, FromRun

DOMAINS = np.array([0] * 50 + [1] * 30 + [2] * 20)
SHARES = np.array([0.1, 0.3, 0.6])
LLAMA = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}


def batches(epoch=0, start=0, shares=SHARES, **changes):
    told = {"rows": len(DOMAINS), "batch_size": 8, "seed": 3, "draws": 1} | changes
    sampler = DomainBatches(domains=DOMAINS, shares=np.asarray(shares), **told)
    sampler.set_epoch(epoch)
    sampler.start = start
    return sampler


def rows_of(sampler):
    return [row for batch in sampler for row, _ in batch]


# ---- the sampler ----


@given(st.integers(0, 5), st.integers(0, 1000), st.integers(0, 12))
def test_an_epoch_is_a_function_of_seed_epoch_and_place(epoch, seed, start):
    whole = list(batches(epoch, seed=seed))
    assert list(batches(epoch, start, seed=seed)) == whole[start:]
    assert sum(map(len, whole)) == len(DOMAINS)
    assert rows_of(batches(epoch, seed=seed, batch_size=100)) == list(batches(epoch, seed=seed, batch_size=100).order())


def test_domains_come_as_often_as_the_mixture_says():
    found = Counter(DOMAINS[row] for epoch in range(200) for row in rows_of(batches(epoch)))
    drawn = sum(found.values())
    for domain, share in enumerate(SHARES):
        assert found[domain] / drawn == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / drawn))
    orders = np.array([DOMAINS[batches(epoch).order()] for epoch in range(400)])
    assert np.abs((orders == 2).mean(0) - 0.6).max() < 0.12, "at every place alike"


@given(st.integers(0, 100))
def test_a_domain_without_a_share_never_comes(seed):
    assert set(DOMAINS[rows_of(batches(seed=seed, shares=[0.5, 0.0, 0.5]))]) <= {0, 2}


@given(st.integers(0, 50))
def test_all_rows_of_a_domain_come_before_one_comes_again(epoch):
    order = batches(epoch, shares=[0.0, 0.2, 0.8]).order()
    twenty = order[DOMAINS[order] == 2]
    for first in range(0, len(twenty) - 20, 20):
        assert len(set(twenty[first : first + 20])) == 20
    counts = Counter(twenty)
    assert max(counts.values()) - min(counts.get(row, 0) for row in range(80, 100)) <= 1


@given(st.integers(2, 4), st.integers(0, 20))
def test_the_ranks_share_out_what_one_process_sees(world, epoch):
    kept = len(DOMAINS) - len(DOMAINS) % world
    ranks = [batches(epoch, rank=rank, world=world, batch_size=4) for rank in range(world)]
    steps = [sorted(row for batch in step for row, _ in batch) for step in zip(*ranks, strict=True)]
    one = batches(epoch, batch_size=4 * world, world=1)
    one.kept = kept
    assert steps == [sorted(row for row, _ in batch) for batch in one]


def test_a_pass_goes_on_in_the_middle_of_an_epoch():
    def loader():
        return ResumableLoader(Rows(list(range(len(DOMAINS)))), batch_sampler=batches(), collate_fn=list)

    first = loader()
    seen = iter(first)
    begun = [next(seen) for _ in range(5)]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert begun + list(second) == list(loader())


def test_without_domains_nothing_has_changed():
    """What other data sets see of the sampler: each row once, in an order that is the argsort of named numbers."""
    assert sorted(rows_of(GroupedBatches(50, 8))) == list(range(50))
    np.testing.assert_array_equal(np.sort(GroupedBatches(50, 8).order()), np.arange(50))


# ---- the data module ----


def fitted(**changes):
    """Fit a very small model for one step on a mixture and return the data."""
    told = {"tokenizer": TrainWords(), "batch_size": 8, "max_length": 49, "target": "target", "end": False} | changes
    return ready(DomainMixture("synthetic/markov_domains", **told), student=FromConfig("LlamaForCausalLM", LLAMA))


def seen(data):
    items = data.items["train"]
    return Counter(items[row]["domain"] for row in rows_of(data.train_dataloader().batch_sampler))


def test_training_rows_are_drawn_by_the_weights(tmp_path):
    data = fitted(weights={"first": 0.7, "harmful": 0.3})
    found = seen(data)
    assert set(found) == {"first", "harmful"}
    assert found["first"] / 8000 == pytest.approx(0.7, abs=0.03)
    batch = next(iter(data.train_dataloader()))
    assert set(batch["inputs"]) == {"input_ids", "attention_mask", "position_ids"}
    assert {item["domain"] for item in data.items["test"]} == {"target"}
    (tmp_path / "trees.json").write_text(json.dumps({"first": 0.7, "harmful": 0.3}))
    assert seen(fitted(weights=FromRun("x.yaml", file="trees.json", run=str(tmp_path)))) == found


def test_without_weights_each_row_comes_once():
    data = fitted()
    assert sorted(rows_of(data.train_dataloader().batch_sampler)) == list(range(8000))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"first": 0.5}}, r"data\.weights: the shares sum to 0\.5"),
        ({"weights": {"first": 1.5, "second": -0.5}}, r"data\.weights: the share of 'second' is -0\.5"),
        ({"weights": {"firts": 1.0}}, r"data\.weights: there is no domain 'firts'.* Did you mean 'first'"),
        ({"target": "targt"}, r"data\.target: the split 'validation' .* has no domain 'targt'.* Did you mean 'target'"),
        ({"domain": "source_of"}, "The rows have no field 'source_of'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(changes, message):
    with pytest.raises(UserError, match=message) as raised:
        fitted(**changes)
    assert "\n" not in str(raised.value)
