import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel

from kdbench.errors import UserError
from kdbench.models.deltas import (
    AddLoRA,
    ApplyLoRA,
    LowRank,
    add_lora,
    load_lora,
    loras,
    merged,
    save_lora,
    scaled,
)
from kdbench.models.origins import FromConfig, FromFolder
from kdbench.models.surgery import Facts


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


def mixed(seed=0):
    """Linear and convolution layers of several kinds, in float64."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"),
        nn.SiLU(),
        nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.Tanh(),
        nn.Linear(5, 3, bias=False),
    ).double()


def learnt(network, seed=1, size=1.0, **settings):
    """The network with a LoRA that is not neutral."""
    torch.manual_seed(seed)
    for lora in loras(add_lora(network, **settings)).values():
        nn.init.normal_(lora.up.weight, std=size)
    return network


IMAGES = g((5, 1, 4, 4), 0.37, 0.2)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (0.0, [[-0.68188994, 0.16540282, 1.6790836]]),
        (2.0, [[-0.60158270, 0.04627345, 1.3994818], [-2.5236585, -2.4787197, 1.9358196]]),
    ],
)
def test_oracle_of_the_official_module(scale, expected):
    layer = nn.Linear(4, 3).double()
    network = nn.Sequential(layer)
    add_lora(network, rank=2)
    with torch.no_grad():
        layer.weight.copy_(g((3, 4), 0.37, 0.1))
        layer.bias.copy_(g((3,), 0.71, 0.1))
        layer.lora.down.weight.copy_(g((2, 4), 0.53, 1.1))
        layer.lora.up.weight.copy_(g((3, 2), 0.29, 2.1))
    with scaled(network, scale):
        found = network(g((2, 4), 0.19, 3.1))
        torch.testing.assert_close(merged(network)(g((2, 4), 0.19, 3.1)), found)
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found[: len(expected)], expected, rtol=0, atol=1e-6)


def test_a_fresh_lora_changes_nothing_and_alone_is_trained():
    network = mixed()
    plain = network(IMAGES)
    add_lora(network)
    torch.testing.assert_close(network(IMAGES), plain, rtol=0, atol=0)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {f"{place}.lora.{part}.weight" for place in (0, 2, 4, 6) for part in ("down", "up")}


@given(st.floats(-3, 3), st.integers(0, 100))
def test_merged_equals_hooked(scale, seed):
    network = learnt(mixed(), seed)
    with scaled(network, scale):
        folded = merged(network)
        torch.testing.assert_close(folded(IMAGES), network(IMAGES))
    assert folded.state_dict().keys() == mixed().state_dict().keys()
    assert loras(network), "the given network keeps its LoRA"
    assert all(parameter.requires_grad for parameter in folded.parameters())


@given(st.integers(0, 100))
def test_scale_0_is_the_network_alone_bit_for_bit(seed):
    plain = mixed()(IMAGES)
    network = learnt(mixed(), seed)
    with scaled(network, 0.0):
        assert torch.equal(network(IMAGES), plain)
        assert torch.equal(merged(network)(IMAGES), plain)
    assert not torch.allclose(network(IMAGES), plain)


def test_the_effect_is_antisymmetric_to_first_order():
    network = learnt(mixed(), size=0.3)
    plain = mixed()(IMAGES)

    def effect(scale):
        with scaled(network, scale):
            return network(IMAGES) - plain

    sums = [(effect(scale) + effect(-scale)).norm().item() for scale in (0.2, 0.1, 0.05)]
    assert sums[0] / sums[1] == pytest.approx(4, rel=0.05)
    assert sums[1] / sums[2] == pytest.approx(4, rel=0.05)
    assert effect(0.05).norm() / sums[2] > 5


def test_one_layer_alone_is_antisymmetric_exactly():
    network = learnt(nn.Sequential(nn.Linear(4, 3)).double())
    rows = g((5, 4), 0.37, 0)
    plain = network[0].weight @ rows.T + network[0].bias[:, None]
    outputs = []
    for scale in (1.5, -1.5):
        with scaled(network, scale):
            outputs.append(network(rows))
    torch.testing.assert_close(sum(outputs) / 2, plain.T)


def test_the_scale_is_set_for_a_call_and_then_as_before():
    network = learnt(mixed())
    before = network(IMAGES)
    with pytest.raises(RuntimeError), scaled(network, -2.0), scaled(network, 0.5):
        raise RuntimeError
    assert torch.equal(network(IMAGES), before)
    with pytest.raises(ValueError, match="has no LoRA"), scaled(mixed(), 1.0):
        pass


def test_a_frozen_up_has_orthonormal_columns_and_no_gradient():
    network = add_lora(mixed(), ["4"], rank=3, freeze_up=True)
    lora = network[4].lora
    torch.testing.assert_close(lora.up.weight.T @ lora.up.weight, torch.eye(3, dtype=torch.float64))
    before, plain = lora.up.weight.clone(), mixed()(IMAGES)
    assert not torch.allclose(network(IMAGES), plain), "the start is not neutral"
    network(IMAGES).square().sum().backward()
    assert lora.up.weight.grad is None
    assert lora.down.weight.grad.abs().sum() > 0
    assert torch.equal(lora.up.weight, before)


def test_patterns_choose_the_layers():
    network = AddLoRA(modules=["encoder.*"], without=["*.attention.*"], rank=2)(small_bert(), Facts())
    assert loras(network).keys() == {
        f"encoder.layer.{i}.{name}.dense" for i in (0, 1) for name in ("intermediate", "output")
    }


def small_bert(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    return BertModel(BertConfig(**sizes | changes)).eval()


VIEW = {"input_ids": torch.tensor([[2, 5, 7, 3]])}


def test_it_moves_to_another_network_of_the_same_names(tmp_path):
    first, second = learnt(small_bert(0), rank=3, alpha=2.0), small_bert(1)
    plain = second(**VIEW).last_hidden_state
    save_lora(first, tmp_path)
    for scale in (1.0, -0.5, 0.0):
        applied = ApplyLoRA(FromFolder(str(tmp_path)), scale)(small_bert(1), Facts())
        expected = small_bert(1)
        with torch.no_grad():
            for name, lora in loras(first).items():
                change = scale * 2.0 / 3 * lora.up.weight @ lora.down.weight
                expected.get_submodule(name).weight += change
        torch.testing.assert_close(applied(**VIEW).last_hidden_state, expected(**VIEW).last_hidden_state)
    assert torch.equal(applied(**VIEW).last_hidden_state, plain)
    hooked = load_lora(second, tmp_path)
    for name, lora in loras(hooked).items():
        assert torch.equal(lora.down.weight, loras(first)[name].down.weight)
        assert torch.equal(lora.up.weight, loras(first)[name].up.weight)


def test_what_is_saved_does_not_depend_on_the_scale(tmp_path):
    network = learnt(mixed())
    save_lora(network, tmp_path / "one")
    with scaled(network, -2.0):
        save_lora(network, tmp_path / "two")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_peft_opens_the_folder(tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    network = learnt(small_bert(), rank=3, alpha=2.0, modules=["encoder.*"])
    save_lora(network, tmp_path)
    theirs = peft.PeftModel.from_pretrained(small_bert(), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(**VIEW).last_hidden_state, network(**VIEW).last_hidden_state)
    folded = theirs.merge_and_unload()
    torch.testing.assert_close(folded(**VIEW).last_hidden_state, merged(network)(**VIEW).last_hidden_state)


def test_a_convolution_equals_that_of_peft(tmp_path):
    """PEFT's own forgets dilation and the mode of the padding, so that this one has neither."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    plain = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1)).double()
    network = learnt(copy.deepcopy(plain), rank=2)
    save_lora(network, tmp_path)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    config = peft.LoraConfig(r=told["r"], lora_alpha=told["lora_alpha"], target_modules=told["target_modules"])
    theirs = peft.PeftModel(plain, config)
    with torch.no_grad():
        for name, lora in loras(network).items():
            layer = theirs.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(lora.down.weight)
            layer.lora_B["default"].weight.copy_(lora.up.weight)
    torch.testing.assert_close(theirs.eval()(IMAGES), network(IMAGES))


def test_the_control_has_the_norms_of_the_learnt_change(tmp_path):
    network = learnt(small_bert(), rank=2)
    save_lora(network, tmp_path)
    origin = FromFolder(str(tmp_path))
    plain, real, other = (
        dict(each.named_parameters())
        for each in (
            small_bert(),
            ApplyLoRA(origin, 2.0)(small_bert(), Facts()),
            ApplyLoRA(origin, 2.0, 7)(small_bert(), Facts()),
        )
    )
    again = dict(ApplyLoRA(origin, 2.0, 7)(small_bert(), Facts()).named_parameters())
    for name in (f"{name}.weight" for name in loras(network)):
        theirs, ours = real[name] - plain[name], other[name] - plain[name]
        torch.testing.assert_close(ours.norm(), theirs.norm(), rtol=1e-3, atol=0)
        assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0).abs() < 0.5
        assert torch.linalg.matrix_rank(ours, rtol=1e-3) == 2
        assert torch.equal(again[name], other[name])


def test_a_copy_has_a_lora_of_its_own():
    network = learnt(mixed())
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for lora in loras(twin).values():
            lora.up.weight.zero_()
    assert torch.equal(twin(IMAGES), mixed()(IMAGES))
    assert not torch.allclose(network(IMAGES), twin(IMAGES))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: AddLoRA(rank=0), "the rank is at least 1"),
        (lambda: add_lora(mixed(), ["attn*"]), r"no linear or convolution layer 'attn\*'"),
        (
            lambda: add_lora(small_bert(), ["encoder.layer.0.output.densee"]),
            "Did you mean 'encoder.layer.0.output.dense'",
        ),
        (lambda: add_lora(mixed(), ["4"], ["*"]), "leaves none"),
        (lambda: add_lora(nn.Conv2d(4, 4, 3, groups=2)), "no linear or convolution layer"),
        (lambda: add_lora(learnt(mixed())), "has a LoRA already"),
    ],
)
def test_mistakes_are_told(make, told):
    with pytest.raises(UserError, match=told):
        make()


def test_a_lora_of_another_architecture_is_one_clear_error(tmp_path):
    save_lora(learnt(small_bert()), tmp_path)
    with pytest.raises(UserError, match=r"has no layer 'encoder\.layer\.1\.attention.* and 5 more"):
        load_lora(small_bert(num_hidden_layers=1), tmp_path)
    with pytest.raises(UserError, match=r"another architecture: BertModel has no layer .* of its shape"):
        load_lora(small_bert(intermediate_size=32), tmp_path)
    with pytest.raises(UserError, match="Sequential has no layer"):
        load_lora(mixed(), tmp_path)


def test_a_folder_without_a_lora_is_told(tmp_path):
    with pytest.raises(UserError, match="holds no LoRA that can be read"):
        load_lora(mixed(), tmp_path / "nothing")
    save_lora(learnt(mixed()), tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    with pytest.raises(UserError, match=r"another kind \(use_dora\)"):
        load_lora(mixed(), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="holds no LoRA that can be read"):
        load_lora(mixed(), tmp_path)


def test_the_surgery_follows_an_origin():
    then = [AddLoRA(modules=["layers.*"], rank=2)]
    network = FromConfig("MLPClassifier", {"inputs": 4, "widths": [6], "num_labels": 3}, then).build()
    assert loras(network).keys() == {"layers.0.dense"}
    assert isinstance(network.layers[0].dense.lora, LowRank)
