"""Calibration: real tokens, running ranges, and what a module is called with."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from kdbench.compression.calibration import RunningRange, observed_ranges, reached, real_tokens, spread_tokens
from kdbench.errors import UserError

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1]])
VIEW = {"input_ids": torch.arange(12).view(3, 4), "attention_mask": MASK}


def small():
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8}
    return GPT2LMHeadModel(GPT2Config(**sizes)).eval()


def test_real_tokens_of_every_shape():
    values = torch.randn(3, 4, 6)
    rows = torch.stack([values[row, place] for row, place in MASK.nonzero().tolist()])
    assert real_tokens(values, MASK).equal(rows)
    assert real_tokens(values.flatten(0, 1), MASK).equal(rows), "OPT lays the tokens of a batch in one row"
    heads = values.view(3, 4, 2, 3).transpose(1, 2)
    assert real_tokens(heads, MASK).equal(rows)
    assert len(real_tokens(torch.randn(3, 6), MASK)) == 3, "a vector a text"
    assert len(real_tokens(values, None)) == 12
    spread = spread_tokens(rows, values, MASK)
    assert real_tokens(spread, MASK).equal(rows)
    assert not real_tokens(spread, 1 - MASK).any()
    assert spread_tokens(values.flatten(0, 1), values, None).equal(values)


@given(st.integers(0, 10_000), st.floats(0.05, 1.0))
def test_a_running_range_is_the_mean_of_each_batchs_ends(seed, quantile):
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(rows, 5, generator=generator) for rows in (7, 3, 11)]
    whole, clipped = RunningRange(), RunningRange(quantile)
    for batch in batches:
        whole.update(batch)
        clipped.update(batch)
    low, high = whole.ends()
    assert float(low) == pytest.approx(sum(float(batch.min()) for batch in batches) / 3, abs=1e-6)
    assert float(high) == pytest.approx(sum(float(batch.max()) for batch in batches) / 3, abs=1e-6)
    inner = clipped.ends()
    assert low - 1e-6 <= inner[0] and inner[1] <= high + 1e-6


def test_a_quantile_drops_the_tokens_that_reach_farthest():
    tokens = torch.zeros(11, 3)
    tokens[:, 1] = torch.arange(11.0)
    tokens[:, 2] = -2 * torch.arange(11.0)
    tokens[10] = torch.tensor([0.0, 1000.0, -1000.0])
    found = RunningRange(0.9)
    found.update(tokens)
    assert [float(end) for end in found.ends()] == pytest.approx([-18.0, 9.0])


def test_observed_ranges_are_those_of_real_tokens_in_full_precision():
    network = small()
    modules = {"first": network.transformer.h[0].mlp.c_fc, "second": network.transformer.h[1].attn}
    states = []
    modules["first"].register_forward_pre_hook(lambda module, inputs: states.append(inputs[0]))
    found = observed_ranges(network, modules, [VIEW, VIEW | {"input_ids": VIEW["input_ids"] + 5}])
    ends = [(values[MASK.bool()].min(), values[MASK.bool()].max()) for values in states]
    for side, end in enumerate(found["first"]):
        torch.testing.assert_close(end, torch.stack([each[side] for each in ends]).mean())
    assert not network.transformer.h[1].attn._forward_pre_hooks, "the hooks are gone"


def test_a_call_is_caught_and_repeated_with_other_states_and_weights():
    network = small()
    attention = network.transformer.h[1].attn
    call = reached(network, attention, VIEW)
    assert not attention._forward_pre_hooks
    with torch.no_grad():
        whole = attention(*call.positional, **call.named | {"cache": None})[0]
        for _ in range(2):  # no cache has grown
            torch.testing.assert_close(call.repeat(attention, call.states, {}), whole)
        context = call.repeat(attention, call.states, {}, attention.c_proj)
        torch.testing.assert_close(attention.c_proj(context), whole)
        nothing = {"c_attn.weight": torch.zeros(8, 24), "c_attn.bias": torch.zeros(24)}
        assert not call.repeat(attention, call.states, nothing, attention.c_proj).any()
        assert attention.c_attn.weight.any()


def test_mistakes_are_told():
    network = small()
    with pytest.raises(UserError, match="Calibration has shown nothing to 'head'"):
        observed_ranges(network, {"head": network.lm_head}, [])
    with pytest.raises(ValueError, match="there is no range"):
        RunningRange().ends()
    with pytest.raises(ValueError, match="lies in"):
        RunningRange(0.0)
    with pytest.raises(ValueError, match="GPT2LMHeadModel never calls this Linear"):
        reached(network, torch.nn.Linear(1, 1), VIEW)
