"""Retrieval scores against scikit-learn and loops, over batches and processes."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score
from torch import distributed, multiprocessing

from kdbench.metrics.retrieval import RetrievalScore, gold_ranks, rank_scores

seeds = st.integers(0, 10_000)


def drawn(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def told(pairs):
    metric = RetrievalScore()
    for batch in pairs:
        metric.update(batch)
    return {name: float(value) for name, value in metric.compute().items()}


@given(seeds, st.integers(1, 9), st.integers(0, 9), st.booleans())
@settings(deadline=None)
def test_scores_equal_scikit_learn_also_with_ties(seed, queries, more, ties):
    scores = drawn(seed, queries, queries + more + 1)
    if ties:
        scores = scores.round()
    gold = torch.randint(scores.shape[1], (queries,), generator=torch.Generator().manual_seed(seed))
    relevant = torch.eye(scores.shape[1])[gold].numpy()
    found = rank_scores(gold_ranks(scores, gold), cutoffs=(1, 3))
    precision = label_ranking_average_precision_score(
        relevant, scores.numpy()
    )  # the worst rank of equal scores, as here
    assert float(found["mrr"]) == pytest.approx(precision, abs=1e-12)
    if not ties:
        assert float(found["ndcg"]) == pytest.approx(ndcg_score(relevant, scores.numpy()), abs=1e-12)
        place = np.argsort(-scores.numpy(), 1)
        for k in (1, 3):
            hits = [int(gold[row]) in place[row, :k] for row in range(queries)]
            assert float(found[f"recall_{k}"]) == pytest.approx(np.mean(hits))


def test_the_gold_candidate_comes_last_of_equals():
    assert gold_ranks(torch.zeros(3, 5)).tolist() == [5, 5, 5]
    collapsed = torch.ones(4, 2, 3)
    assert told([collapsed])["mrr"] == 1 / 4, "a network that gives all texts one vector finds nothing"


@given(seeds, st.lists(st.integers(1, 12), min_size=1, max_size=20).map(lambda cuts: np.cumsum(cuts).tolist()))
@settings(deadline=None, max_examples=30)
def test_the_pool_is_the_whole_corpus_however_it_is_cut(seed, ends):
    pairs = drawn(seed, ends[-1], 2, 4)
    batches = pairs.tensor_split(ends[:-1])
    assert told(batches) == told([pairs])
    unit = pairs.numpy() / np.linalg.norm(pairs.numpy(), axis=-1, keepdims=True)
    cosine = unit[:, 0] @ unit[:, 1].T
    expected = label_ranking_average_precision_score(np.eye(len(cosine)), cosine) if len(cosine) > 1 else 1.0
    assert told([pairs])["mrr"] == pytest.approx(expected, abs=1e-6)


def test_lengths_of_vectors_do_not_count():
    pairs = drawn(0, 20, 2, 4)
    assert told([pairs * torch.rand(20, 2, 1).add(0.1)]) == told([pairs])


def test_many_pairs_are_scored_in_parts(monkeypatch):
    pairs = drawn(1, 50, 2, 4)
    whole = told([pairs])
    monkeypatch.setattr("kdbench.metrics.retrieval.CHUNK", 7)
    assert told([pairs]) == whole


def test_mistakes():
    with pytest.raises(ValueError, match="a candidate for each query"):
        gold_ranks(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"must lie in 0..2"):
        gold_ranks(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="NaN"):
        gold_ranks(torch.full((1, 1), torch.nan))
    with pytest.raises(ValueError, match="pairs of vectors"):
        RetrievalScore().update(torch.zeros(2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics' own, of a metric without rows
        assert all(value.isnan() for value in RetrievalScore().compute().values())


SIZES = {"unequal": [[7, 2, 11], [5]], "one without pairs": [[], [9, 4]]}


def batches(process, sizes):
    return [drawn(100 * process + place, size, 2, 6) for place, size in enumerate(sizes)]


def run(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {name: told(batches(rank, sizes[rank])) for name, sizes in SIZES.items()}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    multiprocessing.spawn(run, args=(tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for name, sizes in SIZES.items():
        alone = told([batch for rank in (0, 1) for batch in batches(rank, sizes[rank])])
        assert first[name] == second[name] == pytest.approx(alone)
