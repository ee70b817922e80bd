"""Simulated quantisation: what of a network is rounded and what is not, in which range, and that it is saved and opened."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from kdbench.compression.quantisers import Grid, Quantiser
from kdbench.errors import UserError
from kdbench.models.folding import matrix
from kdbench.models.origins import FromFolder
from kdbench.models.quantised import KINDS, quantise, round_weights, roundings, set_mode
from kdbench.models.quantised_folder import describe
from tests.models.test_folding import MASK, NETWORKS, VIEW, network, told

WEIGHTS, ACTIVATIONS = Quantiser(4, False, "channel"), Quantiser(4, symmetric=False)


def quantised(name, mode="batch", weights=WEIGHTS, activations=ACTIVATIONS):
    made = network(name)
    quantise(made, weights, activations)
    set_mode(made, mode, MASK)
    return made


def linears(made):
    return {path for path, module in made.named_modules() if isinstance(module, nn.Linear | Conv1D)}


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_keep_their_names_and_nothing_is_rounded_before_its_time(name):
    plain, made = network(name), quantised(name, "off")
    assert dict(made.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    assert type(made) is type(plain)
    torch.testing.assert_close(told(made), told(plain), rtol=0, atol=1e-5)
    assert not told(made).equal(told(quantised(name)))


@pytest.mark.parametrize(
    ("name", "left"), [("gpt2", {"lm_head"}), ("roberta", {"lm_head.decoder"}), ("bert", set()), ("llama", {"lm_head"})]
)
def test_every_linear_layer_is_quantised_but_the_output_embeddings(name, left):
    made = quantised(name)
    rounded = {path for path, module in made.named_modules() if type(module) in KINDS.values()}
    assert linears(made) - rounded == left
    products = {path.rpartition(".")[2] for path in roundings(made) if not path.endswith(".rounding")}
    assert products == {"query", "key", "value", "probabilities"}


def test_an_attention_layer_is_that_of_its_rounded_parts():
    """One block of BERT by hand: its layers, norms and sums in full precision, everything that is multiplied rounded."""
    made = quantised("bert")
    attention = made.bert.encoder.layer[0].attention
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(1, 5, 16, generator=generator, dtype=torch.float64)
    set_mode(attention, "batch", torch.ones(1, 5))
    with torch.no_grad():
        found = attention(states, None)[0]

        def linear(layer, values):
            return functional.linear(ACTIVATIONS(values), WEIGHTS(layer.weight), layer.bias)

        inner = attention.self
        query, key, value = (
            ACTIVATIONS(linear(layer, states)).view(5, 4, 4).transpose(0, 1)
            for layer in (inner.query, inner.key, inner.value)
        )
        weights = ACTIVATIONS((query @ key.transpose(1, 2) / 2).softmax(-1))
        context = (weights @ value).transpose(0, 1).reshape(1, 5, 16)
        output = attention.output
        expected = output.LayerNorm(linear(output.dense, context) + states)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "bert"])
def test_padding_decides_no_range(name):
    """The values of padding, and how much of it there is, change nothing of what real tokens are told."""
    made = quantised(name)
    shown = told(made)
    other = VIEW | {"input_ids": VIEW["input_ids"].where(MASK.bool(), torch.tensor(49))}
    torch.testing.assert_close(told(made, other), shown)
    longer = {key: functional.pad(value, (0, 4), value=0) for key, value in VIEW.items()}
    set_mode(made, "batch", longer["attention_mask"])
    torch.testing.assert_close(told(made, longer), shown)


@pytest.mark.parametrize("activations", [Quantiser(6, False, "token"), Quantiser(6, False, "group", 8)])
def test_fine_ranges_leave_what_attention_multiplies_alone(activations):
    made = quantised("llama", "fixed", Quantiser(8, False, "group", 8), activations)
    assert made.config._attn_implementation == "sdpa"
    assert all(path.endswith("proj.rounding") for path in roundings(made))
    assert not any(key.endswith(("low", "high")) for key in made.state_dict()), "what is seen at hand is its own range"
    layer = made.model.layers[0].mlp.down_proj
    values = torch.randn(2, 3, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(values), functional.linear(activations(values), layer.weight))


def test_a_fixed_range_is_clipped_at_its_ends():
    made = quantised("bert", "fixed")
    rounding = made.classifier.rounding
    rounding.low.fill_(-1.0), rounding.high.fill_(2.0)
    values = torch.tensor([-5.0, -0.55, 0.0, 1.95, 7.0], dtype=torch.float64)
    found = rounding(values)
    torch.testing.assert_close(found, Grid(4, False).rounded(values, torch.tensor(-1.0), torch.tensor(2.0)))
    assert found.tolist() == pytest.approx([-1.0, -0.6, 0.0, 2.0, 2.0], abs=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_rounded_weights_lie_on_few_values_a_row(name):
    made, plain = quantised(name), network(name)
    round_weights(made)
    for path, module in made.named_modules():
        if type(module) not in KINDS.values():
            continue
        whole = matrix(plain.get_submodule(path))
        torch.testing.assert_close(matrix(module), WEIGHTS(whole))
        assert all(len(row.unique()) <= 16 for row in matrix(module).detach())


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "bert", "electra"])
def test_a_saved_network_is_opened_by_transformers_own_classes(name, tmp_path):
    made = quantised(name, "fixed").float()
    generator = torch.Generator().manual_seed(2)
    for each in roundings(made).values():
        low, high = torch.rand(2, generator=generator) * 3
        each.low.copy_(-low), each.high.copy_(high)
    round_weights(made)
    describe(made, WEIGHTS, ACTIVATIONS)
    made.save_pretrained(tmp_path)
    for again in (type(made).from_pretrained(tmp_path), FromFolder(str(tmp_path)).build().eval()):
        assert type(again) is type(made)
        torch.testing.assert_close(told(again), told(made))
    again.save_pretrained(tmp_path / "twice")
    torch.testing.assert_close(told(FromFolder(str(tmp_path / "twice")).build().eval()), told(made))
    FromFolder(str(tmp_path), architecture="AutoModel").build()


def test_mistakes_are_told():
    made = quantised("bert")
    with pytest.raises(UserError, match="This BertForSequenceClassification is quantised already"):
        quantise(made, WEIGHTS, ACTIVATIONS)
    with pytest.raises(UserError, match=r"The 16 inputs of the layer '.*query' cannot be cut into groups of 5"):
        quantise(network("bert"), Quantiser(4, part="group", size=5), ACTIVATIONS)
    with pytest.raises(UserError, match="2 to 16 bits, not 17"):
        quantise(network("bert"), Quantiser(17), ACTIVATIONS)
    with pytest.raises(UserError, match="cannot be folded"):
        quantise(nn.Linear(2, 2), WEIGHTS, ACTIVATIONS)
