import copy
import pickle

import pytest
import torch
import transformers
from torch import nn

from kdbench.errors import UserError
from kdbench.models.taps import Taps, check_view

TEXT = {"vocab_size": 40, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
NETWORKS = {
    "BertForMaskedLM": TEXT | SIZES,
    "BertModel": TEXT | SIZES,
    "RobertaForSequenceClassification": TEXT | SIZES,
    "DistilBertForMaskedLM": TEXT | {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    "GPT2LMHeadModel": TEXT | {"n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1},
    "LlamaForCausalLM": TEXT | SIZES,
    "ModernBertForMaskedLM": TEXT
    | SIZES
    | {"cls_token_id": 1, "sep_token_id": 1, "bos_token_id": 1, "eos_token_id": 1},
    "ViTForImageClassification": SIZES | {"image_size": 8, "patch_size": 4},
}


def network_of(architecture, **changes):
    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    return kind(kind.config_class(**NETWORKS[architecture] | changes)).eval()


def view_of(network):
    torch.manual_seed(1)
    if network.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 8, 8)}
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return {"input_ids": torch.randint(2, 40, (2, 5)), "attention_mask": mask}


@pytest.mark.parametrize("architecture", NETWORKS)
def test_hidden_states_equal_those_of_transformers(architecture):
    network = network_of(architecture)
    view = view_of(network)
    wanted = network(**view, output_hidden_states=True).hidden_states
    taps = Taps(network, [f"hidden_states.{i}" for i in range(-4, 4)] + ["embedding"])
    for training in (False, True):  # the same dropout masks in both forwards
        network.train(training)
        torch.manual_seed(2)
        wanted = network(**view, output_hidden_states=True).hidden_states
        torch.manual_seed(2)
        values = taps(view)
        assert len(wanted) == 4
        for i in range(-4, 4):
            assert torch.equal(values[f"hidden_states.{i}"], wanted[i]), i
        assert torch.equal(values["embedding"], wanted[0])


@pytest.mark.parametrize("architecture", NETWORKS)
def test_query_key_and_value_are_the_projections_of_the_layer_input(architecture):
    network = network_of(architecture)
    view = view_of(network)
    values = Taps(network, [f"{name}.{i}" for name in ("query", "key", "value") for i in (0, 1, -1)])(view)
    assert values["query.0"].shape[-1] == 32
    assert torch.equal(values["value.-1"], Taps(network, ["value.2"])(view)["value.2"])
    assert not torch.equal(values["key.0"], values["key.1"])
    wanted = {
        "BertModel": ("encoder.layer.1.attention.self.query", "encoder.layer.1.attention.self.value"),
        "DistilBertForMaskedLM": (
            "distilbert.transformer.layer.1.attention.q_lin",
            "distilbert.transformer.layer.1.attention.v_lin",
        ),
        "GPT2LMHeadModel": ("transformer.h.1.attn.c_attn",) * 2,
        "ModernBertForMaskedLM": ("model.layers.1.attn.Wqkv",) * 2,
    }.get(architecture)
    if wanted:
        whole = Taps(network, wanted)(view)
        assert torch.equal(values["query.1"], whole[wanted[0]][..., :32])
        assert torch.equal(values["value.1"], whole[wanted[1]][..., -32:])


def test_queries_and_keys_give_the_attention_of_the_layer():
    network = network_of("BertModel", attn_implementation="eager")
    view = view_of(network)
    values = Taps(network, ["query.1", "key.1"])(view)
    query, key = (values[name].view(2, 5, 4, 8).transpose(1, 2) for name in ("query.1", "key.1"))
    scores = query @ key.transpose(-1, -2) / 8**0.5
    scores = scores.masked_fill(view["attention_mask"][:, None, None] == 0, -torch.inf)
    torch.testing.assert_close(scores.softmax(-1), network(**view, output_attentions=True).attentions[1])


def test_fields_of_the_output_and_modules():
    network = network_of("BertForMaskedLM")
    view = view_of(network)
    names = [
        "logits",
        "cls",
        "cls.predictions.decoder",
        "cls.predictions.decoder.input",
        "bert",
        "bert.encoder.layer.0.input",
    ]
    values = Taps(network, [*names, "embedding"])(view)
    assert list(values) == [*names, "embedding"]
    logits = network(**view).logits
    assert torch.equal(values["logits"], logits)
    assert torch.equal(values["cls"], logits)
    assert torch.equal(values["cls.predictions.decoder"], logits)
    assert torch.equal(network.cls.predictions.decoder(values["cls.predictions.decoder.input"]), logits)
    assert torch.equal(network.cls(values["bert"]), logits)
    assert torch.equal(values["bert.encoder.layer.0.input"], values["embedding"])


def test_a_field_wins_over_an_alias():
    class Network(nn.Module):
        def forward(self, inputs):
            return {"embedding": inputs + 1}

    assert Taps(Network(), ["embedding"])({"inputs": torch.ones(1)})["embedding"] == 2


def test_gradients_flow_through_taps():
    network = network_of("DistilBertForMaskedLM")
    values = Taps(network, ["hidden_states.1", "query.0", "logits"])(view_of(network))
    (values["hidden_states.1"].square().sum() + values["query.0"].sum()).backward()
    layers = network.distilbert.transformer.layer
    assert layers[0].ffn.lin1.weight.grad.abs().sum() > 0
    assert layers[1].ffn.lin1.weight.grad is None


def test_gradients_flow_through_recomputed_layers():
    gradients = []
    for recompute in (False, True):
        network = network_of("BertForMaskedLM").train()
        if recompute:
            network.gradient_checkpointing_enable()
        torch.manual_seed(3)
        Taps(network, ["hidden_states.2"])(view_of(network))["hidden_states.2"].square().sum().backward()
        gradients.append(network.bert.encoder.layer[0].output.dense.weight.grad)
    assert torch.equal(*gradients)


def test_two_readers_do_not_disturb_each_other_and_close_removes_the_hooks():
    network = network_of("BertForMaskedLM")
    view = view_of(network)
    plain = network(**view).logits
    one, two = Taps(network, ["hidden_states.1", "logits"]), Taps(network, ["hidden_states.1", "query.0"])
    first, second = one(view), two(view)
    assert torch.equal(first["hidden_states.1"], second["hidden_states.1"])
    assert torch.equal(first["logits"], plain)
    one.close()
    assert torch.equal(two(view)["query.0"], second["query.0"])
    two.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_nothing_is_kept_between_calls():
    network = network_of("BertModel")
    taps = Taps(network, ["hidden_states.1", "embedding"])
    taps(view_of(network))
    network(**view_of(network))
    assert taps._recorder.values is None
    with pytest.raises(IndexError):
        taps({"input_ids": torch.tensor([[10_000]])})
    assert taps._recorder.values is None


@pytest.mark.parametrize("again", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_networks_with_taps_can_be_copied_and_pickled(again):
    network = network_of("BertForMaskedLM")
    view = view_of(network)
    taps = Taps(network, ["hidden_states.1"])
    before = taps(view)["hidden_states.1"]
    other = again(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    there = Taps(other, ["hidden_states.1"])(view)["hidden_states.1"]
    assert not torch.allclose(there, before)
    assert torch.equal(taps(view)["hidden_states.1"], before)
    assert network.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hidden_states.4", r"out of range: the network has 3 layers \(hidden_states.0 to .3\)"),
        ("hidden_states.-5", "3 layers"),
        ("query.3", r"3 layers \(query.0 to .2\)"),
        ("hiden_states.1", "Did you mean 'hidden_states"),
        ("bert.encoder.layr.0", "Did you mean 'bert.encoder.layer.0'"),
        ("bert.encoder.layer.0.inputs", "module"),
        ("quary.1", "A tap is a field of the network's output"),
        ("hidden_states.one", "has no tap 'hidden_states.one'"),
    ],
)
def test_wrong_names_are_told_before_anything_runs(name, told):
    with pytest.raises(UserError, match=told):
        Taps(network_of("BertForMaskedLM"), ["logits", name])


def test_wrong_fields_are_told_by_the_first_call():
    network = network_of("BertForMaskedLM")
    with pytest.raises(UserError, match=r"has no tap 'logit'\. Did you mean 'logits'"):
        Taps(network, ["logit"])(view_of(network))
    gpt = network_of("GPT2LMHeadModel")
    cache = next(name for name, value in gpt(**view_of(gpt)).items() if type(value).__name__ == "DynamicCache")
    with pytest.raises(UserError, match=f"'{cache}' is a DynamicCache, not a tensor"):
        Taps(gpt, [cache])(view_of(gpt))
    vision = network_of("ViTForImageClassification")
    with pytest.raises(UserError, match="gave no tensor"):
        Taps(vision, ["vit.layers"])(view_of(vision))


def test_a_view_holds_only_what_the_network_names():
    network = network_of("BertForMaskedLM")
    check_view(network, ["input_ids", "attention_mask", "token_type_ids"])
    with pytest.raises(UserError, match=r"no input 'attention_maks'. Did you mean 'attention_mask'\?"):
        check_view(network, {"input_ids": None, "attention_maks": None})
    with pytest.raises(UserError, match="no input 'token_type_ids'"):
        check_view(network_of("DistilBertForMaskedLM"), ["input_ids", "token_type_ids"])


@pytest.mark.parametrize("name", ["BertForMaskedLM", "DistilBertForMaskedLM"])
def test_without_padding_real_tokens_have_equal_values(name):
    network = network_of(name)
    names = ["logits", "hidden_states.0", "hidden_states.1", "hidden_states.-1", "query.0", "value.-1"]
    view = view_of(network)
    mask = view["attention_mask"].bool()
    assert not mask.all()
    plain, unpadded = Taps(network, names)(view), Taps(network, names, unpad=True)(view)
    for tap in names:
        torch.testing.assert_close(unpadded[tap][mask], plain[tap][mask])
        assert not unpadded[tap][~mask].any()
    unpadded["hidden_states.1"][mask].square().sum().backward()
    assert network.get_input_embeddings().weight.grad.any()


def test_what_cannot_do_without_padding_says_so_at_once():
    with pytest.raises(UserError, match="cannot be packed"):
        Taps(network_of("GPT2LMHeadModel"), ["logits"], unpad=True)


def test_one_vector_a_text_from_its_first_token_or_their_mean():
    network = network_of("BertModel")
    view = view_of(network)
    taps = Taps(network, ["hidden_states.2", "hidden_states.2.first", "hidden_states.2.mean", "query.-1.mean"])
    values = taps(view)
    states = values["hidden_states.2"]
    assert torch.equal(values["hidden_states.2.first"], states[:, 0])
    torch.testing.assert_close(values["hidden_states.2.mean"][1], states[1, :3].mean(0))
    assert values["query.-1.mean"].shape == (2, 32)
    left = {key: value.flip(1) for key, value in view.items()}  # padding in front: the first real token is meant
    values = taps(left)
    assert torch.equal(values["hidden_states.2.first"][1], values["hidden_states.2"][1, 2])


def test_pooling_needs_tokens():
    network = network_of("RobertaForSequenceClassification")
    with pytest.raises(UserError, match=r"'logits.mean' pools the tokens of texts, and its value has the shape \(2, "):
        Taps(network, ["logits.mean"])(view_of(network))
