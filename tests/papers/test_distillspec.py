"""DistillSpec (arXiv 2310.08461): what the draft is trained for, and what it promises of speculative decoding.

The rules of decoding themselves have their numbers in ``tests/models/test_speculative.py``.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.losses.divergences import TotalVariation
from kdbench.methods.generative import GenerativeDistillation
from kdbench.metrics.decoding import TokenDistances
from kdbench.models.origins import FromConfig
from kdbench.models.speculative import acceptance, block_efficiency, speed_up


def wave(shape, step, phase):
    return (2 * torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


TARGET, DRAFT = wave((5, 6), 0.37, 0.1), wave((4, 6), 0.41, 0.3)
BETAS = [0.87380479, 0.93726207, 0.92241350, 0.61724145]
seeds = st.integers(0, 10_000)


def test_the_metric_gives_the_acceptance_rate_and_what_follows_from_it():
    metric = TokenDistances()
    metric.update(DRAFT, TARGET[:4])
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found["acceptance"] == pytest.approx(0.83768045, abs=1e-8)
    assert found["acceptance"] == pytest.approx(sum(BETAS) / 4, abs=1e-8)
    assert found["total_variation"] == pytest.approx(1 - 0.83768045, abs=1e-8)
    assert block_efficiency(found["acceptance"], 4) == pytest.approx(3.61959139, abs=1e-7)
    assert speed_up(found["acceptance"], 4, 0.1) == pytest.approx(2.58542242, abs=1e-7)


def test_the_loss_on_text_of_the_target_is_what_the_acceptance_rate_lacks_to_one():
    """Total variation over whole sequences of one length: to minimise it is to maximise the acceptance rate."""
    student, teacher = (FromConfig("GPT2LMHeadModel", {}) for _ in range(2))
    objective = GenerativeDistillation(
        student, teacher, {"teacher": 1.0}, divergence=TotalVariation(), reduction="sequence"
    ).objective
    p, q = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predicts = torch.ones(3, 5, dtype=torch.bool)
    batch = {"predicts": predicts, "per_sequence": predicts / 5}
    loss = objective({"logits": q}, {"teacher": {"logits": p}}, batch)["divergence"]
    alpha = acceptance(p.softmax(-1), q.softmax(-1)).sum() / predicts.sum()
    torch.testing.assert_close(loss, 1 - alpha)


@given(seeds, st.integers(1, 6))
def test_an_expected_block_lies_between_one_token_and_the_whole_block(seed, block):
    alpha = float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
    found = block_efficiency(alpha, block)
    assert found == pytest.approx(sum(alpha**each for each in range(block + 1)))
    assert 1 <= found <= block + 1
    assert speed_up(alpha, block, 0.0) == pytest.approx(found)


@given(seeds)
def test_little_total_variation_on_the_drafts_own_text_bounds_the_acceptance_rate(seed):
    """``E[alpha] >= 1 - T e`` for texts of T tokens whose expected loss on the draft's own text is e, by enumeration."""
    generator, words, length = torch.Generator().manual_seed(seed), 3, 3
    target_of, draft_of = {}, {}

    def laws(text):
        if text not in target_of:
            logits = torch.randn(words, generator=generator, dtype=torch.float64)
            target_of[text] = logits.softmax(-1)
            noise = 0.2 * torch.randn(words, generator=generator, dtype=torch.float64)
            draft_of[text] = (logits + noise).softmax(-1)
        return target_of[text], draft_of[text]

    own, taken = 0.0, 0.0
    reached = {(): (1.0, 1.0)}
    for _ in range(length):
        following = {}
        for text, (by_target, by_draft) in reached.items():
            p, q = laws(text)
            beta = float(acceptance(p, q))
            own += by_draft * (1 - beta) / length
            taken += by_target * beta / length
            following |= {
                (*text, word): (by_target * float(p[word]), by_draft * float(q[word])) for word in range(words)
            }
        reached = following
    assert taken >= 1 - length * own - 1e-12
