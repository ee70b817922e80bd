from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForSequenceClassification

from kdbench.errors import UserError
from kdbench.metrics.speed import parameters
from kdbench.models.fingerprint import network_digest
from kdbench.models.mlp import MLPClassifier, MLPConfig
from kdbench.models.origins import Facts, FromConfig, FromFolder, quiet
from kdbench.models.taps import Taps, check_view

LABELS = ["c0", "c1", "c2"]


def network(*widths, inputs=6):
    torch.manual_seed(0)
    origin = FromConfig("MLPClassifier", {"inputs": inputs, "widths": list(widths)})
    return origin.build(Facts(labels=LABELS)).eval()


@given(st.lists(st.integers(1, 9), max_size=3), st.integers(1, 7), st.integers(1, 4))
def test_it_is_the_chain_of_its_layers(widths, inputs, rows):
    mlp = network(*widths, inputs=inputs)
    features = torch.randn(rows, inputs)
    states = features
    for layer in mlp.layers:
        states = torch.clamp(states @ layer.dense.weight.T + layer.dense.bias, min=0)
    logits = states @ mlp.classifier.weight.T + mlp.classifier.bias
    torch.testing.assert_close(mlp(features=features).logits, logits)
    sizes = [inputs, *widths, len(LABELS)]
    assert parameters(mlp)["parameters"] == sum(a * b + b for a, b in pairwise(sizes))


def test_the_classes_come_from_the_data():
    mlp = network(8)
    assert mlp.config.num_labels == 3
    assert mlp.config.id2label == {0: "c0", 1: "c1", 2: "c2"} and mlp.config.label2id == {"c0": 0, "c1": 1, "c2": 2}
    assert MLPConfig(num_labels=5).num_labels == 5


def test_the_weights_follow_the_seed_and_are_those_of_torch():
    mlp, again = network(8), network(8)
    assert network_digest(mlp) == network_digest(again)
    torch.manual_seed(0)
    dense = torch.nn.Linear(6, 8)
    assert torch.equal(mlp.layers[0].dense.weight, dense.weight) and torch.equal(mlp.layers[0].dense.bias, dense.bias)
    torch.manual_seed(1)
    other = MLPClassifier(mlp.config)
    assert network_digest(other) != network_digest(mlp)


@pytest.mark.parametrize("widths", [(), (8,), (8, 5)])
def test_saved_and_loaded_it_gives_equal_outputs(tmp_path, widths):
    mlp, features = network(*widths), torch.randn(4, 6)
    with quiet():
        mlp.save_pretrained(tmp_path)
        plain = [kind.from_pretrained(tmp_path) for kind in (AutoModel, AutoModelForSequenceClassification)]
    for other in (*plain, FromFolder(str(tmp_path)).build(Facts(labels=LABELS)).eval()):
        assert isinstance(other, MLPClassifier)
        assert torch.equal(other(features=features).logits, mlp(features=features).logits)
        assert (other.config.widths, other.config.id2label) == (list(widths), mlp.config.id2label)
    assert FromFolder(str(tmp_path)).tokenizer() is None


def test_hidden_layers_are_taps():
    mlp, view = network(8, 5), {"features": torch.randn(4, 6)}
    found = Taps(mlp, ["logits", "layers.0", "layers.1", "hidden_states.0", "hidden_states.1", "hidden_states.-1"])(
        view
    )
    assert found["layers.0"].shape == (4, 8) and found["layers.1"].shape == (4, 5)
    assert torch.equal(found["hidden_states.0"], view["features"])
    assert torch.equal(found["hidden_states.1"], found["layers.0"])
    assert torch.equal(found["hidden_states.-1"], found["layers.1"])
    torch.testing.assert_close(mlp.classifier(found["layers.1"]), found["logits"])
    with pytest.raises(UserError, match=r"has no tap 'layers\.2'.*Did you mean 'layers\.[01]'"):
        Taps(mlp, ["layers.2"])


def test_every_parameter_has_a_gradient():
    mlp = network(8, 5)
    mlp(features=torch.randn(16, 6)).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in mlp.parameters())


def test_it_takes_vectors_alone():
    check_view(network(8), ["features"])
    with pytest.raises(UserError, match="MLPClassifier has no input 'input_ids'"):
        check_view(network(8), ["input_ids", "attention_mask"])


@pytest.mark.parametrize("sizes", [{"inputs": 0}, {"widths": [8, 0]}, {"widths": [2.5]}])
def test_sizes_that_are_none(sizes):
    with pytest.raises(UserError, match="sizes of at least 1"):
        MLPConfig(**sizes)


def test_a_wrong_key_is_told():
    with pytest.raises(UserError, match=r"MLPConfig has no 'width'\. Did you mean 'widths'"):
        FromConfig("MLPClassifier", {"width": [8]}).build(Facts(labels=LABELS))
