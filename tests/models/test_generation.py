"""Drawing text: against transformers' own generation, and alone as in a batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from kdbench.errors import UserError
from kdbench.models.generation import Sampling, draw, generate

SIZES = {"vocab_size": 13, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(n_positions=40, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5, **SIZES)
    return GPT2LMHeadModel(config).double()


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(max_position_embeddings=40, initializer_range=0.5, **sizes, **SIZES)).double()


PROMPTS = torch.tensor([[2, 2, 5, 6], [3, 4, 7, 8], [2, 9, 3, 3]])
MASK = (PROMPTS != 2).long()


@pytest.mark.parametrize("make", [gpt2, llama])
def test_the_most_probable_text_is_that_of_transformers(make):
    network = make()
    found = generate(network, PROMPTS, MASK, torch.zeros(3, 12), Sampling(temperature=0.0), end=1, padding=2)
    network.eval()
    expected = network.generate(PROMPTS, attention_mask=MASK, do_sample=False, max_new_tokens=12)[:, 4:]
    assert found.tokens[:, : expected.shape[1]].tolist() == expected.tolist()
    assert (found.tokens[~found.mask] == 2).all()


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_row_writes_the_same_alone_and_in_a_batch(make):
    network = make()
    uniforms = torch.rand(3, 10, generator=torch.Generator().manual_seed(0))
    together = generate(network, PROMPTS, MASK, uniforms, end=1, padding=2)
    for row in range(3):
        real = PROMPTS[row][MASK[row].bool()][None]
        alone = generate(network, real, torch.ones_like(real), uniforms[row : row + 1], end=1, padding=2)
        assert alone.tokens[0].tolist() == together.tokens[row].tolist()
        torch.testing.assert_close(alone.log_probabilities[0], together.log_probabilities[row])


def test_log_probabilities_are_those_of_a_forward_over_the_whole_text():
    network = gpt2()
    uniforms = torch.rand(3, 8, generator=torch.Generator().manual_seed(1))
    found = generate(network, PROMPTS[1:2], MASK[1:2], uniforms[:1])
    text = torch.cat([PROMPTS[1:2], found.tokens], 1)
    with torch.no_grad():
        logs = network.eval()(text).logits[:, 3:-1].log_softmax(-1)
    expected = logs.gather(-1, found.tokens[..., None]).squeeze(-1)
    torch.testing.assert_close(found.log_probabilities, expected.float(), rtol=1e-5, atol=1e-5)
    assert found.mask.all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mixture_is_drawn_from_token_by_token(share):
    network, other = gpt2(), llama()
    uniforms = torch.rand(3, 8, generator=torch.Generator().manual_seed(2))
    found = generate(network, PROMPTS, MASK, uniforms, mixed=(other, share))
    text = torch.cat([PROMPTS, found.tokens], 1)
    mask = torch.cat([MASK, torch.ones_like(found.tokens)], 1)
    view = {"input_ids": text, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with torch.no_grad():
        laws = [each.eval()(**view).logits[:, 3:-1].softmax(-1) for each in (network, other)]
    law = (1 - share) * laws[0] + share * laws[1]
    assert draw(law, uniforms).equal(found.tokens)
    logs = law.log().gather(-1, found.tokens[..., None]).squeeze(-1)
    torch.testing.assert_close(found.log_probabilities, logs.float(), rtol=1e-5, atol=1e-5)


def test_only_tokens_of_the_vocabulary_are_drawn():
    uniforms = torch.rand(3, 30, generator=torch.Generator().manual_seed(3))
    assert generate(gpt2(), PROMPTS, MASK, uniforms).tokens.max() >= 9
    assert generate(gpt2(), PROMPTS, MASK, uniforms, vocabulary=9).tokens.max() < 9


def test_the_network_is_left_as_it_was():
    network = gpt2().train()
    generate(network, PROMPTS, MASK, torch.zeros(3, 2))
    assert network.training


@given(st.integers(0, 10_000), st.integers(1, 7), st.floats(0.1, 1.0), st.floats(0.3, 3.0))
def test_distributions_are_cut_as_transformers_cuts_them(seed, top_k, top_p, temperature):
    logits = 2 * torch.randn(4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, logits / temperature))
    found = Sampling(temperature, top_k, top_p).probabilities(logits)
    torch.testing.assert_close(found, expected.softmax(-1))


def test_drawing_follows_the_distribution():
    law = torch.tensor([0.5, 0.0, 0.2, 0.3])
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(draw(law.expand(20_000, 4), uniforms), minlength=4)
    assert counts[1] == 0
    assert chisquare(counts[[0, 2, 3]], 20_000 * law[[0, 2, 3]].double().numpy()).pvalue > 1e-3
    assert draw(law, torch.tensor(0.999999999)).item() == 3


def test_mistakes_are_told():
    with pytest.raises(UserError, match="pad prompts on the left"):
        generate(gpt2(), PROMPTS, MASK.flip(1), torch.zeros(3, 2))
    with pytest.raises(UserError, match="a top_p in"):
        Sampling(top_p=0.0)
