"""Distances of next-token laws over texts, and the score of speculative decoding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr
from scipy.stats import kstest

from kdbench.metrics.decoding import DecodingScore, TokenDistances, law_places
from kdbench.models.generation import draw
from kdbench.models.speculative import Lenience, acceptance, output_law

seeds = st.integers(0, 10_000)


def logits(seed, rows=6, words=5, scale=2.0):
    return scale * torch.randn(2, rows, words, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seeds)
def test_distances_are_those_of_scipy_and_one_minus_the_acceptance(seed):
    student, target = logits(seed)
    metric = TokenDistances()
    metric.update(student[:2], target[:2])
    metric.update(student[2:], target[2:])
    found = metric.compute()
    q, p = student.softmax(-1).numpy(), target.softmax(-1).numpy()
    assert float(found["kl"]) == pytest.approx(rel_entr(p, q).sum(-1).mean())
    assert float(found["reverse_kl"]) == pytest.approx(rel_entr(q, p).sum(-1).mean())
    assert float(found["total_variation"]) == pytest.approx(abs(p - q).sum(-1).mean() / 2)
    assert float(found["acceptance"]) == pytest.approx(1 - float(found["total_variation"]))
    taken = acceptance(torch.from_numpy(p), torch.from_numpy(q)).mean()
    assert float(found["acceptance"]) == pytest.approx(float(taken))
    assert float(found["entropy"]) == pytest.approx(float(torch.special.entr(torch.from_numpy(q)).sum(-1).mean()))
    assert float(found["target_entropy"]) == pytest.approx(
        float(torch.special.entr(torch.from_numpy(p)).sum(-1).mean())
    )


def test_a_token_counts_as_much_in_a_short_text_as_in_a_long_one():
    student, target = logits(0)
    betas = acceptance(target.softmax(-1), student.softmax(-1))
    metric = TokenDistances()
    for rows in (slice(0, 1), slice(1, 6)):
        metric.update(student[rows], target[rows])
    ratio_of_sums, mean_of_means = betas.mean(), (betas[0] + betas[1:].mean()) / 2
    assert float(metric.compute()["acceptance"]) == pytest.approx(float(ratio_of_sums))
    assert abs(float(ratio_of_sums - mean_of_means)) > 1e-3


def test_words_that_a_law_does_not_have():
    """Laws that were cut (top-p) come as logarithms with minus infinity."""
    student = torch.tensor([[0.5, 0.5, 0.0]]).log()
    target = torch.tensor([[1.0, 0.0, 0.0]]).log()
    metric = TokenDistances()
    metric.update(student, target)
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found["kl"] == pytest.approx(torch.log(torch.tensor(2.0)))
    assert found["reverse_kl"] == float("inf")
    assert found["acceptance"] == pytest.approx(0.5)
    assert found["target_entropy"] == 0


def places(law, seed, rows=4000):
    """Return the places of tokens that are drawn from a law of the target and the draft at each position."""
    draft, target = (each.softmax(-1) for each in logits(seed, rows))
    generator = torch.Generator().manual_seed(1000 + seed)
    tokens = draw(law(target, draft), torch.rand(rows, generator=generator))
    return law_places(target, draft, tokens, torch.rand(rows, generator=generator).double())


def test_places_are_uniform_for_the_law_of_the_target_and_for_no_other():
    exact = [kstest(places(output_law, seed).numpy(), "uniform").pvalue for seed in range(20)]
    assert min(exact) > 1e-3
    assert kstest(exact, "uniform").pvalue > 1e-3, "so is the level of the test"
    lenient = places(lambda target, draft: output_law(target, draft, Lenience(0.8)), 0)
    assert kstest(lenient.numpy(), "uniform").pvalue < 1e-4
    assert kstest(places(lambda target, draft: draft, 0).numpy(), "uniform").pvalue < 1e-10


@given(seeds)
def test_the_places_of_all_tokens_fill_the_interval(seed):
    draft, target = (each.softmax(-1) for each in logits(seed, rows=1))
    tokens = torch.arange(5)
    ends = [
        law_places(target.expand(5, 5), draft.expand(5, 5), tokens, torch.full((5,), v).double()) for v in (0.0, 1.0)
    ]
    order = ends[0].argsort()
    torch.testing.assert_close(ends[0][order][1:], ends[1][order][:-1])
    torch.testing.assert_close(ends[1] - ends[0], target[0])


def test_the_score_counts_tokens_and_calls():
    score = DecodingScore()
    uniform = torch.linspace(0.01, 0.99, 50)
    score.update(10, 4, 12, 6, uniform, 0)
    score.update(6, 4, 8, 2, uniform, 3)
    found = score.compute()
    assert found["block_efficiency"] == 2.0
    assert found["taken_share"] == 0.4
    assert found["mismatches"] == 3
    assert found["law_pvalue"] == pytest.approx(kstest(uniform.repeat(2).numpy(), "uniform").pvalue)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"two logits \[N, V\]"):
        TokenDistances().update(torch.zeros(2, 3), torch.zeros(2, 4))
