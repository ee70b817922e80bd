import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForMaskedLM

from kdbench.errors import UserError
from kdbench.models.origins import quiet
from kdbench.models.packed import PackedBatch
from kdbench.models.packed_attention import BACKENDS, alibi_slopes
from kdbench.models.packed_encoder import (
    FeedForward,
    PackedEncoder,
    PackedEncoderConfig,
    PackedEncoderForMaskedLM,
    PackedLayer,
)
from kdbench.models.taps import Taps

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
}
OPTIONS = [{}, {"position": "alibi"}, {"feed_forward": "geglu"}, {"position": "alibi", "feed_forward": "geglu"}]


def encoder(kind=PackedEncoder, **options):
    torch.manual_seed(0)
    return kind(PackedEncoderConfig(**SIZES | options)).double().eval()


def view_of(*lengths, side="right"):
    place = torch.arange(max(lengths))
    mask = (place if side == "right" else place.flip(0)) < torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(1, 40, mask.shape, generator=generator)
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


def g(shape, a, phase):
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase).view(shape)


def fill(network, phase):
    """Give every parameter the values with which the wanted outputs were computed."""
    number = 0
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            base = 1.0 if isinstance(module, torch.nn.LayerNorm) and name == "weight" else 0.0
            parameter.data = base + 0.08 * g(parameter.shape, 0.37, phase + number)
            number += 1
    return network


@pytest.mark.parametrize("options", OPTIONS)
@given(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=5), side=st.sampled_from(["right", "left"]))
@settings(max_examples=10)
def test_packed_and_padded_encoders_are_equal_in_values_and_gradients(options, lengths, side):
    view = view_of(*lengths, side=side)
    padding = view["attention_mask"] == 0
    padded = encoder(attention_backend="padded", **options)
    wanted = padded(**view).last_hidden_state
    weights = g(wanted.shape, 0.7, 0.3)
    (wanted * weights).sum().backward()
    for backend in ("auto", "loop", "docmask"):
        packed = encoder(attention_backend=backend, **options)
        found = packed(**view).last_hidden_state
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        assert found[padding].abs().sum() == 0
        (found * weights).sum().backward()
        for one, other in zip(packed.parameters(), padded.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("flex", "varlen")])
def test_single_precision_agrees_to_five_digits(backend):
    view = view_of(8, 3, 5, 1)
    wanted = encoder()(**view).last_hidden_state
    found = encoder(attention_backend=backend).float()(**view).last_hidden_state
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)


def test_it_is_a_bert():
    ours = encoder()
    bert = transformers.BertModel(
        transformers.BertConfig(**SIZES, type_vocab_size=1, attention_probs_dropout_prob=0.0), add_pooling_layer=False
    )
    bert = bert.double().eval()
    state = bert.state_dict()
    with torch.no_grad():
        state["embeddings.token_type_embeddings.weight"].zero_()
        for name, module in (("word_embeddings", "word_embeddings"), ("position_embeddings", "position_embeddings")):
            state[f"embeddings.{name}.weight"].copy_(getattr(ours, module).weight)
        for number, layer in enumerate(ours.layers):
            stem = f"encoder.layer.{number}."
            parts = layer.attention.Wqkv.weight.chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                state[f"{stem}attention.self.{name}.weight"].copy_(part)
            state[f"{stem}attention.output.dense.weight"].copy_(layer.attention.out.weight)
            state[f"{stem}intermediate.dense.weight"].copy_(layer.feed_forward.up.weight)
            state[f"{stem}output.dense.weight"].copy_(layer.feed_forward.down.weight)
    view = view_of(8, 3, 5)
    wanted = bert(**view).last_hidden_state * view["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(ours(**view).last_hidden_state, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS)
def test_padding_changes_nothing(options):
    network, view = encoder(**options), view_of(6, 2, 4)
    wanted = network(**view).last_hidden_state
    other = dict(view, input_ids=view["input_ids"].masked_fill(view["attention_mask"] == 0, 7))
    assert torch.equal(network(**other).last_hidden_state, wanted)
    wider = {name: torch.nn.functional.pad(value, (2, 3)) for name, value in view.items()}
    torch.testing.assert_close(network(**wider).last_hidden_state[:, 2:8], wanted, rtol=0, atol=1e-12)


def test_without_a_mask_every_token_is_real_and_a_batch_may_come_packed_already():
    network, view = encoder(), view_of(5, 5)
    wanted = network(**view).last_hidden_state
    assert torch.equal(network(view["input_ids"]).last_hidden_state, wanted)
    view = view_of(5, 2)
    packed = PackedBatch.of(view["attention_mask"])
    assert torch.equal(network(view["input_ids"], packed=packed).last_hidden_state, network(**view).last_hidden_state)
    assert packed._plans


def test_a_batch_that_is_used_again_plans_nothing_again():
    network, view = encoder(position="alibi"), view_of(5, 2)
    packed = PackedBatch.of(view["attention_mask"])
    outputs = [network(view["input_ids"], packed=packed).last_hidden_state for _ in range(2)]
    assert torch.equal(*outputs)
    assert len(packed._plans) == 2  # the slopes, and the buckets of all layers


@pytest.mark.parametrize("options", [{"hidden_dropout_prob": 0.5}, {"attention_probs_dropout_prob": 0.5}])
@pytest.mark.parametrize("backend", ["padded", "auto"])
def test_dropout_acts_in_training_only(options, backend):
    view = view_of(6, 4)
    network = encoder(attention_backend=backend, **{"hidden_dropout_prob": 0.0} | options)
    assert torch.equal(network(**view).last_hidden_state, network(**view).last_hidden_state)
    network.train()
    assert not torch.equal(network(**view).last_hidden_state, network(**view).last_hidden_state)


def test_alibi_has_no_positions_to_run_out_of():
    network = encoder(position="alibi")
    assert network.position_embeddings is None
    assert network(**view_of(30, 7)).last_hidden_state.shape == (2, 30, 16)


@pytest.mark.parametrize("kind", [PackedEncoder, PackedEncoderForMaskedLM])
@pytest.mark.parametrize("options", OPTIONS)
def test_saved_and_loaded_by_the_auto_classes_it_gives_equal_outputs(tmp_path, kind, options):
    network, view = encoder(kind, **options), view_of(6, 2, 4)
    loader = AutoModel if kind is PackedEncoder else AutoModelForMaskedLM
    with quiet():
        network.save_pretrained(tmp_path)
        loaded = loader.from_pretrained(tmp_path)
        bare = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is kind
    assert torch.equal(loaded.eval()(**view)[0], network(**view)[0])
    assert torch.equal(bare.eval()(**view)[0], network.base_model(**view)[0])


def test_the_head_may_be_wanted_for_chosen_tokens_only():
    network, view = encoder(PackedEncoderForMaskedLM), view_of(6, 2, 4)
    logits = network(**view).logits
    assert logits.shape == (3, 6, 40)
    assert logits[view["attention_mask"] == 0].abs().sum() == 0
    positions = torch.tensor([12, 0, 7, 0])
    chosen = network(**view, positions=positions).logits
    torch.testing.assert_close(chosen, logits.flatten(0, 1)[positions], rtol=0, atol=1e-12)


def test_a_hook_on_the_encoder_may_choose_the_tokens():
    network, view = encoder(PackedEncoderForMaskedLM), view_of(6, 2, 4)
    logits = network(**view).logits
    rows = torch.zeros(3, 6, dtype=torch.bool)
    rows[0, 3] = rows[2, 1] = True

    def choose(module, inputs, output):
        output.last_hidden_state = output.last_hidden_state[rows]
        return output

    network.base_model.register_forward_hook(choose)
    torch.testing.assert_close(network(**view).logits, logits[rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_parameter_has_a_gradient_and_the_head_is_tied(options):
    network = encoder(PackedEncoderForMaskedLM, **options)
    network(**view_of(6, 2)).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network.decoder.weight is network.get_input_embeddings().weight
    apart = encoder(PackedEncoderForMaskedLM, tie_word_embeddings=False)
    assert apart.decoder.weight is not apart.get_input_embeddings().weight


def test_taps_read_packed_states_inside_and_the_padded_one_at_the_end():
    network, view = encoder(PackedEncoderForMaskedLM), view_of(6, 2, 4)
    values = Taps(network, ["hidden_states.1", "query.0", "hidden_states.-1", "logits"])(view)
    assert values["hidden_states.1"].shape == values["query.0"].shape == (12, 16)
    assert torch.equal(values["hidden_states.-1"], network.base_model(**view).last_hidden_state)


def test_a_gated_feed_forward_of_known_weights():
    config = PackedEncoderConfig(**SIZES | {"hidden_size": 4, "intermediate_size": 6, "feed_forward": "geglu"})
    block = torch.nn.Sequential(FeedForward(config), torch.nn.LayerNorm(4, eps=1e-12)).double().eval()
    fill(block, 0.1)
    states = g((5, 4), 0.5, 0.1)
    out = block[1](states + block[0](states)).detach()
    assert out[0].tolist() == pytest.approx([-1.63340888, -0.24257937, 0.62752752, 0.84733482], abs=1e-8)
    assert float(out.square().sum()) == pytest.approx(18.74969836, abs=1e-8)


@pytest.mark.parametrize("backend", ["padded", "auto", "loop", "docmask"])
def test_two_layers_of_known_weights(backend):
    options = {"hidden_size": 8, "intermediate_size": 12, "position": "alibi", "feed_forward": "geglu"}
    network = encoder(attention_backend=backend, **options)
    layers = fill(network.layers, 0.2)
    packed = PackedBatch.of(torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))
    states = g((2, 5, 8), 0.37, 0.2)
    states = states if backend == "padded" else packed.pack(states)
    for layer in layers:
        assert isinstance(layer, PackedLayer)
        states = layer(states, packed, alibi_slopes(2))
    out = states * packed.mask.unsqueeze(-1) if backend == "padded" else packed.unpack(states)
    out = out.detach()
    assert out[0, 0, :4].tolist() == pytest.approx([-1.80458176, -0.39300077, 0.65286285, 1.00613002], abs=1e-8)
    assert out[[0, 1], [2, 4], 0].tolist() == pytest.approx([-2.19104237, 1.66889696], abs=1e-8)
    assert float(out.abs().sum()) == pytest.approx(56.72484115, abs=1e-8)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"attention_backend": "bukket"}, "Did you mean 'bucket'"),
        ({"position": "rotary"}, "'position' cannot be 'rotary'. There are: learnt, alibi"),
        ({"feed_forward": "gegelu"}, "'feed_forward' cannot be 'gegelu'. Did you mean 'geglu'"),
        ({"num_attention_heads": 3}, "3 heads do not divide a hidden_size of 16"),
    ],
)
def test_wrong_options_are_told(options, told):
    with pytest.raises(UserError, match=told):
        PackedEncoderConfig(**SIZES | options)
