import json

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForTokenClassification,
    BertModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from kdbench.data.causal_tokenizers import TrainWords
from kdbench.errors import UserError
from kdbench.models.origins import Facts, FromConfig, FromFolder, FromHub, FromRun, quiet
from kdbench.models.surgery import AddHead, CopyLayers

BERT = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def tokenizer(pieces=30):
    vocabulary = {f"w{i}": i for i in range(pieces - 2)} | {"[PAD]": pieces - 2, "[UNK]": pieces - 1}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]")


def saved(folder, kind=BertForMaskedLM, **changes):
    torch.manual_seed(0)
    network = kind(BertConfig(**BERT | changes)).eval()
    with quiet():
        network.save_pretrained(folder)
    return network


def view():
    ids = torch.tensor([[2, 5, 7, 9, 3], [2, 8, 3, 1, 1]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


SIZES = {key: value for key, value in BERT.items() if key != "vocab_size"}


class TestFromConfig:
    def test_the_vocabulary_comes_from_the_tokenizer(self):
        network = FromConfig("BertForMaskedLM", SIZES).build(Facts(tokenizer=tokenizer(30)))
        assert isinstance(network, BertForMaskedLM)
        assert (network.config.vocab_size, network.config.pad_token_id) == (30, 28)
        assert network.config.hidden_size == 32
        assert network.training

    def test_the_end_of_a_text_comes_from_the_tokenizer_too(self):
        words = TrainWords().train(["a b c"])
        sizes = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 8}
        config = FromConfig("GPT2LMHeadModel", sizes).build(Facts(tokenizer=words)).config
        assert (config.vocab_size, config.bos_token_id, config.eos_token_id) == (6, 2, 2)

    def test_a_given_vocabulary_stays(self):
        origin = FromConfig("BertForMaskedLM", SIZES | {"vocab_size": 64, "pad_token_id": 3})
        network = origin.build(Facts(tokenizer=tokenizer(30)))
        assert (network.config.vocab_size, network.config.pad_token_id) == (64, 3)
        assert origin.tokenizer() is None

    def test_the_weights_follow_the_seed(self):
        origin = FromConfig("BertModel", SIZES | {"vocab_size": 40})
        weights = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            weights.append(origin.build().embeddings.word_embeddings.weight)
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    @pytest.mark.parametrize(
        ("architecture", "change", "told"),
        [
            ("BertForMaskdLM", {}, "Did you mean 'BertForMaskedLM'"),
            ("AutoModelForMaskedLM", {}, "builds one class"),
            ("AutoTokenizer", {}, "no architecture 'AutoTokenizer'"),
            ("BertForMaskedLM", {"hiden_size": 32}, "BertConfig has no 'hiden_size'. Did you mean 'hidden_size'"),
            ("BertForMaskedLM", {"num_attention_heads": 5}, "No BertForMaskedLM can be built"),
            ("BertForMaskedLM", {"vocab_size": 29}, "29 token embeddings and the tokenizer of the data 30 pieces"),
        ],
    )
    def test_mistakes_are_told(self, architecture, change, told):
        with pytest.raises(UserError, match=told):
            FromConfig(architecture, SIZES | change).build(Facts(tokenizer=tokenizer(30)))


class TestFromFolder:
    @pytest.mark.parametrize("kind", [BertForMaskedLM, BertForTokenClassification, BertModel])
    def test_the_folder_knows_its_architecture(self, tmp_path, kind):
        network = saved(tmp_path, kind)
        loaded = FromFolder(str(tmp_path)).build()
        assert loaded.training  # Lightning keeps the mode that it finds
        assert type(loaded) is kind
        assert torch.equal(loaded.eval()(**view())[0], network(**view())[0])

    @pytest.mark.parametrize("architecture", ["AutoModel", "BertModel"])
    def test_a_head_may_be_left_behind_but_nothing_is_random(self, tmp_path, architecture):
        network = saved(tmp_path)
        loaded = FromFolder(str(tmp_path), architecture=architecture).build().eval()
        assert loaded.pooler is None
        assert torch.equal(loaded(**view()).last_hidden_state, network.bert(**view()).last_hidden_state)
        smaller = CopyLayers(layers=[1])(loaded, Facts())
        assert smaller.pooler is None

    def test_other_heads_of_a_pretrained_network_are_left_behind(self, tmp_path):
        network = saved(tmp_path, BertForPreTraining)
        loaded = FromFolder(str(tmp_path), architecture="AutoModelForMaskedLM").build().eval()
        assert torch.equal(loaded(**view()).logits, network(**view()).prediction_logits)

    def test_weights_are_loaded_in_single_precision(self, tmp_path):
        saved(tmp_path)
        with quiet():
            BertForMaskedLM.from_pretrained(tmp_path).bfloat16().save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
        assert {each.dtype for each in FromFolder(str(tmp_path)).build().parameters()} == {torch.float32}

    def test_the_tokenizer_comes_along(self, tmp_path):
        saved(tmp_path)
        assert FromFolder(str(tmp_path)).tokenizer() is None
        tokenizer(30).save_pretrained(tmp_path)
        assert FromFolder(str(tmp_path)).tokenizer().get_vocab() == tokenizer(30).get_vocab()

    def test_surgeries_follow_in_order(self, tmp_path):
        network = saved(tmp_path)
        then = [CopyLayers(layers=[1]), AddHead("tagging")]
        tagger = FromFolder(str(tmp_path), then=then).build(Facts(labels=["a", "b", "c"]))
        assert isinstance(tagger, BertForTokenClassification)
        assert tagger.training
        ours, theirs = tagger.bert.encoder.layer[0], network.bert.encoder.layer[1]
        assert torch.equal(ours.output.dense.weight, theirs.output.dense.weight)
        assert len(tagger.bert.encoder.layer) == 1

    def test_a_missing_folder_is_told(self, tmp_path):
        with pytest.raises(UserError, match="There is no folder"):
            FromFolder(str(tmp_path / "none")).build()
        with pytest.raises(UserError, match=r"has no config\.json"):
            FromFolder(str(tmp_path)).build()

    def test_pickled_weights_are_not_opened(self, tmp_path):
        network = saved(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match="opens no pickled ones"):
            FromFolder(str(tmp_path)).build()

    @pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"not safetensors"])
    def test_damaged_weights_are_told(self, tmp_path, damage):
        saved(tmp_path)
        file = tmp_path / "model.safetensors"
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(UserError, match="cannot be opened"):
            FromFolder(str(tmp_path)).build()

    def test_a_damaged_config_is_told(self, tmp_path):
        saved(tmp_path)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(UserError, match="cannot be opened"):
            FromFolder(str(tmp_path)).build()

    @pytest.mark.parametrize(
        ("architecture", "told"),
        [
            ("BertForTokenClassification", "it lacks classifier.bias, classifier.weight; .*AddHead"),
            ("AutoModelForSequenceClassification", "it lacks bert.pooler.dense.bias.* and 1 more"),
            ("DistilBertForMaskedLM", "of the type 'bert', not a DistilBertForMaskedLM"),
            ("BertFoMaskedLM", "Did you mean 'BertForMaskedLM'"),
        ],
    )
    def test_random_weights_are_never_accepted(self, tmp_path, architecture, told):
        saved(tmp_path)
        with pytest.raises(UserError, match=told):
            FromFolder(str(tmp_path), architecture=architecture).build()

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"num_hidden_layers": 3}, "it lacks bert.encoder.layer.2.* and 13 more"),
            ({"num_hidden_layers": 1}, "has besides bert.encoder.layer.1.* and 13 more"),
            ({"intermediate_size": 64}, "in another shape bert.encoder.layer.0.intermediate.dense.bias"),
        ],
    )
    def test_weights_and_config_have_to_agree(self, tmp_path, change, told):
        saved(tmp_path)
        file = tmp_path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(UserError, match=told):
            FromFolder(str(tmp_path)).build()

    def test_a_single_missing_weight_is_told(self, tmp_path):
        saved(tmp_path)
        file = str(tmp_path / "model.safetensors")
        weights = load_file(file)
        del weights["cls.predictions.transform.dense.bias"]
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(UserError, match=r"it lacks cls\.predictions\.transform\.dense\.bias; load"):
            FromFolder(str(tmp_path)).build()

    def test_loading_prints_nothing_and_leaves_the_settings(self, tmp_path, capfd):
        saved(tmp_path)
        before = logging.get_verbosity(), logging.is_progress_bar_enabled()
        FromFolder(str(tmp_path), architecture="AutoModel").build()
        with pytest.raises(UserError):
            FromFolder(str(tmp_path), architecture="BertForTokenClassification").build()
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
        assert capfd.readouterr() == ("", "")


class TestFromRun:
    def test_it_opens_what_the_run_left(self, tmp_path):
        network = saved(tmp_path / "student")
        tokenizer(30).save_pretrained(tmp_path / "student")
        origin = FromRun("experiments/teacher.yaml", run=str(tmp_path), then=[CopyLayers(count=2)])
        assert torch.equal(origin.build().eval()(**view()).logits, network(**view()).logits)
        assert len(origin.tokenizer()) == 30

    def test_another_folder_of_the_run(self, tmp_path):
        saved(tmp_path / "assistant", num_hidden_layers=1)
        network = FromRun("experiments/teacher.yaml", file="assistant", run=str(tmp_path)).build()
        assert network.config.num_hidden_layers == 1

    def test_an_open_chain_is_told(self):
        origin = FromRun("experiments/teacher.yaml")
        for call in (origin.build, origin.tokenizer):
            with pytest.raises(UserError, match=r"kdbench resolves the chain; .*experiments/teacher.yaml"):
                call()


class TestFromHub:
    @pytest.mark.parametrize("call", ["build", "tokenizer"])
    def test_an_impossible_id_is_told_in_one_sentence(self, call):
        with pytest.raises(UserError, match="'no/such/id' cannot be loaded from the Hugging Face hub") as caught:
            getattr(FromHub("no/such/id"), call)()
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("call", ["build", "tokenizer", "preprocessor"])
    def test_no_connection_is_told_in_one_sentence(self, call, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        architecture = "AutoModelForImageClassification" if call == "preprocessor" else "AutoModelForMaskedLM"
        with pytest.raises(
            UserError, match="'kdbench/not-in-the-cache' cannot be loaded from the Hugging Face"
        ) as caught:
            getattr(FromHub("kdbench/not-in-the-cache", architecture), call)()
        assert "\n" not in str(caught.value)

    def test_a_network_of_images_brings_its_preprocessor_and_one_of_texts_none(self, tmp_path, monkeypatch):
        commit = "0" * 40
        place = tmp_path / "models--kdbench--seen"
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "preprocessor_config.json").write_text('{"size": 224}')
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        assert FromHub("kdbench/seen", "ResNetForImageClassification").preprocessor() == {"size": 224}
        assert FromHub("kdbench/seen").preprocessor() is None

    def test_what_the_cache_holds_is_loaded_without_a_connection(self, tmp_path, monkeypatch):
        commit = "0" * 40
        place = tmp_path / "models--kdbench--tiny"
        network = saved(place / "snapshots" / commit)
        tokenizer(30).save_pretrained(place / "snapshots" / commit)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        origin = FromHub("kdbench/tiny")
        loaded = origin.build().eval()
        assert torch.equal(loaded(**view()).logits, network(**view()).logits)
        assert len(origin.tokenizer()) == 30
