"""Speculative decoding: its rule to the digit, its law by enumeration, its text against plain decoding."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel

from kdbench.errors import UserError
from kdbench.models.generation import Sampling, draw, generate
from kdbench.models.speculative import (
    Lenience,
    acceptance,
    accepted,
    block_efficiency,
    output_law,
    residual,
    speculate,
    speed_up,
)


def wave(count, a, phase):
    return 2 * torch.sin(a * torch.arange(count, dtype=torch.float64) + phase)


P = wave(30, 0.37, 0.1).reshape(5, 6).softmax(-1)
Q = wave(24, 0.41, 0.3).reshape(4, 6).softmax(-1)


def close(found, expected, tolerance=1e-8):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=0, atol=tolerance)


def test_acceptance_and_what_follows_from_it():
    betas = acceptance(P[:4], Q)
    close(betas, [0.87380479, 0.93726207, 0.92241350, 0.61724145])
    alpha = float(betas.mean())
    assert alpha == pytest.approx(0.83768045, abs=1e-8)
    assert alpha == pytest.approx(1 - float(0.5 * (P[:4] - Q).abs().sum(-1).mean()))
    assert block_efficiency(alpha, 4) == pytest.approx(3.61959139, abs=1e-8)
    assert speed_up(alpha, 4, 0.1) == pytest.approx(2.58542242, abs=1e-8)
    assert block_efficiency(1.0, 4) == 5


def test_the_rule_of_acceptance():
    tokens, uniforms = torch.tensor([1, 4, 3, 0]), torch.tensor([0.30, 0.55, 0.95, 0.20])
    places = torch.arange(4)
    close(P[places, tokens] / Q[places, tokens], [0.69770843, 0.88027553, 0.90824345, 0.26072449])
    assert accepted(P, Q, tokens, uniforms) == 2
    left = residual(P[2], Q[2])
    close(left, [0.48159423, 0.34142415, 0.17698163, 0, 0, 0])
    assert int(draw(left, torch.tensor(0.5))) == 1


@pytest.mark.parametrize(
    ("rule", "law"),
    [
        ("linear", [0.04772966, 0.09670439, 0.17332569, 0.25148414, 0.24654142, 0.18421469]),
        ("square", [0.05303296, 0.10744932, 0.19258410, 0.25434695, 0.23290593, 0.15968074]),
        ("exponential", [0.05884747, 0.11110147, 0.18784295, 0.25217859, 0.23083489, 0.15919462]),
    ],
)
def test_the_law_of_a_lenient_rule(rule, law):
    close(output_law(P[0], Q[0], Lenience(0.9, rule)), law)
    torch.testing.assert_close(output_law(P[0], Q[0], Lenience(1.0, rule)), P[0])


@given(st.integers(0, 10_000), st.floats(0.1, 1.0))
def test_what_comes_out_is_the_targets_law_and_at_most_its_lenient_share(seed, e):
    generator = torch.Generator().manual_seed(seed)
    target, draft = (3 * torch.randn(2, 7, generator=generator, dtype=torch.float64)).softmax(-1)
    torch.testing.assert_close(output_law(target, draft), target)
    lenient = output_law(target, draft, Lenience(e))
    torch.testing.assert_close(lenient.sum(), torch.ones((), dtype=torch.float64))
    assert (lenient <= target / e + 1e-12).all()
    assert accepted(target.repeat(3, 1), target.repeat(3, 1), torch.tensor([1, 2, 3]), torch.rand(3)) == 3
    apart = torch.eye(7, dtype=torch.float64)
    assert accepted(apart[:1], apart[1:2], torch.tensor([1]), torch.tensor([0.0])) == 0
    torch.testing.assert_close(residual(apart[0], apart[1]), apart[0])


# -- by enumeration: three symbols, laws that depend on the whole prefix


def prefixes(length):
    return {
        prefix: number
        for number, prefix in enumerate(
            prefix for count in range(length + 1) for prefix in itertools.product(range(3), repeat=count)
        )
    }


NUMBER = prefixes(4)


def law(a, phase, step, prefix):
    return (2 * torch.sin(a * torch.arange(3, dtype=torch.float64) + phase + step * NUMBER[prefix])).softmax(-1)


def target_law(prefix):
    return law(0.9, 0.2, 0.31, prefix)


def draft_law(prefix):
    return law(1.1, 0.5, 0.47, prefix)


def block_outcomes(prefix, block):
    """Yield every way a block of drafts may end: (tokens that come out, probability)."""
    for drafted in itertools.product(range(3), repeat=block):
        weight, sofar = 1.0, prefix
        for token in drafted:
            p, q = target_law(sofar), draft_law(sofar)
            taken = min(1.0, float(p[token] / q[token]))
            refused = weight * float(q[token]) * (1 - taken)
            for other, share in enumerate(residual(p, q).tolist()):
                # The drafts after a refusal do not matter: their probabilities sum to one over the loop.
                rest = 3 ** (block - 1 - (len(sofar) - len(prefix)))
                yield (*sofar, other), refused * share / rest
            weight, sofar = weight * float(q[token]) * taken, (*sofar, token)
        for other, share in enumerate(target_law(sofar).tolist()):
            yield (*sofar, other), weight * share


def exact_law(prefix, length, block):
    """Return the law of the first tokens that come out."""
    found, open_ = {}, {prefix: 1.0}
    while open_:
        grown = {}
        for start, weight in open_.items():
            for text, share in block_outcomes(start, min(block, length - len(start) - 1)):
                ready = found if len(text) >= length else grown
                ready[text] = ready.get(text, 0.0) + weight * share
        open_ = grown
    return found


def test_the_law_of_whole_texts_is_the_targets():
    joint = {
        text: float(target_law(())[text[0]] * target_law(text[:1])[text[1]] * target_law(text[:2])[text[2]])
        for text in itertools.product(range(3), repeat=3)
    }
    found = exact_law((), 3, 2)
    assert joint[0, 1, 2] == pytest.approx(0.00245705, abs=1e-8)
    assert found.keys() == joint.keys()
    assert max(abs(found[text] - joint[text]) for text in joint) < 1e-12


@pytest.mark.parametrize(("block", "expected"), [(2, 2.21388749), (3, 2.42489655)])
def test_the_efficiency_of_a_block(block, expected):
    total = 1.0
    for count in range(1, block + 1):
        for text in itertools.product(range(3), repeat=count):
            taken = 1.0
            for place, token in enumerate(text):
                taken *= float(torch.minimum(target_law(text[:place]), draft_law(text[:place]))[token])
            total += taken
    assert total == pytest.approx(expected, abs=1e-8)
    mean = sum(share * len(text) for text, share in block_outcomes((), block))
    assert mean == pytest.approx(expected, abs=1e-8)


# -- with networks


def network(seed, width=16, vocabulary=11):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=40,
        n_embd=width,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).double().eval()


@pytest.mark.parametrize("block", [1, 3, 6])
def test_greedy_decoding_gives_the_targets_own_text(block):
    target, draft = network(0), network(1, 8)
    for start in range(5):
        prompt = torch.tensor([start, 3])
        plain = generate(target, prompt[None], torch.ones(1, 2), torch.zeros(1, 20), Sampling(temperature=0.0))
        found = speculate(target, draft, prompt, 20, block, Sampling(temperature=0.0))
        assert found.tokens.tolist() == plain.tokens[0].tolist()
        assert found.calls <= 20
        assert found.taken <= found.drafted
        assert len(found.tokens) == found.taken + found.calls


def test_a_draft_that_is_the_target_is_always_taken():
    target = network(0)
    found = speculate(target, target, torch.tensor([1, 2]), 15, 4, generator=torch.Generator().manual_seed(0))
    assert found.taken == found.drafted == 12
    assert found.calls == 3


def test_an_end_inside_a_block_ends_the_text():
    target = network(0)
    greedy = Sampling(temperature=0.0)
    whole = speculate(target, target, torch.tensor([1, 2]), 15, 4, greedy).tokens.tolist()
    end = whole[6]
    found = speculate(target, target, torch.tensor([1, 2]), 15, 4, greedy, end=end).tokens.tolist()
    assert found == whole[: whole.index(end) + 1]


@pytest.mark.slow
def test_the_law_of_drawn_text_is_the_targets():
    target, draft = network(0, vocabulary=4), network(1, 8, vocabulary=4)
    generator = torch.Generator().manual_seed(0)
    counts = np.zeros(16)
    for _ in range(4000):
        first, second = speculate(target, draft, torch.tensor([1]), 2, 2, generator=generator).tokens.tolist()
        counts[4 * first + second] += 1
    with torch.no_grad():
        one = target(torch.tensor([[1]])).logits[0, -1].softmax(-1)
        two = target(torch.tensor([[1, first] for first in range(4)])).logits[:, -1].softmax(-1)
    expected = (one[:, None] * two).flatten().numpy() * counts.sum()
    assert chisquare(counts, expected).pvalue > 1e-3


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"another vocabulary \(5 tokens\) than its target \(11\)"):
        speculate(network(0), network(1, vocabulary=5), torch.tensor([1]), 3)
    with pytest.raises(UserError, match="a block and a prompt of at least 1"):
        speculate(network(0), network(1), torch.tensor([1]), 3, block=0)
    with pytest.raises(UserError, match=r"There is no lenience 'sqare'\. Did you mean 'square'"):
        Lenience(0.5, "sqare")
    with pytest.raises(UserError, match=r"in \(0, 1\]"):
        Lenience(0.0)
