"""Speculative decoding as a test: its counts, its exactness, and what it is held against."""

import pytest
import torch
from small_language import SMALL, WIDE, data, student, trainer

from kdbench.errors import UserError
from kdbench.methods.speculative_decoding import SpeculativeDecoding
from kdbench.models.generation import Sampling
from kdbench.models.origins import FromConfig
from kdbench.models.speculative import Lenience, block_efficiency


def network(**changes):
    return FromConfig("GPT2LMHeadModel", WIDE | changes)


def decoded(folder, draft=None, end=False, **settings):
    module = SpeculativeDecoding(draft or student(), network(), **{"prompts": 12} | settings)
    (found,) = trainer(1, folder).test(module, datamodule=data(end=end), verbose=False)
    return module, {name.removeprefix("test/"): value for name, value in found.items()}


@pytest.mark.parametrize("end", [False, True])
def test_decoding_is_exact_and_counted(end, tmp_path):
    torch.manual_seed(0)
    module, found = decoded(tmp_path, network(n_embd=8), end=end, block=3)
    assert found["mismatches@student"] == 0
    assert found["law_pvalue@student"] > 1e-3
    assert 1 <= found["block_efficiency@student"] <= 4
    alpha = found["acceptance@teacher"]
    assert found["expected_block_efficiency@student"] == pytest.approx(block_efficiency(alpha, 3), rel=1e-5)
    times = module.times
    assert times["teacher"].tokens <= 12 * 10
    assert found["speed_up@student"] == pytest.approx(
        times["teacher"].seconds / times["teacher"].tokens / (times["both"].seconds / times["both"].tokens), rel=1e-5
    )
    assert found["expected_speed_up@student"] == pytest.approx(
        block_efficiency(alpha, 3) / (3 * found["cost@student"] + 1), rel=1e-5
    )


def test_only_so_many_prompts_are_decoded(tmp_path):
    module, _ = decoded(tmp_path, prompts=5)
    assert module.times["both"].tokens == 5 * 10


def test_a_lenient_rule_takes_more_and_its_text_is_not_the_targets(tmp_path):
    torch.manual_seed(0)
    _, exact = decoded(tmp_path, network(n_embd=8), prompts=60)
    torch.manual_seed(0)
    _, lenient = decoded(tmp_path, network(n_embd=8), prompts=60, lenience=Lenience(0.2))
    assert lenient["taken_share@student"] > exact["taken_share@student"]
    assert lenient["law_pvalue@student"] < 1e-3 < exact["law_pvalue@student"]
    assert lenient["mismatches@student"] == 0, "greedy decoding is compared with the exact rule"


def test_acceptance_is_that_of_the_laws_that_text_is_drawn_from(tmp_path):
    torch.manual_seed(0)
    _, found = decoded(tmp_path, network(n_embd=8), sampling=Sampling(temperature=0.0))
    assert 0 < found["acceptance@teacher"] < 1
    assert found["entropy@teacher"] == 0
    assert found["law_pvalue@student"] > 1e-3


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="a block has a token or more"):
        SpeculativeDecoding(student(), network(), block=0)
    with pytest.raises(UserError, match=r"The draft has another vocabulary \(40 tokens\) than its target \(27\)"):
        decoded(tmp_path, FromConfig("GPT2LMHeadModel", SMALL | {"vocab_size": 40}))
