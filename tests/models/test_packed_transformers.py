import copy

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.errors import UserError
from kdbench.models.packed import PackedBatch
from kdbench.models.packed_transformers import ATTENTION, check_packable, pack_view, run_packed
from kdbench.models.taps import Taps

TEXT = {"vocab_size": 40, "max_position_embeddings": 16, "pad_token_id": 1}
SIZES = TEXT | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DISTILBERT = TEXT | {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
HEADED = [
    "BertForMaskedLM",
    "BertForTokenClassification",
    "CamembertForMaskedLM",
    "DistilBertForMaskedLM",
    "DistilBertForTokenClassification",
    "ElectraForMaskedLM",
    "ElectraForPreTraining",
    "RobertaForMaskedLM",
    "RobertaForTokenClassification",
    "XLMRobertaForMaskedLM",
]
BARE = ["BertModel", "DistilBertModel", "ElectraModel", "RobertaModel"]


def network_of(architecture, **changes):
    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    sizes = DISTILBERT if architecture.startswith("Distil") else SIZES
    network = kind(kind.config_class(**sizes | changes)).double().eval()
    if getattr(network.base_model, "pooler", None) is not None:
        network.base_model.pooler = None
    return network


def view_of(*lengths, side="right"):
    place = torch.arange(max(lengths))
    mask = (place if side == "right" else place.flip(0)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(2, 40, mask.shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long()}


def value_and_gradients(network, output, mask):
    value = next(iter(output.values()))
    real = value[mask.bool()]
    weights = torch.sin(torch.arange(real.numel(), dtype=real.dtype)).view_as(real)
    network.zero_grad()
    (real * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    return real.detach(), value[~mask.bool()].detach(), gradients


@pytest.mark.parametrize("architecture", HEADED + BARE)
@given(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=5), side=st.sampled_from(["right", "left"]))
@settings(max_examples=5)
def test_packed_calls_give_the_values_and_gradients_of_padded_ones(architecture, lengths, side):
    network, view = network_of(architecture), view_of(*lengths, side=side)
    wanted, _, wanted_gradients = value_and_gradients(network, network(**view), view["attention_mask"])
    found, padding, gradients = value_and_gradients(network, run_packed(network, view), view["attention_mask"])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert padding.abs().sum() == 0
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=0, atol=1e-12, msg=name)


def test_what_belongs_to_tokens_is_packed_with_them_and_the_loss_stays():
    network, view = network_of("BertForMaskedLM"), view_of(6, 2, 4)
    view["token_type_ids"] = (torch.arange(6) > 1).long().expand(3, -1)
    view["labels"] = view["input_ids"].masked_fill(view["attention_mask"] == 0, -100)
    wanted, found = network(**view), run_packed(network, view)
    assert type(found) is type(wanted)
    torch.testing.assert_close(found.loss, wanted.loss, rtol=0, atol=1e-12)
    assert found.logits.shape == wanted.logits.shape


def test_hidden_states_are_unpacked_too():
    network, view = network_of("BertModel", output_hidden_states=True), view_of(6, 2)
    wanted, found = network(**view).hidden_states, run_packed(network, view).hidden_states
    assert len(found) == len(wanted) == 3
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one[1, :2], other[1, :2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_network_stays_as_it_was(attention):
    network, view = network_of("BertForMaskedLM", attn_implementation=attention), view_of(6, 2)
    config, wanted = copy.deepcopy(network.config.to_dict()), network(**view).logits
    run_packed(network, view)
    with pytest.raises(IndexError):
        run_packed(network, dict(view, input_ids=view["input_ids"] + 40))
    assert network.config._attn_implementation == attention
    assert network.config.to_dict() == config
    assert torch.equal(network(**view).logits, wanted)


def test_a_network_may_attend_so_for_good_and_is_called_padded_as_before(tmp_path):
    network, view = network_of("DistilBertForMaskedLM"), view_of(6, 2)
    wanted = network(**view).logits
    network.set_attn_implementation(ATTENTION)
    assert torch.equal(network(**view).logits, wanted)
    packed, inputs = pack_view(network, view)
    row = Taps(network, ["hidden_states.1", "logits"])(inputs)
    assert row["hidden_states.1"].shape == (1, 8, 16)
    torch.testing.assert_close(packed.unpack(row["logits"][0])[1, :2], wanted[1, :2], rtol=0, atol=1e-12)
    network.save_pretrained(tmp_path)
    assert type(network).from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_recomputed_layers_need_the_attention_for_good():
    network, view = (
        network_of("BertForMaskedLM", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        view_of(6, 2),
    )
    _, _, wanted = value_and_gradients(network, network(**view), view["attention_mask"])
    network.gradient_checkpointing_enable()
    network.train()
    with pytest.raises(
        UserError, match=r"recomputes its layers .* call network.set_attn_implementation\('kdbench_packed'\)"
    ):
        run_packed(network, view)
    network.set_attn_implementation(ATTENTION)
    _, _, found = value_and_gradients(network, run_packed(network, view), view["attention_mask"])
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-12, msg=name)


def test_dropout_acts_in_training_only():
    network, view = (
        network_of("BertForMaskedLM", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5),
        view_of(6, 2),
    )
    assert torch.equal(run_packed(network, view).logits, run_packed(network, view).logits)
    network.train()
    assert not torch.equal(run_packed(network, view).logits, run_packed(network, view).logits)


def test_roberta_counts_positions_from_its_padding():
    network = network_of("RobertaModel")
    packed, inputs = pack_view(network, view_of(4, 2))
    assert isinstance(packed, PackedBatch)
    assert inputs["position_ids"].tolist() == [[2, 3, 4, 5, 2, 3]]
    assert pack_view(network_of("BertModel"), view_of(4, 2))[1]["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1]]


@pytest.mark.parametrize(
    ("architecture", "changes", "told"),
    [
        ("DebertaV2Model", {}, "in other encoders than bert, .*relative positions"),
        ("AlbertModel", {"embedding_size": 8}, "AlbertModel cannot be packed: in other encoders"),
        ("GPT2Model", {"n_embd": 16, "n_layer": 1, "n_head": 2}, "GPT2Model cannot be packed"),
        ("BertForMaskedLM", {"is_decoder": True}, "as a decoder: its attention is causal"),
        ("BertForSequenceClassification", {}, "its head is not one for each token.* pack its encoder, 'bert', alone"),
        ("RobertaForSequenceClassification", {}, "pack its encoder, 'roberta', alone"),
        ("DistilBertForQuestionAnswering", {}, "pack its encoder, 'distilbert', alone"),
        ("BertForPreTraining", {}, "its head is not one for each token"),
    ],
)
def test_what_cannot_be_packed_is_told(architecture, changes, told):
    with pytest.raises(UserError, match=told):
        check_packable(network_of(architecture, **changes))


def test_a_pooler_and_a_plain_module_are_told_too():
    with pytest.raises(UserError, match="with its pooler, which reads the first token of a row"):
        check_packable(transformers.BertModel(transformers.BertConfig(**SIZES)))
    with pytest.raises(UserError, match="Linear cannot be packed"):
        check_packable(torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="this one has: left, right"):
        pack_view(network_of("BertModel"), {"left": None, "right": None})
